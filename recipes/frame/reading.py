"""The data sets of the benchmarks, read from a folder into tensors.

The folder holds ``cifar10_train_half.zip``, ``cifar10_test.zip``, ``cifar100_train.zip``, ``cifar100_test.zip`` (sprites of
tiles, ``labels.npy``, ``classes.txt``), ``photos20_224.zip`` (``{train,test}/<wnid>/<name>.JPEG``) or the idx files of MNIST.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
MNIST_MEAN, MNIST_STD = (0.1307,), (0.3081,)
HALF = (0.5, 0.5, 0.5)
TILE = 32


class MissingDataError(FileNotFoundError):
    """A benchmark was started without its data."""


class Raw(NamedTuple):
    """Images as they are stored.

    Attributes:
        images: uint8 [N, C, H, W].
        labels: int64 [N].
        classes: names of the labels.
    """

    images: Tensor
    labels: Tensor
    classes: list[str]


class TensorImages(Dataset):
    """Labelled images, kept as uint8 (shared between subsets) and normalised when they are asked for."""

    def __init__(
        self,
        images: Tensor,
        targets: Iterable[int],
        mean: Sequence[float],
        std: Sequence[float],
        indices: Iterable[int] | None = None,
    ) -> None:
        """``images`` uint8 [N, C, H, W]; ``targets`` the labels of those at ``indices`` (of all, where that is None)."""
        self.images, self.mean, self.std = images, tuple(mean), tuple(std)
        self.indices = torch.tensor(list(range(len(images)) if indices is None else indices), dtype=torch.long)
        self.targets = [int(label) for label in targets]
        if len(self.targets) != len(self.indices):
            raise ValueError(f"{len(self.indices)} images have {len(self.targets)} labels")
        # x / 255 - mean over std, as one multiplication and one addition
        self._scale = 1 / (255 * torch.tensor(self.std)[:, None, None])
        self._shift = -(torch.tensor(self.mean) / torch.tensor(self.std))[:, None, None]

    @classmethod
    def of(cls, raw: Raw, mean: Sequence[float], std: Sequence[float]) -> TensorImages:
        """All images of ``raw`` with their labels."""
        return cls(raw.images, raw.labels.tolist(), mean, std)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._normalised(self.images[self.indices[index]]), self.targets[index]

    def __getitems__(self, positions: Sequence[int]) -> list[tuple[Tensor, int]]:
        """What a DataLoader asks for: several images, normalised together."""
        images, labels = self.batch(positions)
        return list(zip(images, labels.tolist(), strict=True))

    def batch(self, positions: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        """Images [B, C, H, W] and labels [B] at ``positions``."""
        positions = torch.as_tensor(positions, dtype=torch.long)
        labels = torch.tensor([self.targets[position] for position in positions.tolist()], dtype=torch.long)
        return self._normalised(self.images[self.indices[positions]]), labels

    def subset(self, positions: Iterable[int]) -> TensorImages:
        """Those at ``positions``."""
        positions = [int(position) for position in positions]
        targets = [self.targets[position] for position in positions]
        return TensorImages(self.images, targets, self.mean, self.std, self.indices[positions].tolist())

    def relabelled(self, new: Mapping[int, int] | int) -> TensorImages:
        """With label ``new[label]``, without those that have none; or all with the label ``new``."""
        if isinstance(new, int):
            return TensorImages(self.images, [new] * len(self), self.mean, self.std, self.indices.tolist())
        kept = self.subset(position for position, label in enumerate(self.targets) if label in new)
        kept.targets = [new[label] for label in kept.targets]
        return kept

    def of_classes(self, classes: Sequence[int]) -> TensorImages:
        """Those of ``classes``, labelled by their position there."""
        return self.relabelled({int(label): position for position, label in enumerate(classes)})

    def few(self, count: int, seed: int) -> TensorImages:
        """At most ``count`` of each label, drawn by ``seed``."""
        left, chosen = dict.fromkeys(self.targets, count), []
        for position in np.random.RandomState(seed).permutation(len(self)).tolist():
            if left[self.targets[position]]:
                left[self.targets[position]] -= 1
                chosen.append(position)
        return self.subset(sorted(chosen))

    def digest(self) -> str:
        """Changes with every pixel, label and the normalisation."""
        digest = hashlib.sha256(repr((self.mean, self.std, self.targets, tuple(self.images.shape[1:]))).encode())
        digest.update(self.images[self.indices].contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _normalised(self, images: Tensor) -> Tensor:
        return images.float().mul_(self._scale).add_(self._shift)


def joined(*parts: TensorImages) -> TensorImages:
    """One data set of several that are alike in size and normalisation."""
    images = torch.cat([part.images[part.indices] for part in parts])
    return TensorImages(images, [label for part in parts for label in part.targets], parts[0].mean, parts[0].std)


def cifar10(folder: Path | str) -> tuple[Raw, Raw]:
    """CIFAR-10 (2,500 training images per class), for training and for test.

    Raises:
        MissingDataError: the files are not in ``folder``.
    """
    return _sprites(_found(folder, "cifar10_train_half.zip")), _sprites(_found(folder, "cifar10_test.zip"))


def cifar100(folder: Path | str) -> tuple[Raw, Raw]:
    """CIFAR-100, for training and for test.

    Raises:
        MissingDataError: the files are not in ``folder``.
    """
    return _sprites(_found(folder, "cifar100_train.zip")), _sprites(_found(folder, "cifar100_test.zip"))


def photos(folder: Path | str) -> tuple[Raw, Raw]:
    """Photos [N, 3, 224, 224] of 20 ImageNet classes named by their WordNet ids, for training and for test.

    Raises:
        MissingDataError: the file is not in ``folder``.
    """
    path = _found(folder, "photos20_224.zip")
    return _photos(path, "train"), _photos(path, "test")


def mnist(folder: Path | str) -> tuple[Raw, Raw]:
    """MNIST from the original idx files (also ``.gz``), padded to [N, 1, 32, 32], for training and for test.

    Raises:
        MissingDataError: the files are not in ``folder``.
    """
    return _idx(folder, "train"), _idx(folder, "t10k")


def _found(folder: Path | str, *names: str) -> Path:
    for name in names:
        if (Path(folder) / name).is_file():
            return Path(folder) / name
    raise MissingDataError(
        f"{Path(folder)} has no {' or '.join(names)}; give the folder that does with --data (recipes/README.md says where"
        " each data set comes from)"
    )


@lru_cache(maxsize=4)
def _sprites(path: Path) -> Raw:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        labels = np.load(io.BytesIO(archive.read(next(name for name in names if name.endswith("labels.npy")))))
        classes = archive.read(next(name for name in names if name.endswith("classes.txt"))).decode().split("\n")
        sprites = sorted(name for name in names if name.endswith(".webp"))
        tiles = np.concatenate([_tiles(archive.read(name)) for name in sprites])[: len(labels)]
    images = torch.from_numpy(np.ascontiguousarray(tiles.transpose(0, 3, 1, 2)))
    return Raw(images, torch.from_numpy(labels.astype(np.int64)), [name.strip() for name in classes if name.strip()])


def _tiles(content: bytes) -> np.ndarray:
    """Tiles [N, 32, 32, 3] of one sprite, row by row."""
    sprite = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    rows, columns = sprite.shape[0] // TILE, sprite.shape[1] // TILE
    return sprite.reshape(rows, TILE, columns, TILE, 3).transpose(0, 2, 1, 3, 4).reshape(-1, TILE, TILE, 3)


@lru_cache(maxsize=2)
def _photos(path: Path, split: str) -> Raw:
    with zipfile.ZipFile(path) as archive:
        parts = [(name, *name.split("/")[-3:-1]) for name in sorted(archive.namelist()) if name.endswith(".JPEG")]
        classes = sorted({wnid for _, _, wnid in parts})
        own = [(name, classes.index(wnid)) for name, of, wnid in parts if of == split]
        # some photos are grey
        pixels = [np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGB")) for name, _ in own]
    images = torch.from_numpy(np.ascontiguousarray(np.stack(pixels).transpose(0, 3, 1, 2)))
    return Raw(images, torch.tensor([label for _, label in own]), classes)


def _idx(folder: Path | str, split: str) -> Raw:
    arrays = []
    for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"):
        names = [f"{split}-{kind}", f"{split}-{kind.replace('-idx', '.idx')}"]
        path = _found(folder, *names, *(f"{name}.gz" for name in names))
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        # two zeros, the type (8: unsigned bytes), the number of dimensions, then each of them, most significant byte first
        dimensions = content[3]
        if content[:3] != b"\0\0\x08" or dimensions not in (1, 3):
            raise MissingDataError(f"{path} is no idx file of unsigned bytes, it begins with {content[:4].hex()}")
        shape = np.frombuffer(content, ">u4", dimensions, 4).astype(int)
        arrays.append(np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape))
    images, labels = arrays
    images = np.pad(images, [(0, 0), *(((TILE - side) // 2,) * 2 for side in images.shape[1:])])
    return Raw(
        torch.from_numpy(images)[:, None], torch.from_numpy(labels.astype(np.int64)), [str(d) for d in range(10)]
    )
