"""Splits in four parts, batches over both sides, and their shares of several processes."""

import math

import pytest
import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import TensorDataset

from pnc_hub.cloning.images.batches import Batches, Pixels, Split
from pnc_hub.cloning.images.data import UNLABELLED, Images
from pnc_hub.errors import DataError
from pnc_hub.models.preprocess import Preprocess

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


@pytest.mark.parametrize(("held_out", "expected"), [(0.05, 5), (0.2, 20), (0.3, 30), (0.001, 1)])
def test_the_share_that_is_kept_back(held_out, expected):
    split = Split.of(numbered(100), 0, held_out)
    assert [len(getattr(split, part)) for part in PARTS] == [100 - 3 * expected, *[expected] * 3]


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
    loader = Pixels(batches(cloned, target).mixed("fit"))
    found = {int(image): int(label) for images, labels in loader for image, label in zip(images, labels, strict=True)}
    assert set(found) == {*numbers(cloned.fit), *numbers(target.fit)}
    assert all((label == UNLABELLED) == (number >= 100) for number, label in found.items())


def test_at_most_so_many_images_are_drawn_the_same_each_time():
    prepared = batches(Split.of(numbered(50, 50), 0))
    first, again = (
        [images.flatten().tolist() for images, _ in Pixels(prepared.mixed("fit", most=10))] for _ in range(2)
    )
    assert sum(map(len, first)) == 10
    assert first == again


def test_shuffling_follows_the_seed_and_loses_nothing():
    cloned = Split.of(numbered(20, 20), 0)
    orders = [
        torch.cat(
            [images.flatten() for images, _ in Pixels(batches(cloned, seed=seed).mixed("fit", shuffle=True))]
        ).tolist()
        for seed in (0, 0, 1)
    ]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]
    assert [sorted(order) for order in orders] == [numbers(cloned.fit)] * 3


def test_images_of_the_report_are_not_counted_as_used():
    cloned, target = Split.of(numbered(20), 0), Split.of(numbered(40), 0)
    assert batches(cloned).used == 18
    assert batches(cloned, target).used == 18 + 36


def test_each_side_gives_at_most_so_many_images():
    cloned, target = Split.of(numbered(10, 10), 0), Split.of(numbered(400, first=100), 0)
    found = [int(image) for images, _ in Pixels(batches(cloned, target).mixed("fit", each=8)) for image in images]
    assert sum(number >= 100 for number in found) == 8
    assert sum(number < 100 for number in found) == 8


class Share(Accelerator):
    """Stands for one of several processes, as far as loaders are concerned."""

    def __init__(self, process, processes):
        super().__init__(cpu=True)
        self.share = processes, process

    num_processes = property(lambda self: self.share[0])

    def prepare(self, loader):
        return prepare_data_loader(loader, self.device, *self.share, put_on_device=True, even_batches=False)


def shares(processes, images, batch_size, **options):
    """The batches of each process, as lists of numbers."""
    split = Split(*[numbered(images)] * 4)
    return [
        [
            batch.pixels().flatten().int().tolist()
            for batch, _ in Batches(split, None, accelerator, batch_size, 0, 0).mixed("fit", **options)
        ]
        for accelerator in (Share(process, processes) for process in range(processes))
    ]


@pytest.mark.parametrize("images", [1, 3, 4, 5, 9, 12, 13, 17])
@pytest.mark.parametrize("processes", [2, 3])
def test_process_p_of_n_reads_the_batches_p_p_plus_n_and_so_on(processes, images):
    (everything,) = shares(1, images, 4)
    assert shares(processes, images, 4) == [everything[process::processes] for process in range(processes)]
    assert shares(processes, images, 4, whole=True) == [everything] * processes


@pytest.mark.parametrize("images", [5, 13, 16, 17, 31, 70])
@pytest.mark.parametrize("processes", [2, 3])
def test_shuffled_batches_are_as_many_in_every_process_and_a_step_sees_as_many_images(processes, images):
    (alone,) = shares(1, images, 16, shuffle=True)
    found = shares(processes, images, 16, shuffle=True)
    assert len({len(batches) for batches in found}) == 1
    read = [number for batches in found for batch in batches for number in batch]
    assert len(set(read)) == len(read) > images - processes * math.ceil(images / 16)
    assert all(sum(map(len, step)) <= 16 for step in zip(*found, strict=True))
    assert len(alone) <= len(found[0]) <= len(alone) + 1
