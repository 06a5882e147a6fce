"""Images from folders, tar files, torch datasets and timm's data sets; classes by mapping, name and index."""

import io
import json
import sys
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import ImageDataset, IterableImageDataset
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from pnc_hub.cloning.images.data import UNLABELLED, Images, class_names, open_dataset
from pnc_hub.errors import DataError, ImageError
from pnc_hub.models.preprocess import Preprocess

NAMES = ["ant", "bee", "cat", "dog", "elk", "fox", "gnu"]
COLOUR = Preprocess((3, 32, 32), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), crop_pct=1.0)
GREY = Preprocess((1, 32, 32), (0.5,), (0.25,), crop_pct=1.0)


class Listed(Dataset):
    """(item, label) pairs as given."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


class Stream(IterableDataset):
    """The same items, one after the other."""

    def __init__(self, items):
        self.items = items

    def __iter__(self):
        return iter(self.items)


def picture(level, side=40, mode="RGB"):
    return Image.new("L", (side, side), level).convert(mode)


def folder(root, **images_of_class):
    for name, count in images_of_class.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            picture(40 * number).save(root / name / f"{number}.png")
    return root


def png(level, mode="RGB"):
    buffer = io.BytesIO()
    picture(level, mode=mode).save(buffer, "PNG")
    return buffer.getvalue()


def tar(path, files):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def level(image):
    """Grey level of an image that ``COLOUR`` has transformed."""
    return round(float(image[0, 0, 0] * 0.25 + 0.5) * 255)


def test_a_folder_of_class_folders_is_read(tmp_path):
    opened = open_dataset(folder(tmp_path / "photos", cat=2, dog=3))
    assert class_names(opened) == ["cat", "dog"]
    images = Images(opened, COLOUR, {0: 1, 1: 0})
    assert images.labels == [1, 1, 0, 0, 0]
    image, label = images[1]
    assert label == 1
    assert image.shape == (3, 32, 32)
    assert torch.allclose(image, torch.full_like(image, (40 / 255 - 0.5) / 0.25), atol=1e-5)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("preprocess", [COLOUR, GREY])
def test_a_tar_file_of_class_folders_is_read(tmp_path, mode, preprocess):
    files = {f"{name}/{number}.png": png(40 * number, mode) for name in ("dog", "cat") for number in range(3)}
    opened = open_dataset(tar(tmp_path / "photos.tar", files))
    assert class_names(opened) == ["cat", "dog"]
    images = Images(opened, preprocess, {0: 1, 1: 0})
    assert images.labels == [1, 1, 1, 0, 0, 0]
    assert images[2][0].shape == preprocess.input_size
    assert level(images[2][0]) == 80


def test_a_folder_of_tar_files_one_per_class_is_read_and_nothing_is_written_there(tmp_path):
    for name, first in (("cat", 0), ("dog", 100)):
        tar(tmp_path / "photos" / f"{name}.tar", {f"{number}.png": png(first + number) for number in range(3)})
    opened = open_dataset(tmp_path / "photos")
    assert class_names(opened) == ["cat", "dog"]
    images = Images(opened, COLOUR, {0: 0, 1: 1})
    assert sorted((label, level(image)) for image, label in images) == [
        *((0, n) for n in range(3)),
        *((1, 100 + n) for n in range(3)),
    ]
    assert sorted(path.name for path in (tmp_path / "photos").iterdir()) == ["cat.tar", "dog.tar"]


def test_datasets_of_timm_are_taken_with_their_own_labels(tmp_path):
    shifted = ImageDataset(str(folder(tmp_path / "photos", cat=2, dog=3)), target_transform=lambda label: label + 4)
    assert open_dataset(shifted) is shifted
    assert Images(shifted, COLOUR, {4: 0, 5: 1}).labels == [0, 0, 1, 1, 1]


@pytest.mark.parametrize("described", [True, False])
def test_a_webdataset_is_sampled(tmp_path, described):
    pytest.importorskip("webdataset")
    names = [f"shard-{shard:02d}.tar" for shard in range(2)]
    for shard, name in enumerate(names):
        pairs = {f"{n:03d}": {"png": png(100 * shard + n), "cls": str(n % 3).encode()} for n in range(6)}
        tar(tmp_path / name, {f"{key}.{end}": content for key, pair in pairs.items() for end, content in pair.items()})
    train = {"name": "train", "num_samples": 12, "filenames": names, "shard_lengths": [6, 6]}
    if described:
        (tmp_path / "info.json").write_text(json.dumps({"splits": {"train": train}}))
    opened = open_dataset(f"wds/{tmp_path}" + ("" if described else "/shard-{00..01}.tar"))
    assert class_names(opened) is None
    images = Images(opened, COLOUR, {0: 0, 2: 1})
    expected = [
        (position, 100 * shard + n)
        for position, label in ((0, 0), (1, 2))
        for shard in (0, 1)
        for n in (label, label + 3)
    ]
    assert [(label, level(image)) for image, label in images] == expected


@pytest.mark.parametrize("kind", ["hfds", "hfids"])
def test_hugging_face_datasets_are_read(tmp_path, kind, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder(tmp_path / "photos" / "train", cat=2, dog=3)
    opened = open_dataset(f"{kind}/{tmp_path}/photos")
    assert class_names(opened) == ["cat", "dog"]
    monkeypatch.setattr(Image, "open", None)  # labels are read without images
    images = Images(opened, COLOUR, {0: 1, 1: 0})
    assert images.labels == [1, 1, 0, 0, 0]
    monkeypatch.undo()
    assert [level(image) for image, _ in images] == [0, 40, 0, 40, 80]


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("hfds/user/name", "datasets"),
        ("hfids/user/name", "datasets"),
        ("wds/photos", "webdataset"),
        ("tfds/mnist", "tensorflow"),
    ],
)
def test_a_package_that_is_missing_is_named(monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DataError, match=f"pip install .*{package}"):
        open_dataset(name)


def test_a_stream_is_sampled_by_the_seed_and_names_its_classes():
    stream = Stream([(picture(number % 250), number % 2) for number in range(1200)])
    stream.classes = ["cat", "dog"]
    first, again, other = (open_dataset(stream, seed) for seed in (0, 0, 1))
    assert class_names(first) == ["cat", "dog"]
    levels = [
        [image.getpixel((0, 0)) for image, _ in (dataset[index] for index in range(1000))]
        for dataset in (first, again, other)
    ]
    assert levels[0] == levels[1] != levels[2]
    assert len(first) == len(Images(first, COLOUR, {0: 0, 1: 1})) == 1000


def test_each_of_several_processes_reads_the_whole_stream():
    class Sharded:
        dist_rank, dist_num_replicas, global_num_workers = 1, 2, 2

        def __iter__(self):
            return iter([(picture(n), 0) for n in range(self.dist_rank, 10, self.dist_num_replicas)])

    opened = open_dataset(IterableImageDataset("", reader=Sharded()))
    assert [opened[index][0].getpixel((0, 0))[0] for index in range(len(opened))] == list(range(10))


@pytest.mark.parametrize(
    ("items", "found"), [([3], "received a int"), ([("a.png", 0)], "found str"), ([(picture(0), "cat")], "cat")]
)
def test_a_stream_of_something_else_is_refused(items, found):
    with pytest.raises((DataError, ImageError), match=found):
        open_dataset(Stream(items))


@pytest.mark.parametrize("data", ["no/such/folder", 7, None])
def test_what_is_no_dataset_is_refused_with_the_forms_that_are_taken(data):
    with pytest.raises(DataError, match="folder") as caught:
        open_dataset(data)
    assert "timm.data.create_dataset" in str(caught.value)


def test_a_reader_that_fails_says_so():
    with pytest.raises(DataError, match="no images could be read from 'torch/nosuchset'"):
        open_dataset("torch/nosuchset")


def test_a_torch_dataset_is_taken_as_it_is():
    dataset = TensorDataset(torch.zeros(2, 3, 32, 32), torch.tensor([0, 1]))
    assert open_dataset(dataset) is dataset


@pytest.mark.parametrize(("mode", "preprocess"), [("RGB", COLOUR), ("L", COLOUR), ("RGBA", COLOUR), ("RGB", GREY)])
def test_pictures_of_any_mode_become_what_the_target_takes(mode, preprocess):
    image, _ = Images(Listed([(picture(200, mode=mode), 0)]), preprocess, {0: 0})[0]
    assert tuple(image.shape) == preprocess.input_size
    assert torch.allclose(image, torch.full_like(image, (200 / 255 - 0.5) / 0.25), atol=1e-5)


def test_tensors_are_the_targets_inputs_already():
    inputs = torch.randn(2, 3, 32, 32)
    images = Images(TensorDataset(inputs, torch.tensor([5, 4])), COLOUR, {4: 0, 5: 1})
    assert torch.equal(images[0][0], inputs[0])
    assert images.labels == [1, 0]


@pytest.mark.parametrize(
    "wrong",
    [torch.zeros(3, 31, 32), torch.zeros(1, 32, 32), torch.zeros(3, 32, 32, dtype=torch.uint8), "a.png", np.zeros(3)],
    ids=["size", "channels", "uint8", "a path", "an array"],
)
def test_what_is_no_image_for_the_target_is_refused(wrong):
    with pytest.raises(ImageError, match="tensor"):
        Images(Listed([(wrong, 0)]), COLOUR, {0: 0})[0]


@pytest.mark.parametrize("with_targets", [True, False])
def test_images_of_other_classes_are_left_out(with_targets):
    dataset = Listed([(torch.full((3, 32, 32), float(label)), label) for label in (3, 1, 3, 2)])
    if with_targets:
        dataset.targets = torch.tensor([3, 1, 3, 2])
    images = Images(dataset, COLOUR, {3: 0, 2: 1})
    assert len(images) == 3
    assert [(float(image[0, 0, 0]), label) for image, label in images] == [(3.0, 0), (3.0, 0), (2.0, 1)]


def test_unlabelled_images_need_no_labels():
    images = Images(Listed([torch.zeros(3, 32, 32), torch.ones(3, 32, 32)]), COLOUR, None)
    assert images.labels == [UNLABELLED, UNLABELLED]
    assert torch.equal(images[1][0], torch.ones(3, 32, 32))


def test_files_that_are_no_photos_are_left_out_and_take_no_others_place(tmp_path):
    root = folder(tmp_path / "photos", cat=2, dog=2)
    (root / "cat" / "zzz.jpg").write_text("no photo")
    opened = open_dataset(str(root))
    with pytest.warns(UserWarning, match=r"1 of 5 photos cannot be read and are left out: '.*zzz\.jpg'$"):
        shown = Images(opened, COLOUR, {0: 0, 1: 1})
    assert shown.labels == [0, 0, 1, 1]
    levels = [round(float(image.mean() * 0.25 + 0.5) * 255) for image, _ in shown]
    assert levels == [0, 40, 0, 40]


def test_a_photo_that_ends_early_is_named(tmp_path):
    root = folder(tmp_path / "photos", cat=2)
    path = sorted((root / "cat").iterdir())[0]
    path.write_bytes(path.read_bytes()[:45])
    with pytest.raises(DataError, match=f"{path.name}.*mend it or take it out"):
        Images(open_dataset(str(root)), COLOUR, {0: 0})[0]
