"""Splits in three parts, and batches over both sides."""

import pytest
import torch
from accelerate import Accelerator
from torch.utils.data import TensorDataset

from pnc_hub.cloning.batches import Batches, Split
from pnc_hub.cloning.data import UNLABELLED, Images
from pnc_hub.errors import DataError
from pnc_hub.preprocess import Preprocess

PREPROCESS = Preprocess((1, 1, 1), (0.5,), (0.5,))
PARTS = ("fit", "choose", "calibrate", "report")


def numbered(*counts, first=0):
    """So many images of each class; the value of an image is its number."""
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    values = torch.arange(first, first + len(labels), dtype=torch.float32).reshape(-1, 1, 1, 1)
    return Images(TensorDataset(values, labels), PREPROCESS, {index: index for index in range(len(counts))})


def numbers(dataset):
    return [int(image) for image, _ in dataset]


def batches(cloned, target=None, batch_size=4, seed=0):
    return Batches(cloned, target, Accelerator(cpu=True), batch_size, 0, seed)


def test_parts_are_disjoint_and_complete():
    split = Split.of(numbered(20, 7, 4), seed=0)
    found = [numbers(getattr(split, part)) for part in PARTS]
    assert sorted(number for part in found for number in part) == list(range(31))


def test_every_class_is_split_in_the_same_proportions():
    split = Split.of(numbered(100, 40, 4), seed=0)
    for part, expected in zip(PARTS, ([70, 28, 1], *[[10, 4, 1]] * 3), strict=True):
        labels = torch.tensor([label for _, label in getattr(split, part)])
        assert labels.bincount().tolist() == expected


def test_the_seed_decides():
    dataset = numbered(30, 30)
    first, again, other = (Split.of(dataset, seed) for seed in (0, 0, 1))
    for part in PARTS:
        assert numbers(getattr(first, part)) == numbers(getattr(again, part))
        assert numbers(getattr(first, part)) != numbers(getattr(other, part))


def test_a_class_of_three_images_is_refused():
    with pytest.raises(DataError, match=r"class 1 has 3 images; 4 at least"):
        Split.of(numbered(9, 3), seed=0)


def test_no_images_at_all_are_refused():
    empty = Images(TensorDataset(torch.zeros(2, 1, 1, 1), torch.tensor([8, 9])), PREPROCESS, {0: 0})
    with pytest.raises(DataError, match="no images"):
        Split.of(empty, seed=0)


def test_mixed_batches_hold_both_sides_and_the_targets_are_unlabelled():
    cloned, target = Split.of(numbered(10, 10), 0), Split.of(numbered(10, 10, first=100), 0)
    loader = batches(cloned, target).mixed("fit")
    found = {int(image): int(label) for images, labels in loader for image, label in zip(images, labels, strict=True)}
    assert set(found) == {*numbers(cloned.fit), *numbers(target.fit)}
    assert all((label == UNLABELLED) == (number >= 100) for number, label in found.items())


def test_at_most_so_many_images_are_drawn_the_same_each_time():
    prepared = batches(Split.of(numbered(50, 50), 0))
    first, again = ([images.flatten().tolist() for images, _ in prepared.mixed("fit", most=10)] for _ in range(2))
    assert sum(map(len, first)) == 10
    assert first == again


def test_shuffling_follows_the_seed_and_loses_nothing():
    cloned = Split.of(numbered(20, 20), 0)
    orders = [
        torch.cat([images.flatten() for images, _ in batches(cloned, seed=seed).mixed("fit", shuffle=True)]).tolist()
        for seed in (0, 0, 1)
    ]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]
    assert [sorted(order) for order in orders] == [numbers(cloned.fit)] * 3


def test_images_of_the_report_are_not_counted_as_used():
    cloned, target = Split.of(numbered(20), 0), Split.of(numbered(40), 0)
    assert batches(cloned).used == 18
    assert batches(cloned, target).used == 18 + 36
