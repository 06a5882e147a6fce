"""What the steps of learning read: images in parts, each used for one purpose, in batches."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from pnc_hub.cloning.images.data import UNLABELLED, Images
from pnc_hub.cloning.images.kept import PICTURE, Kept
from pnc_hub.cloning.images.shown import Shown, at_once
from pnc_hub.errors import DataError

PARTS = 4  # of a split; each class has an image at least in each


@dataclass(frozen=True)
class Split:
    """One set of images in four parts, each read for one purpose alone.

    ``fit`` is learned on, ``choose`` decides (penalties, insertion point, best pass), ``calibrate`` sets the gate's offset,
    and ``report`` is read once, when all is done.
    """

    fit: Images
    choose: Images
    calibrate: Images
    report: Images

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
        return cls(*(dataset.only(sorted(part)) for part in parts))


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
    kept: Kept = field(default_factory=Kept)  # of what is read and computed, for as long as these batches live

    @property
    def used(self) -> int:
        """Number of images that learning, choosing and calibrating read."""
        splits = [split for split in (self.cloned, self.target) if split is not None]
        return sum(len(split.fit) + len(split.choose) + len(split.calibrate) for split in splits)

    def loader(
        self, parts: Iterable[Images | None], shuffle: bool = False, most: int | None = None, whole: bool = False
    ) -> Loader:
        """Batches over several sets of images together, shared among the processes.

        Of n processes the p-th reads the batches p, p + n, ... of those that one process reads. Shuffled ones, which are
        learned from step by step, are smaller in proportion, so that a step sees as many images as in one process; the few
        that do not give every process a batch are left out of this pass. On a CPU the others are as small as memory likes.

        Args:
            parts: the sets of images.
            shuffle: in another order each time.
            most: at most so many images, drawn by the seed.
            whole: every process reads all batches.
        """
        entries = [(part, at) for part in parts if part is not None for at in range(len(part))]
        order = torch.Generator().manual_seed(self.seed) if shuffle else None
        drawn = self._drawn(entries, most)
        return Loader(drawn, self.accelerator, self.batch_size, self.workers, self.kept, order, whole=whole)

    def sides(self, part: str, most: int) -> tuple[Loader, Loader | None]:
        """Batches of at most so many images from that part of each side; the second is None where there are no others."""
        cloned = self.loader([getattr(self.cloned, part)], most=most)
        return cloned, None if self.target is None else self.loader([getattr(self.target, part)], most=most)

    def mixed(self, name: str, each: int | None = None, **options: Any) -> Loader:
        """Images of both sides from the part ``name``, at most ``each`` of either; the target's come unlabelled.

        Shuffled ones are for training: there the side that has fewer images shows them again, until both have as many.
        """
        sides = [getattr(self.cloned, name)]
        if self.target:
            others = getattr(self.target, name)
            sides.append(others.only(range(len(others)), [UNLABELLED] * len(others)))
        sides = [side.only(self._drawn(range(len(side)), each)) for side in sides]
        if options.get("shuffle"):
            most = max(map(len, sides))
            sides = [copy for side in sides for copy in [side] * round(most / len(side))]
        return self.loader(sides, **options)

    def _drawn(self, among: Sequence[Any], most: int | None) -> list[Any]:
        if most is None or len(among) <= most:
            return list(among)
        order = torch.randperm(len(among), generator=torch.Generator().manual_seed(self.seed))
        return [among[position] for position in order[:most].tolist()]


class Loader:
    """Batches of (``Shown``, labels [B]), shared among the processes as ``Batches.loader`` says."""

    def __init__(
        self,
        entries: Sequence[tuple[Images, int]],
        accelerator: Accelerator,
        batch_size: int,
        workers: int,
        kept: Kept,
        order: torch.Generator | None = None,
        *,
        whole: bool = False,
    ) -> None:
        """``entries`` are (set of images, position in it); ``order`` shuffles them."""
        self._entries, self._kept, self._device = entries, kept, accelerator.device
        size, processes = batch_size, accelerator.num_processes
        shared = order is not None and processes > 1
        if shared:
            size = max(1, len(entries) // (processes * math.ceil(len(entries) / size)))
        if order is None and entries:
            size = min(size, at_once(entries[0][0].preprocess.input_size, accelerator.device) or size)
        loader = DataLoader(
            _Entries(entries, kept),
            size,
            shuffle=order is not None,
            num_workers=workers,
            generator=order,
            # statistics of a last batch of one image are none
            drop_last=shared or (order is not None and len(entries) > size and len(entries) % size == 1),
            collate_fn=_together,
        )
        if whole:
            self._batches: DataLoader[Any] = prepare_data_loader(loader, accelerator.device, 1, 0, put_on_device=True)
        else:
            self._batches = accelerator.prepare(loader)

    def __len__(self) -> int:
        return len(self._batches)

    def counts(self) -> Counter[tuple[int, int]]:
        """How often a pass shows each image, by its key."""
        return Counter(images.key(position) for images, position in self._entries)

    def __iter__(self) -> Iterator[tuple[Shown, Tensor]]:
        for positions, labels, read in self._batches:
            members = [self._entries[position] for position in positions]
            yield Shown(members, self._kept, self._device, read), labels


class Pixels:
    """The same batches as pairs of tensors (images [B, C, H, W], labels [B])."""

    def __init__(self, loader: Loader) -> None:
        """Images are read as they are asked for."""
        self._loader = loader

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for shown, labels in self._loader:
            yield shown.pixels(), labels


class _Entries(Dataset[Any]):
    """Images of several sets by (set, position). A process that loads images reads those that are not kept yet."""

    def __init__(self, entries: Sequence[tuple[Images, int]], kept: Kept) -> None:
        self.entries, self.kept = entries, kept

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> tuple[int, int, Tensor | None]:
        images, position = self.entries[index]
        at_work = get_worker_info() is not None and not self.kept.has(PICTURE, images.key(position))
        return index, images.labels[position], images.stored(position) if at_work else None


def _together(items: list[tuple[int, int, Tensor | None]]) -> tuple[list[int], Tensor, list[Tensor | None]]:
    positions, labels, read = zip(*items, strict=True)
    return list(positions), torch.tensor(labels), list(read)
