"""What the steps of learning read: images in three parts, each used for one purpose, in batches."""

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


@dataclass(frozen=True)
class Split:
    """One set of images in three parts: for fitting, for choices, and for the report, which is read once."""

    fit: Dataset
    choose: Dataset
    report: Dataset

    @classmethod
    def of(cls, dataset: Images, seed: int, choose: float = 0.15, report: float = 0.15) -> Split:
        """Split every class in the same proportions, shuffled by ``seed``; each part gets at least one image a class."""
        rng = np.random.RandomState(seed)
        parts: tuple[list[int], list[int], list[int]] = ([], [], [])
        labels = np.asarray(dataset.labels)
        for label in np.unique(labels):
            members = rng.permutation(np.flatnonzero(labels == label))
            if len(members) < 3:
                raise DataError(
                    f"class {label} has {len(members)} images; learning, choosing and reporting need 3 at least"
                )
            held = [max(1, round(share * len(members))) for share in (report, choose)]
            cuts = np.cumsum(held)
            for part, chosen in zip((2, 1, 0), np.split(members, cuts), strict=True):
                parts[part].extend(chosen.tolist())
        return cls(*(Subset(dataset, sorted(part)) for part in parts))


@dataclass
class Batches:
    """Images of the cloned classes, and of the target's where they were given, each in three parts."""

    cloned: Split
    target: Split | None
    accelerator: Accelerator
    batch_size: int
    workers: int
    seed: int

    @property
    def used(self) -> int:
        """Number of images that learning and choosing read."""
        splits = [split for split in (self.cloned, self.target) if split is not None]
        return sum(len(split.fit) + len(split.choose) for split in splits)

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
