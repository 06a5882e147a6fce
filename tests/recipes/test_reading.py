"""Data sets read into tensors, pixel for pixel."""

import made_up
import numpy as np
import pytest
import torch
from made_up import raw, tensor_images

from recipes.frame import reading

RNG = np.random.RandomState(0)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_sprites_give_every_pixel(tmp_path, name):
    expected = {}
    for file in {"cifar10": ("train_half", "test"), "cifar100": ("train", "test")}[name]:
        tiles = RNG.randint(0, 256, (1000, 32, 32, 3)).astype(np.uint8)
        labels = np.sort(RNG.randint(0, 3, 1000))
        expected[file] = tiles, labels
        made_up.sprites(tmp_path / f"{name}_{file}.zip", tiles, labels, ["ant", "bee", "wasp"])
    for found, (tiles, labels) in zip(getattr(reading, name)(tmp_path), expected.values(), strict=True):
        assert found.images.dtype == torch.uint8
        assert np.array_equal(found.images.permute(0, 2, 3, 1).numpy(), tiles)
        assert found.labels.tolist() == labels.tolist()
        assert found.classes == ["ant", "bee", "wasp"]


def test_photos_are_labelled_by_folder_and_grey_ones_have_three_channels(tmp_path):
    kinds = [("train", "n02"), ("train", "n01"), ("test", "n02"), ("test", "n01"), ("test", "n01")]
    grey = [np.full((16, 16), 40 * place, np.uint8) for place in range(len(kinds))]
    photos = [(*kind, pixels) for kind, pixels in zip(kinds, grey, strict=True)]
    made_up.photo_zip(tmp_path / "photos20_224.zip", photos)
    train, test = reading.photos(tmp_path)
    assert train.classes == test.classes == ["n01", "n02"]
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 1], [0, 0, 1])
    assert test.images.shape == (3, 3, 16, 16)
    assert test.images.float().mean((1, 2, 3)).round().tolist() == [120, 160, 80]


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_idx_files_are_padded_to_32_pixels(tmp_path, ending):
    pixels = RNG.randint(0, 256, (5, 28, 28))
    for split in ("train", "t10k"):
        made_up.idx(tmp_path / f"{split}-images-idx3-ubyte{ending}", pixels, packed=bool(ending))
        made_up.idx(tmp_path / f"{split}-labels-idx1-ubyte{ending}", np.arange(5), packed=bool(ending))
    train, test = reading.mnist(tmp_path)
    assert train.images.shape == (5, 1, 32, 32)
    assert np.array_equal(test.images[:, 0, 2:30, 2:30].numpy(), pixels)
    assert test.images.sum() == pixels.sum()
    assert train.labels.tolist() == [0, 1, 2, 3, 4]


def test_another_file_under_the_name_of_an_idx_file_is_refused(tmp_path):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(b"<html>not found</html>")
    with pytest.raises(reading.MissingDataError, match="no idx file"):
        reading.mnist(tmp_path)


@pytest.mark.parametrize("reader", [reading.cifar10, reading.cifar100, reading.photos, reading.mnist])
def test_missing_files_are_named(tmp_path, reader):
    with pytest.raises(reading.MissingDataError, match=r"has no .*--data"):
        reader(tmp_path)


def test_images_are_normalised_when_read():
    stored = raw()
    images = reading.TensorImages.of(stored, (0.5, 0.25, 0.0), (0.5, 1.0, 2.0))
    expected = (stored.images[3].float() / 255 - torch.tensor([0.5, 0.25, 0.0])[:, None, None]) / torch.tensor(
        [0.5, 1.0, 2.0]
    )[:, None, None]
    torch.testing.assert_close(images[3][0], expected)
    assert images[3][1] == 3
    batch, labels = images.batch([5, 3])
    torch.testing.assert_close(batch[1], expected)
    assert labels.tolist() == [1, 3]


def test_subsets_keep_images_and_labels_together():
    images = tensor_images()
    some = images.of_classes([3, 1])
    assert sorted(set(some.targets)) == [0, 1]
    assert len(some) == 24
    for place in (0, 7, 23):
        original = next(i for i in range(48) if torch.equal(images[i][0], some[place][0]))
        assert images.targets[original] == [3, 1][some.targets[place]]
    assert set(images.relabelled(-1).targets) == {-1}
    few = images.few(5, seed=1)
    assert [few.targets.count(label) for label in range(4)] == [5] * 4
    assert few.digest() == images.few(5, seed=1).digest() != images.few(5, seed=2).digest()
    both = reading.joined(few, some)
    assert both.targets == few.targets + some.targets
    assert torch.equal(both[21][0], some[1][0])


def test_digest_changes_with_labels_and_pixels():
    images = tensor_images()
    digests = {images.digest(), images.relabelled(0).digest(), tensor_images(seed=1).digest()}
    assert len(digests) == 3
