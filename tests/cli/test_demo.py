"""The pieces of the demo; the whole of it runs as a command."""

import pytest
import torch
from PIL import Image

from pnc_hub.cli import demo
from pnc_hub.cli.demo import Digits, table


@pytest.fixture
def report():
    row = {
        "digits": [5, 7, 9],
        "ori": 0.98,
        "tar": 0.915,
        "avg": 0.9475,
        "source_alone": 0.99,
        "diverted": 0.012,
        "insertion": "stages.1",
        "kept_parameters": 12345,
        "kept": 0.31,
        "restored": True,
    }
    return {"target_accuracy": 0.985, "clones": {"three": row, "five": {**row, "digits": [5, 6, 7, 8, 9]}}}


def as_rows(digits):
    return {tuple(image.flatten().tolist()) for image in digits.images}


@pytest.mark.parametrize("seed", [0, 1])
def test_digits_to_learn_and_digits_to_measure_on_are_different(seed):
    train, held_out = (Digits((5, 7), seed, train=train) for train in (True, False))
    assert len(train) + len(held_out) == 182 + 179  # scikit-learn's fives and sevens
    assert len(train) / (len(train) + len(held_out)) == pytest.approx(0.7, abs=0.01)
    assert not as_rows(train) & as_rows(held_out)


def test_digits_follow_their_seed():
    first, again, other = (Digits((5, 7), seed, train=False) for seed in (0, 0, 1))
    assert torch.equal(first.images, again.images)
    assert as_rows(first) != as_rows(other)


def test_digits_are_labelled_by_their_position_and_normalised():
    digits = Digits((7, 5), 0, train=True)
    assert set(digits.targets) == {0, 1}
    assert as_rows(Digits((7,), 0, train=True)) == as_rows(digits) - as_rows(Digits((5,), 1, train=True)) - {
        tuple(image.flatten().tolist()) for image, label in digits if label == 1
    }
    assert digits.images.shape[1:] == (1, 32, 32)
    assert digits.images.min() >= -1
    assert digits.images.max() <= 1


def test_augmentation_moves_a_digit_and_keeps_its_ink():
    digits = Digits((5,), 0, train=True, augment=True)
    views = [digits[0][0] for _ in range(8)]
    assert any(not torch.equal(view, views[0]) for view in views)
    assert all(torch.isclose(view.sum(), digits.images[0].sum(), atol=1e-2) for view in views)


def test_the_table_tells_the_result(report):
    text = table(report)
    assert "98.0 %" in text
    assert "91.5 %" in text
    assert "ConvNeXt + clone of 5, 7, 9" in text
    assert "clone-three: 12,345 parameters, 31% of the ResNet" in text
    assert "1.2 % of the old digits diverted" in text
    assert "exactly what it was" in text
    assert len({line.find("new digits") for line in text.splitlines()} - {-1}) == 1


def test_the_table_does_not_hide_a_target_that_was_changed(report):
    report["clones"]["five"]["restored"] = False
    assert "CHANGED" in table(report)


def test_the_figure_is_a_picture(report, tmp_path):
    demo._draw(report, tmp_path / "demo.png")
    with Image.open(tmp_path / "demo.png") as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 300
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 10
