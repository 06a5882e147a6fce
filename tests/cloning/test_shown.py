"""Images are decoded once and asked of a network once, and nothing that comes out of it differs."""

import math
import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from common import images, tiny_model
from PIL import Image
from torch.testing import assert_close
from torch.utils.data import DataLoader, Dataset, TensorDataset

from pnc_hub.cloning.images.batches import Batches, Pixels, Split, _Entries, _together
from pnc_hub.cloning.images.data import Images
from pnc_hub.cloning.images.kept import PICTURE, Kept
from pnc_hub.cloning.images.shown import PIXELS, Remembered, Shown
from pnc_hub.cloning.networks import Networks, Reader
from pnc_hub.models.insertion import INPUT
from pnc_hub.models.preprocess import Preprocess

CPU = torch.device("cpu")
PREPROCESS = Preprocess((3, 32, 32), (0.4, 0.5, 0.6), (0.2, 0.3, 0.25))


class Photos(Dataset):
    """Pictures of noise of a size that has to be brought to the target's; counts in a file how often each was decoded."""

    def __init__(self, count, log, seed=0):
        self.pixels = np.random.default_rng(seed).integers(0, 256, (count, 48, 40, 3), np.uint8)
        self.targets, self.log = [index % 2 for index in range(count)], log

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        with self.log.open("a") as log:  # of every process
            log.write(f"{index}\n")
        return Image.fromarray(self.pixels[index]), self.targets[index]

    def decoded(self):
        return Counter(map(int, self.log.read_text().split()))


@pytest.fixture
def photos(tmp_path):
    return Photos(24, tmp_path / "log")


def labelled(dataset, preprocess=PREPROCESS):
    return Images(dataset, preprocess, {0: 0, 1: 1})


def batches(dataset, workers=0, kept=None):
    split = Split.of(labelled(dataset), 0)
    return Batches(split, None, Accelerator(cpu=True), 5, workers, 0, kept=kept or Kept())


def shown(dataset, kept=None):
    return Shown([(dataset, position) for position in range(len(dataset))], kept or Kept(), CPU)


KEPT = {"memory": {}, "file": {"memory": 0}, "nowhere": {"memory": 0, "disk": 0}}


@pytest.mark.parametrize("place", KEPT)
def test_pixels_are_those_of_the_data_set(photos, place):
    dataset = labelled(photos)
    some = shown(dataset, Kept(**KEPT[place]))
    expected = torch.stack([image for image, _ in dataset])
    for _ in range(2):
        assert torch.equal(some.pixels(), expected)
    assert torch.equal(some.pixels([3, 1]), expected[[3, 1]])
    assert torch.equal(some.through(lambda pixels: 2 * pixels).pixels([0]), 2 * expected[:1])
    assert torch.equal(some.pixels([0]), expected[:1])


def test_pictures_are_kept_as_bytes_and_tensors_as_they_are(photos):
    pictures, tensors = shown(labelled(photos)), shown(labelled(TensorDataset(images(2), torch.tensor([0, 1]))))
    for some, dtype in ((pictures, torch.uint8), (tensors, torch.float32)):
        some.pixels()
        assert some.kept.get(PICTURE, some.keys[0]).dtype == dtype
    assert torch.equal(tensors.pixels(), images(2))


@pytest.mark.parametrize("workers", [0, 1])
def test_each_image_is_decoded_once_in_several_passes(photos, workers):
    prepared, reader = batches(photos, workers), Reader(tiny_model("resnet"), CPU)
    for _ in range(2):
        for part in ("fit", "choose", "calibrate", "report"):
            for batch, _ in prepared.mixed(part, shuffle=part == "fit"):
                batch.pixels()
            for batch, _ in prepared.mixed(part):
                reader(batch, ["layer2.0"])
            for _ in Pixels(prepared.sides(part, 100)[0]):
                pass
    assert photos.decoded() == dict.fromkeys(range(24), 1)


@pytest.mark.parametrize("workers", [0, 1])
def test_where_nothing_can_be_kept_a_batch_is_decoded_once_for_both_networks(photos, workers):
    prepared = batches(photos, workers, Kept(memory=0, disk=0))
    networks = Networks(tiny_model("resnet"), tiny_model("convnext"), [1], CPU)
    for batch, _ in prepared.mixed("fit"):
        networks.target(batch)
        networks.teach(batch)
    assert photos.decoded() == dict.fromkeys(prepared.cloned.fit.indices, 1)


def test_images_of_which_all_is_known_are_not_even_decoded(photos):
    prepared, reader = batches(photos, kept=Kept()), Reader(tiny_model("resnet"), CPU)
    for batch, _ in prepared.mixed("choose"):
        reader(batch)
    before = photos.decoded()
    prepared.kept._rows = {key: row for key, row in prepared.kept._rows.items() if key[0] != PICTURE}
    for batch, _ in prepared.mixed("choose"):
        reader(batch)
    assert photos.decoded() == before


def test_images_of_two_data_sets_are_not_confused(tmp_path):
    first, second = (labelled(Photos(4, tmp_path / "log", seed)) for seed in (0, 1))
    kept, reader = Kept(), Reader(tiny_model("resnet"), CPU)
    for _ in range(2):
        for dataset in (first, second):
            some, expected = shown(dataset, kept), torch.stack([image for image, _ in dataset])
            assert torch.equal(some.pixels(), expected)
            assert_close(reader(some)[0], reader(expected)[0])


def test_a_data_set_that_came_where_another_was_is_another():
    """What an object's id would not tell."""
    keys = {labelled(TensorDataset(images(2), torch.tensor([0, 1]))).key(0) for _ in range(20)}
    assert len(keys) == 20


def test_some_of_a_data_set_have_the_keys_that_they_had(photos):
    dataset = labelled(photos)
    some = dataset.only([5, 2])
    assert [some.key(0), some.key(1)] == [dataset.key(5), dataset.key(2)]
    assert some.labels == [dataset.labels[5], dataset.labels[2]]


@pytest.mark.parametrize("sent", [lambda entries: entries, lambda entries: pickle.loads(pickle.dumps(entries))])
def test_keys_are_the_same_in_a_process_that_loads_images(photos, sent):
    prepared = batches(photos)
    fit = prepared.cloned.fit
    entries = _Entries([(fit, position) for position in range(len(fit))], prepared.kept)
    shown(fit.only(range(len(fit) - 2)), prepared.kept).pixels()
    for context in ("fork", "spawn"):
        loader = DataLoader(sent(entries), 4, num_workers=1, multiprocessing_context=context, collate_fn=_together)
        read = [picture for _, _, pictures in loader for picture in pictures]
        # only those that are not kept
        assert [picture is None for picture in read] == [True] * (len(fit) - 2) + [False] * 2


def test_batches_are_as_small_as_memory_likes():
    preprocess = Preprocess((3, 448, 448), (0.5,) * 3, (0.5,) * 3)
    split = Split(*[Images([None] * 10, preprocess, None)] * 4)
    prepared = Batches(split, None, Accelerator(cpu=True), 64, 0, 0)
    sizes = [len(batch) for batch, _ in prepared.mixed("fit")]
    assert sizes == [PIXELS // 448**2] * 10
    assert [len(batch) for batch, _ in prepared.mixed("fit", shuffle=True)] == [10]


class Counted:
    """A function of images that counts of how many it was asked, and by what names."""

    def __init__(self, change=lambda rows: rows):
        self.asked, self.change = [], change

    def __call__(self, pixels, names):
        self.asked.append((len(pixels), set(names)))
        return {name: self.change(pixels * (1 + len(name))) for name in names}


@pytest.mark.parametrize("place", KEPT)
def test_what_is_remembered_is_what_would_be_computed(photos, place):
    some, compute = shown(labelled(photos), Kept(**KEPT[place])), Counted()
    remembered = Remembered(compute, exact=("exact",))
    expected = Counted()(some.pixels(), ["exact", "half"])
    for _ in range(3):
        found = remembered(some, ["exact", "half"])
        assert torch.equal(found["exact"], expected["exact"])
        assert_close(found["half"], expected["half"], rtol=2**-11, atol=2**-24)
        assert {rows.dtype for rows in found.values()} == {torch.float32}
        found["half"].zero_()  # it is the caller's
    assert len(compute.asked) == (3 if place == "nowhere" else 1)


def test_only_what_is_missing_is_computed(photos):
    dataset, kept, compute = labelled(photos), Kept(), Counted()
    remembered = Remembered(compute)
    remembered(shown(dataset.only(range(4)), kept), ["a"])
    remembered(shown(dataset.only(range(6)), kept), ["a"])
    remembered(shown(dataset.only(range(6)), kept), ["a", "b"])
    remembered(shown(dataset.only([5, 0]), kept), ["b", "a"])
    assert compute.asked == [(4, {"a"}), (2, {"a"}), (6, {"b"})]


def test_nothing_is_kept_of_images_that_come_as_pixels():
    compute = Counted()
    remembered = Remembered(compute)
    for _ in range(2):
        assert torch.equal(remembered(images(2), ["a"])["a"], 2 * images(2))
    assert len(compute.asked) == 2


@pytest.mark.parametrize("value", [1e5, -3e38, math.nan, math.inf, -math.inf])
def test_what_half_precision_cannot_hold_is_kept_as_it_is(photos, value):
    dataset, kept = labelled(photos), Kept()

    def change(rows):
        rows = rows.clone()
        rows[0, 0, 0, 0] = value
        return rows

    remembered = Remembered(Counted(change))
    computed, again = (remembered(shown(dataset.only([0, 1]), kept), ["a"])["a"] for _ in range(2))
    assert torch.equal(computed.nan_to_num(7.0), again.nan_to_num(7.0))
    assert torch.equal(computed.isnan(), again.isnan())
    # beside images that are kept in half precision
    remembered(shown(dataset.only([2, 3]), kept), ["a"])
    some = remembered(shown(dataset.only([3, 0]), kept), ["a"])["a"]
    found = float(some[1, 0, 0, 0])
    assert math.isnan(found) if math.isnan(value) else found == float(torch.tensor(value))


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.enable_grad])
def test_what_was_kept_in_one_mode_can_be_learned_from_in_another(photos, mode):
    dataset, kept, reader = labelled(photos), Kept(), Reader(tiny_model("resnet"), CPU)
    with mode():
        reader(shown(dataset, kept), ["layer2.0"])
    weight = torch.ones((), requires_grad=True)
    feature, pixels = reader.feature(shown(dataset, kept), "layer2.0"), shown(dataset, kept).pixels()
    assert not feature.requires_grad
    ((feature * weight).sum() + (pixels * weight).sum()).backward()
    assert weight.grad is not None


def test_both_networks_say_of_kept_images_what_they_say_of_pixels(photos):
    networks = Networks(tiny_model("resnet"), tiny_model("convnext"), [1, 3], CPU)
    some = shown(labelled(photos, networks.target.preprocess))
    pixels = some.pixels()
    expected, output = networks.teach(pixels, ["layer2.0"]), networks.target(pixels, ["stages.1", INPUT])
    for _ in range(2):
        lesson, (logits, read) = networks.teach(some, ["layer2.0"]), networks.target(some, ["stages.1", INPUT])
        for name in ("cloned", "rejected", "penultimate"):
            assert_close(getattr(lesson, name), getattr(expected, name))
        assert_close(lesson.features["layer2.0"], expected.features["layer2.0"], rtol=1e-3, atol=1e-4)
        assert_close(logits, output[0])
        assert_close(read["stages.1"], output[1]["stages.1"], rtol=1e-3, atol=1e-4)
        assert torch.equal(read[INPUT], pixels)
