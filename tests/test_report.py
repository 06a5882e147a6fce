"""What was measured, for a person to read."""

import pytest
from test_card import METRICS, PORTED

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
