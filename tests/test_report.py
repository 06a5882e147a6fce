"""What was measured, for a person to read; and the figures that are drawn of it."""

import io

import pytest
from PIL import Image
from test_card import METRICS, PORTED

from pnc_hub import figures
from pnc_hub.artifact import Clone
from pnc_hub.report import PORTED_ROWS, ROWS, shown


@pytest.fixture
def clone(clone_folder) -> Clone:
    read = Clone.from_pretrained(clone_folder)
    read.config.adapters[0].metrics = dict(METRICS)
    return read


def test_it_prints_every_measurement(clone):
    assert clone.report["tar"] == 0.875
    lines = str(clone.report).splitlines()
    assert lines[0] == "Clone of 3 classes: ant, bee, wasp"
    assert len(lines) == 1 + len(ROWS)
    for text in ("87.5 %", "91.2 %", "not measured", "62,018", "0.987", "blocks.3.3", "1,234,567"):
        assert text in str(clone.report)


def test_targets_that_it_was_ported_to_follow(clone):
    assert clone.report.ported == {}
    first, universal = clone.config.adapters
    second = type(first)("vit-1", first.target, first.insertion, "adapters/vit-1.safetensors", "", dict(PORTED))
    clone.config.adapters = [first, second, universal]
    assert clone.report.ported == {"vit-1": PORTED}
    assert clone.report["tar"] == 0.875
    lines = str(clone.report).splitlines()[1 + len(ROWS) :]
    assert lines[0] == "Ported to vit-1"
    assert len(lines) == 1 + len(PORTED_ROWS)
    assert any("95.0 %" in line for line in lines)


def test_text_where_a_number_is_usual_is_shown(clone):
    clone.config.adapters[0].metrics.update(tar="all", kept_parameters="few", auroc="")
    assert "all" in str(clone.report)


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (None, "count", "not measured"),
        (0.5, "percent", "50.0 %"),
        (1234, "count", "1,234"),
        (0.5, "number", "0.500"),
        ("x", "percent", "x"),
        (7, "text", "7"),
    ],
)
def test_values(value, kind, text):
    assert shown(value, kind) == text


class TestFigures:
    def test_one_for_the_accuracies_and_one_for_each_curve(self, clone):
        drawn = figures.draw(clone)
        assert list(drawn) == figures.names(clone)
        assert list(drawn) == ["figures/accuracy.png", f"figures/insertion-{clone.config.adapters[0].name}.png"]
        for content in drawn.values():
            picture = Image.open(io.BytesIO(content))
            assert picture.format == "PNG"
            assert len(picture.convert("RGB").getcolors(1 << 20)) > 10

    def test_the_same_measurements_give_the_same_bytes(self, clone):
        first = figures.draw(clone)
        assert figures.draw(clone) == first
        clone.config.adapters[0].metrics["tar"] = 0.5
        assert [file for file, content in figures.draw(clone).items() if content != first[file]] == [
            "figures/accuracy.png"
        ]

    @pytest.mark.parametrize(
        "metrics", [{}, {"ori": "x", "target_alone": None, "tar": 0.5}, {"curve.a": 1.0, "curve.b": "x"}]
    )
    def test_nothing_measured_no_figure(self, clone, metrics):
        clone.config.adapters[0].metrics = metrics
        assert figures.draw(clone) == {}

    def test_they_are_saved_with_the_clone_and_named_in_its_page(self, clone, tmp_path):
        folder = clone.save_pretrained(tmp_path / "saved")
        for file in figures.names(clone):
            assert (folder / file).read_bytes() == figures.draw(clone)[file]
            assert f"]({file})" in (folder / "README.md").read_text()

    def test_an_insertion_point_has_one_bar_that_of_the_best_cut(self):
        places = [{"insertion": "a", "avg_u": None, "tar": value} for value in (0.2, 0.9, 0.4)]
        assert figures.curve_metrics([*places, {"insertion": "b" * 80, "avg_u": 1.0, "tar": 1.0}]) == {"curve.a": 0.9}
