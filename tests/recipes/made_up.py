"""Made-up data and weights in the forms that the recipes read, for tests and for ``.ci/recipes``."""

import gzip
import io
import zipfile
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from timm.data import ImageNetInfo

from recipes.frame.reading import CIFAR_MEAN, CIFAR_STD, Raw, TensorImages
from recipes.method.real import IMAGENETTE

BREEDS = range(151, 161)
NETWORKS = {"in1k_tf1": 1000, "in1k_tf2": 1000, "inat_bird": 964}  # and how many classes they have
BIRDS = [f"Avis fictiva{number} (Made-up Bird {number})" for number in range(963)]


def sprites(path: Path, images: np.ndarray, labels: np.ndarray, classes: list[str]) -> None:
    """A data set of tiles [N, 32, 32, 3], 25 in a row of a sprite and 500 to each."""
    with zipfile.ZipFile(path, "w") as archive:
        for number, start in reversed(list(enumerate(range(0, len(images), 500)))):
            tiles = images[start : start + 500]
            filled = np.zeros((25 * -(-len(tiles) // 25), 32, 32, 3), np.uint8)
            filled[: len(tiles)] = tiles
            rows = filled.reshape(-1, 25, 32, 32, 3).transpose(0, 2, 1, 3, 4)
            archive.writestr(f"{number:03}.webp", encoded(rows.reshape(-1, 800, 3), "WEBP", lossless=True))
        content = io.BytesIO()
        np.save(content, labels.astype(np.uint8))
        archive.writestr("labels.npy", content.getvalue())
        archive.writestr("classes.txt", "\n".join(classes) + "\n")


def idx(path: Path, values: np.ndarray, packed: bool = False) -> None:
    """An idx file of unsigned bytes."""
    head = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
    content = head + values.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if packed else content)


def photo_zip(path: Path, photos: list[tuple[str, str, np.ndarray]]) -> None:
    """Photos of (split, WordNet id, pixels)."""
    with zipfile.ZipFile(path, "w") as archive:
        for place, (split, wnid, pixels) in enumerate(photos):
            archive.writestr(f"{split}/{wnid}/{place}.JPEG", encoded(pixels, "JPEG", quality=100))


def painted(folder: Path, classes: list[str], each: int = 12, seed: int = 0, side: int = 40) -> Path:
    """Pictures in a folder for each class: squares of its own colours, with noise."""
    for place, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for number, pixels in enumerate(squares(1000 * seed + place, each, side)):
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def squares(seed: int, count: int, side: int) -> np.ndarray:
    """Images [count, side, side, 3] of one class: sixteen squares in its colours, with noise."""
    rng = np.random.RandomState(seed)
    colours = rng.randint(0, 256, (4, 4, 3)).repeat(side // 4, 0).repeat(side // 4, 1)
    return (colours + rng.randint(-30, 31, (count, side, side, 3))).clip(0, 255).astype(np.uint8)


def encoded(pixels: np.ndarray, kind: str, **options: object) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, kind, **options)
    return content.getvalue()


def eight_bit(path: Path, num_classes: int, seed: int = 0) -> None:
    """A MobileNetV2 with random weights, as ``networks.mobilenetv2_q8`` reads it."""
    rng, stored = np.random.RandomState(seed), {}
    for name, value in timm.create_model("mobilenetv2_100", num_classes=num_classes).state_dict().items():
        if name.endswith("weight") and (value.dim() == 4 or name.startswith("classifier")):
            fan_in = value[0].numel()
            stored[f"{name}.q"] = rng.randint(0, 256, value.shape).astype(np.uint8)
            stored[f"{name}.zero"] = np.full(len(value), 128)
            stored[f"{name}.scale"] = np.full(len(value), (2 / fan_in) ** 0.5 / 74, np.float32)
        elif name.endswith("bias"):
            stored[name] = 0.1 * rng.randn(*value.shape).astype(np.float32)
    np.savez(path, **stored)


def folder(path: Path, each: int = 6, photos: int = 21, side: int = 64) -> Path:
    """All that ``--data`` may hold: small data sets of squares in colours, and networks that were never trained."""
    (path / "weights").mkdir(parents=True)
    for name, count, splits in (("cifar10", 10, ("train_half", "test")), ("cifar100", 100, ("train", "test"))):
        classes = [f"class {label}" for label in range(count)]
        classes[2] = "bird"
        for split in splits:
            images = np.concatenate([squares(label, each, 32) for label in range(count)])
            sprites(path / f"{name}_{split}.zip", images, np.arange(count).repeat(each), classes)
    for split in ("train", "t10k"):
        grey = np.concatenate([squares(label, each, 28)[..., 0] for label in range(10)])
        idx(path / f"{split}-images-idx3-ubyte", grey)
        idx(path / f"{split}-labels-idx1-ubyte", np.arange(10).repeat(each))
    wnids = ImageNetInfo("imagenet-1k").label_names()
    shown = [*sorted(IMAGENETTE), *(wnids[index] for index in BREEDS)]
    photo_zip(
        path / "photos20_224.zip",
        [
            (split, wnid, pixels)
            for split, count in (("train", photos), ("test", -(-photos // 5)))
            for label, wnid in enumerate(shown)
            for pixels in squares(label, count, side)
        ],
    )
    for place, (name, count) in enumerate(NETWORKS.items()):
        eight_bit(path / "weights" / f"mobilenetv2_100_{name}_q8.npz", count, place)
    (path / "weights" / "inat_bird_labels.txt").write_text("\n".join([*BIRDS, "background"]) + "\n")
    return path


def raw(classes: int = 4, each: int = 12, seed: int = 0) -> Raw:
    """Random images whose mean tells their class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat(each)
    noise = torch.randint(0, 60, (len(labels), 3, 32, 32), generator=generator)
    images = (noise + 40 * labels[:, None, None, None]).to(torch.uint8)
    return Raw(images, labels, [f"class {label}" for label in range(classes)])


def tensor_images(**arguments: int) -> TensorImages:
    """The same, normalised."""
    return TensorImages.of(raw(**arguments), CIFAR_MEAN, CIFAR_STD)
