"""Figures: which there are, that they show what was measured, and that they are the same wherever they are drawn."""

import sys
import warnings
from dataclasses import replace
from xml.etree import ElementTree

import matplotlib
import pytest
from common import tiny_clone, tiny_model
from measured import measured
from PIL import Image

from pnc_hub.hub.clone import Clone
from pnc_hub.report import figures, layers, theme


@pytest.fixture(scope="module")
def pruned_folder(tmp_path_factory):
    clone = tiny_clone(tiny_model("resnet"), tiny_model("mobilenet"), keep=0.4)
    return measured(clone).save_pretrained(tmp_path_factory.mktemp("pruned") / "clone")


@pytest.fixture
def clone(pruned_folder) -> Clone:
    return Clone.from_pretrained(pruned_folder)


def draw(clone):
    return {drawing.file: drawing.png() for drawing in figures.drawings(clone.config)}


def kinds(clone):
    return [drawing.name.split("-")[0] for drawing in figures.drawings(clone.config)]


def test_one_for_everything_that_was_measured(clone, pruned_folder):
    assert kinds(clone) == ["accuracy", "insertion", "gate", "confusion", "reliability", "kept"]
    for drawing in figures.drawings(clone.config):
        picture = Image.open(pruned_folder / drawing.file)
        assert picture.format == "PNG"
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 10


def test_a_saved_clone_shows_them_with_the_same_bytes_whatever_the_callers_settings(clone, pruned_folder):
    page = (pruned_folder / "README.md").read_text()
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "black", "text.usetex": True}):
        first = draw(clone)
        assert matplotlib.rcParams["font.size"] == 20
    for file, content in first.items():
        assert (pruned_folder / file).read_bytes() == content
        assert f"]({file})" in page
    clone.config.adapters[0].metrics["target_alone"] = 0.5
    assert drawing_of(clone, "accuracy").png() != first["figures/accuracy.png"]


@pytest.mark.parametrize(
    ("gone", "left"),
    [
        (("target_alone", "source_alone"), ["insertion", "gate", "confusion", "reliability", "kept"]),
        (("tar", "source_alone"), ["accuracy", "insertion", "gate", "reliability", "kept"]),
    ],
)
def test_what_was_not_measured_is_not_drawn(clone, gone, left):
    clone.config.adapters[0].metrics.update(dict.fromkeys(gone))
    assert kinds(clone) == left
    clone.config.adapters[0].series = {}
    assert set(kinds(clone)) <= {"accuracy", "confusion", "kept"}


@pytest.mark.parametrize("metrics", [{}, {"ori": "x", "target_alone": None, "tar": 0.5}])
@pytest.mark.parametrize("series", [{}, {"curve": {"name": ["a", "b"], "accuracy": [1.0, "x"]}}])
def test_nothing_measured_no_figure(saved_clone, metrics, series):
    clone = Clone.from_pretrained(saved_clone)
    clone.config.adapters[0].metrics, clone.config.adapters[0].series = metrics, series
    assert figures.drawings(clone.config) == []


def test_another_adapter_has_figures_of_its_own(clone):
    first, universal = clone.config.adapters
    other = replace(first, name="vit-1", metrics=dict(first.metrics))
    clone.config.adapters = [first, other, universal]
    assert [drawing.file for drawing in figures.drawings(clone.config) if "vit-1" in drawing.file] == [
        "figures/insertion-vit-1.png",
        "figures/gate-vit-1.png",
    ]


def test_without_matplotlib_there_are_no_files_and_all_numbers(clone, monkeypatch):
    monkeypatch.setattr(figures, "find_spec", lambda name: None)
    assert not figures.can_draw()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert all(drawing.rows for drawing in figures.drawings(clone.config))


def test_numbers_beside_a_figure_are_those_measured(clone):
    tables = {drawing.name.split("-")[0]: drawing.rows for drawing in figures.drawings(clone.config)}
    assert tables["accuracy"] == (("target's classes", "92.0 %", "91.0 %"), ("cloned classes", "99.0 %", "87.5 %"))
    assert tables["insertion"][6] == ("blocks.6.0 (chosen)", "74.0 %", "0.920", "270,000")
    assert tables["confusion"][0] == ("images of old classes", "91.0 %", "7.0 %", "2.0 %")
    assert ("ant taken for the target's class 4", "", "", "2 images") in tables["confusion"]
    assert ("the target's class 6 taken for bee", "", "", "1 image") in tables["confusion"]
    assert sum(int(row[2]) for row in tables["gate"]) == sum(int(row[3]) for row in tables["gate"]) == 60
    assert sum(int(row[2]) for row in tables["reliability"]) == 100


def drawing_of(clone, kind):
    return next(one for one in figures.drawings(clone.config) if one.name.startswith(kind))


@pytest.mark.parametrize(
    ("metrics", "note"),
    [
        ({}, "so that at most 3.0 % of images like those in target_data are diverted, on average."),
        ({"locality_budget": None}, "where old and new classes together do best"),
        ({"locality_budget": None, "regime": "R2"}, "with images of other classes of the source"),
    ],
)
def test_it_is_said_how_the_threshold_was_set(clone, metrics, note):
    clone.config.adapters[0].metrics.update(metrics)
    drawing = drawing_of(clone, "gate")
    assert note in drawing.note
    side = "other" if metrics.get("regime") == "R2" else "old"
    assert drawing.columns[2] == f"images of {side} classes"
    assert f"2.0 % of the {side} images" in drawing.alt
    assert f">images of {side} classes</text>" in drawing.svg()
    assert drawing_of(clone, "confusion").rows[0][0] == f"images of {side} classes"
    assert f">{side} classes</text>" in drawing_of(clone, "confusion").svg()


def test_a_threshold_that_was_not_calibrated_is_not_said_to_be(clone):
    clone.config.adapters[0].metrics.update(locality_budget=None, diverted=None)
    gate = clone.config.adapters[0].series["gate"]
    gate["old"] = [0] * len(gate["old"])
    assert "it was not calibrated." in drawing_of(clone, "gate").note


def test_of_one_class_there_is_one_bar(clone):
    clone.config.classes = clone.config.classes[:1]
    drawing = drawing_of(clone, "accuracy")
    assert drawing.rows[1] == ("cloned classes", "", "87.5 %")
    assert "92.0 %" in drawing.svg()
    assert "99.0 %" not in drawing.svg()
    clone.config.adapters[0].metrics["ori"] = None
    assert "accuracy" not in kinds(clone)


def test_a_bin_that_is_never_right_has_a_mark(clone):
    def marks():
        return [len(line.get_xdata()) for line in drawing_of(clone, "reliability").plot().axes[0].lines]

    assert marks() == [0, 2]
    clone.config.adapters[0].series["calibration"]["accuracy"][7] = 0.0
    assert marks() == [1, 2]


def test_kept_weights_are_those_of_the_module(clone):
    found = layers.kept_layers(clone.config)
    module, _ = clone.build(clone.config.adapters[0], clone.config.preprocess)
    kept = {
        name: layer.weight.numel()
        for name, layer in module.tail.named_modules()
        if getattr(layer, "weight", None) is not None
    }
    assert found
    for name, (part, whole) in found.items():
        assert part == kept[name]
        assert part <= whole
    assert any(part < whole for part, whole in found.values())


def test_layers_of_a_block_are_counted_together_where_there_are_many():
    deep = [(f"layer{stage}.{block}.conv{n}", n, 10) for stage in (1, 2) for block in range(10) for n in (1, 2)]
    grouped = layers._grouped(deep)
    assert list(grouped.items())[:2] == [("layer1.0", (3, 20)), ("layer1.1", (3, 20))]
    assert len(grouped) == 20


def test_a_source_that_this_timm_does_not_have_is_left_out(clone):
    clone.config.source.architecture = "resnet_of_the_future"
    assert "kept" not in kinds(clone)


class TestSvg:
    def test_colours_and_letters_are_the_pages_and_ids_its_own(self, clone):
        seen = set()
        for drawing in figures.drawings(clone.config):
            text = drawing.svg()
            root = ElementTree.fromstring(text)
            assert root.tag == "svg"
            texts = list(root.iter("text"))
            assert texts
            assert all("fill: var(--" in text.get("style", "") for text in texts)
            assert "font-family" not in text
            assert "<style" not in text
            assert "http" not in text
            assert all(colour not in text for colour in theme.COLOURS.values())
            ids = [element.get("id") for element in root.iter() if element.get("id")]
            assert len(set(ids)) == len(ids)
            assert not seen & set(ids)
            seen |= set(ids)
            for element in root.iter():
                if element.get("href"):
                    assert element.get("href").removeprefix("#") in ids
        assert seen

    def test_a_name_is_text(self, clone):
        clone.config.classes[2].label = "<b>$x$</b> & id="
        drawing = next(one for one in figures.drawings(clone.config) if one.name == "confusion")
        texts = [text.text for text in ElementTree.fromstring(drawing.svg()).iter("text")]
        assert "<b>$x$</b> & id=" in texts


@pytest.mark.parametrize(("label", "drawn"), [("日本語", "class 2"), ("a" * 40, "a" * 17 + "…"), ("Zürich", "Zürich")])
def test_a_name_that_can_not_be_drawn_is_its_number(clone, label, drawn):
    clone.config.classes[2].label = label
    drawing = next(one for one in figures.drawings(clone.config) if one.name == "confusion")
    assert f">{drawn}</text>" in drawing.svg()
    assert any(row[0] == label for row in drawing.rows)
    with warnings.catch_warnings(action="error"):
        drawing.png()
