"""What was measured, for a person to read."""

from dataclasses import replace

import pytest
from hub.test_card import METRICS, PORTED

from pnc_hub.hub.clone import Clone
from pnc_hub.report.rows import PORTED_ROWS, ROWS, rows_of, shown


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
    second = replace(first, name="vit-1", metrics=dict(PORTED))
    clone.config.adapters = [first, second, universal]
    assert clone.report.ported == {"vit-1": PORTED}
    assert clone.report["tar"] == 0.875
    lines = str(clone.report).splitlines()[1 + len(ROWS) :]
    assert lines[0] == "Ported to vit-1"
    assert len(lines) == 1 + len(PORTED_ROWS)
    assert any("95.0 %" in line for line in lines)


@pytest.mark.parametrize(
    ("metrics", "told"),
    [
        ({"held_out.new": 20, "held_out.old": 1234}, "measured on 20 images of new and 1,234 of old classes"),
        (
            {"held_out.new": 1, "held_out.old": 20, "regime": "R2"},
            "measured on 1 image of new and 20 of other classes",
        ),
        ({"held_out.new": 20, "regime": "R1"}, "measured on 20 images of new classes"),
    ],
)
def test_it_says_on_how_much_it_was_measured(clone, metrics, told):
    clone.config.adapters[0].metrics.update(metrics)
    assert str(clone.report).splitlines()[1] == f"  {told}"


def test_where_no_image_of_the_target_was_seen_none_is_named(clone):
    assert "  target images diverted to the clone  " in str(clone.report)
    clone.config.adapters[0].metrics.update(regime="R2", diverted=0.062)
    assert "target images" not in str(clone.report)
    assert "  images of other classes diverted to clone   6.2 %" in str(clone.report)


def test_one_class_is_not_several(clone):
    clone.config.classes = clone.config.classes[:1]
    assert str(clone.report).startswith("Clone of 1 class: ant\n")


@pytest.mark.parametrize("regime", ["R2", "R4"])
def test_labels_leave_room_for_the_numbers(regime):
    assert all(len(text) < 44 for rows in (ROWS, PORTED_ROWS) for _, text, _ in rows_of({"regime": regime}, rows))


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
