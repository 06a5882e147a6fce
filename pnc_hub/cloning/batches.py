"""What the steps of learning read: images in parts, each used for one purpose, in batches."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset

from pnc_hub.cloning.data import UNLABELLED, Images
from pnc_hub.errors import DataError

HELD_OUT = 0.1


@dataclass(frozen=True)
class Split:
    """One set of images in four parts, each read for one purpose alone.

    ``fit`` is learned on, ``choose`` decides (penalties, insertion point, best pass), ``calibrate`` sets the gate's offset,
    and ``report`` is read once, when all is done.
    """

    fit: Dataset
    choose: Dataset
    calibrate: Dataset
    report: Dataset

    @classmethod
    def of(cls, dataset: Images, seed: int) -> Split:
        """Split every class in the same proportions by ``seed``: thrice a tenth, at least one image, is held out."""
        rng = np.random.RandomState(seed)
        labels = np.asarray(dataset.labels)
        if not len(labels):
            raise DataError("no images: the data is empty, or none of its labels is one of the model's classes")
        parts: tuple[list[int], ...] = ([], [], [], [])
        for label in np.unique(labels):
            members = rng.permutation(np.flatnonzero(labels == label))
            if len(members) < len(parts):
                raise DataError(
                    f"class {label} has {len(members)} images; {len(parts)} at least are needed: to learn, to choose,"
                    " to calibrate and to report"
                )
            held = max(1, round(HELD_OUT * len(members)))
            for part, chosen in zip(parts, np.split(members[::-1], [-3 * held, -2 * held, -held]), strict=True):
                part.extend(chosen.tolist())
        return cls(*(Subset(dataset, sorted(part)) for part in parts))


@dataclass
class Batches:
    """Images of the cloned classes and, if there are any, of others: the target's, or else the source's other classes."""

    cloned: Split
    target: Split | None
    accelerator: Accelerator
    batch_size: int
    workers: int
    seed: int

    @property
    def used(self) -> int:
        """Number of images that learning, choosing and calibrating read."""
        splits = [split for split in (self.cloned, self.target) if split is not None]
        return sum(len(split.fit) + len(split.choose) + len(split.calibrate) for split in splits)

    def loader(self, parts: Iterable[Dataset | None], shuffle: bool = False, most: int | None = None) -> DataLoader:
        """Batches over several data sets together; at most ``most`` images, drawn by the seed."""
        dataset: Any = ConcatDataset([part for part in parts if part is not None])
        generator = torch.Generator().manual_seed(self.seed)
        if most is not None and len(dataset) > most:
            dataset = Subset(dataset, torch.randperm(len(dataset), generator=generator)[:most].tolist())
        loader = DataLoader(
            dataset,
            self.batch_size,
            shuffle=shuffle,
            num_workers=self.workers,
            generator=generator if shuffle else None,
        )
        return self.accelerator.prepare(loader)

    def mixed(self, name: str, **options: Any) -> DataLoader:
        """Images of both sides from the part ``name``; the target's come unlabelled."""
        other = getattr(self.target, name) if self.target else None
        return self.loader([getattr(self.cloned, name), _Unlabelled(other) if other else None], **options)


class _Unlabelled(Dataset):
    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.dataset[index][0], UNLABELLED
