"""What the steps of learning read: images in parts, each used for one purpose, in batches."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset

from pnc_hub.cloning.images.data import Images
from pnc_hub.errors import DataError

PARTS = 4  # of a split; each class has an image at least in each


@dataclass(frozen=True)
class Split:
    """One set of images in four parts, each read for one purpose alone.

    ``fit`` is learned on, ``choose`` decides (penalties, insertion point, best pass), ``calibrate`` sets the gate's offset,
    and ``report`` is read once, when all is done.
    """

    fit: Subset[Any]
    choose: Subset[Any]
    calibrate: Subset[Any]
    report: Subset[Any]

    @classmethod
    def of(cls, dataset: Images, seed: int, held_out: float = 0.1) -> Split:
        """Split every class in the same proportions by ``seed``: thrice ``held_out``, at least one image, is kept back."""
        rng = np.random.RandomState(seed)
        labels = np.asarray(dataset.labels)
        if not len(labels):
            raise DataError("no images: the data is empty, or none of its labels is one of the model's classes")
        parts: tuple[list[int], ...] = ([], [], [], [])
        for label in np.unique(labels):
            members = rng.permutation(np.flatnonzero(labels == label))
            if len(members) < PARTS:
                raise DataError(
                    f"class {label} has {len(members)} images; {PARTS} at least are needed: to learn, to choose,"
                    " to calibrate and to report"
                )
            held = max(1, round(held_out * len(members)))
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
    covered: bool = True  # whether ``target`` has images of most of the target's classes

    @property
    def used(self) -> int:
        """Number of images that learning, choosing and calibrating read."""
        splits = [split for split in (self.cloned, self.target) if split is not None]
        return sum(len(split.fit) + len(split.choose) + len(split.calibrate) for split in splits)

    def loader(
        self, parts: Iterable[Dataset[Any] | None], shuffle: bool = False, most: int | None = None, whole: bool = False
    ) -> DataLoader[Any]:
        """Batches over several data sets together, shared among the processes.

        Of n processes the p-th reads the batches p, p + n, ... of those that one process reads. Shuffled ones, which are
        learned from step by step, are smaller in proportion, so that a step sees as many images as in one process; the few
        that do not give every process a batch are left out of this pass.

        Args:
            parts: the data sets.
            shuffle: in another order each time.
            most: at most so many images, drawn by the seed.
            whole: every process reads all batches.
        """
        dataset = self._drawn(ConcatDataset([part for part in parts if part is not None]), most)
        size, processes = self.batch_size, self.accelerator.num_processes
        shared = shuffle and processes > 1
        if shared:
            size = max(1, len(dataset) // (processes * math.ceil(len(dataset) / size)))
        loader = DataLoader(
            dataset,
            size,
            shuffle=shuffle,
            num_workers=self.workers,
            generator=torch.Generator().manual_seed(self.seed) if shuffle else None,
            # statistics of a last batch of one image are none
            drop_last=shared or (shuffle and len(dataset) > size and len(dataset) % size == 1),
        )
        if whole:
            prepared: DataLoader[Any] = prepare_data_loader(loader, self.accelerator.device, 1, 0, put_on_device=True)
        else:
            prepared = self.accelerator.prepare(loader)
        return prepared

    def sides(self, part: str, most: int) -> tuple[DataLoader[Any], DataLoader[Any] | None]:
        """Batches of at most so many images from that part of each side; the second is None where there are no others."""
        cloned = self.loader([getattr(self.cloned, part)], most=most)
        return cloned, None if self.target is None else self.loader([getattr(self.target, part)], most=most)

    def mixed(self, name: str, each: int | None = None, **options: Any) -> DataLoader[Any]:
        """Images of both sides from the part ``name``, at most ``each`` of either; the target's come unlabelled.

        Shuffled ones are for training: there the side that has fewer images shows them again, until both have as many.
        """
        sides = [getattr(self.cloned, name)]
        if self.target:
            others = getattr(self.target, name)
            sides.append(others.dataset.only(others.indices))
        sides = [self._drawn(side, each) for side in sides]
        if options.get("shuffle"):
            most = max(map(len, sides))
            sides = [copy for side in sides for copy in [side] * round(most / len(side))]
        return self.loader(sides, **options)

    def _drawn(self, dataset: Any, most: int | None) -> Any:
        if most is None or len(dataset) <= most:
            return dataset
        order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(self.seed))
        return Subset(dataset, order[:most].tolist())
