"""A batch of images by who they are: pixels are read when something asks for them, and what is computed of them is kept."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pnc_hub.cloning.images.copies import Copies
from pnc_hub.cloning.images.data import Images
from pnc_hub.cloning.images.kept import PICTURE, Kept

# Of all images of a batch together: what a layer makes of these is small enough for the allocator to use the same memory again
# and again; of larger batches the pages come new each time, which took two thirds of a MobileNetV2's time.
PIXELS = 4 * 224 * 224
HALF_MOST = 60_000.0  # what is larger is not kept in half precision
# A feature may have so many times the numbers of its image. Larger ones come early, and are quicker made than kept.
LARGEST = 2


def at_once(size: tuple[int, int, int], device: torch.device, pixels: int = PIXELS) -> int | None:
    """How many images of ``size`` (C, H, W) have so many pixels together; None on an accelerator, which takes any number."""
    return max(1, pixels // (size[1] * size[2])) if device.type == "cpu" else None


class Shown:
    """Some images; ``through`` gives the same as another network wants them."""

    def __init__(
        self,
        members: Sequence[tuple[Images, int]],
        kept: Kept,
        device: torch.device,
        read: Sequence[Tensor | None] = (),
        change: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """``members`` are (set, position); ``read`` holds those that another process has decoded already."""
        self.members, self.kept, self.device, self.change = members, kept, device, change
        # which copy of each is shown, where it is not the image itself
        self.copies: tuple[Copies, Sequence[int]] | None = None
        self._read = [images.key(position) for images, position in members]
        self.keys: list[Any] = self._read
        self._unkept: dict[int, Tensor] = {}  # pictures for which there was no room, for as long as the batch is in use
        for row, picture in enumerate(read):
            if picture is not None:
                self._keep(row, picture.cpu())

    def __len__(self) -> int:
        return len(self.keys)

    def pixels(self, rows: Sequence[int] | None = None) -> Tensor:
        """[B, C, H, W] of all images, or of those at ``rows``."""
        chosen = range(len(self)) if rows is None else rows
        pixels = torch.stack([self._picture(row) for row in chosen]).to(self.device)
        return pixels if self.change is None else self.change(pixels)

    def through(self, change: Callable[[Tensor], Tensor]) -> Shown:
        """The same images with ``change`` applied to their pixels [B, C, H, W]."""
        same = copy.copy(self)
        same.change = change
        return same

    def only(self, rows: Sequence[int]) -> Shown:
        """Those at ``rows``."""
        some = copy.copy(self)
        some.members, some.keys = [self.members[row] for row in rows], [self.keys[row] for row in rows]
        some._read = [self._read[row] for row in rows]
        some._unkept = {new: self._unkept[row] for new, row in enumerate(rows) if row in self._unkept}
        if self.copies is not None:
            some.copies = self.copies[0], [self.copies[1][row] for row in rows]
        return some

    def copied(self, copies: Copies, numbers: Sequence[int]) -> Shown:
        """That copy of each image whose number is in ``numbers`` [B]; 0 is the image itself, under the key that it has."""
        same = copy.copy(self)
        same.copies = copies, numbers
        named = zip(self._read, numbers, strict=True)
        same.keys = [(*key, copies, number) if number else key for key, number in named]
        return same

    def _picture(self, row: int) -> Tensor:
        images, position = self.members[row]
        stored = self._unkept.get(row, self.kept.get(PICTURE, self._read[row]))
        if stored is None:
            stored = images.stored(position)
            self._keep(row, stored)
        picture = images.normalised(stored)
        if self.copies is None:
            return picture
        copies, numbers = self.copies
        return copies.of(picture, images.indices[position], numbers[row])

    def _keep(self, row: int, picture: Tensor) -> None:
        if not self.kept.put(PICTURE, [self._read[row]], picture[None]):
            self._unkept[row] = picture


class Remembered:
    """A function of images whose results are kept by image: asked again, it is not computed again."""

    def __init__(
        self, compute: Callable[[Tensor, Collection[str]], dict[str, Tensor]], exact: Collection[str] = ()
    ) -> None:
        """``compute(pixels, names)`` gives rows [B, ...] by name; those not named in ``exact`` are kept in half precision."""
        self._compute, self._exact = compute, exact

    @torch.no_grad()
    def __call__(self, images: Shown | Tensor, names: Collection[str]) -> dict[str, Tensor]:
        """The rows of ``names``; nothing is kept of images that come as pixels."""
        if isinstance(images, Tensor):
            return self._compute(images, names)
        known = {name: [images.kept.get((self, name), key) for key in images.keys] for name in names}
        lacking = [name for name, rows in known.items() if any(row is None for row in rows)]
        missing = [row for row in range(len(images)) if any(known[name][row] is None for name in lacking)]
        for some in _in_parts(images, missing):
            pixels = images.pixels(some)
            with torch.inference_mode():
                computed = self._compute(pixels, lacking)
            keys = [images.keys[row] for row in some]
            for name in lacking:
                rows = computed[name]
                if name in self._exact or rows[0].numel() <= LARGEST * pixels[0].numel():
                    # the same is given whether it could be kept or not, and in whichever process
                    rows = rows if name in self._exact else _halved(rows)
                    images.kept.put((self, name), keys, rows)
                for row, value in zip(some, rows, strict=True):
                    known[name][row] = value
        return {
            name: torch.stack([row.to(images.device) for row in rows if row is not None]).float()
            for name, rows in known.items()
        }


def _in_parts(images: Shown, rows: list[int]) -> Iterator[list[int]]:
    """``rows`` in as many parts as memory likes; an accelerator takes all at once."""
    size = at_once(images.members[0][0].preprocess.input_size, images.device) or max(1, len(rows))
    yield from (rows[start : start + size] for start in range(0, len(rows), size))


def _halved(rows: Tensor) -> Tensor:
    """In half precision where the numbers allow it."""
    if not rows.is_floating_point():
        return rows
    low, high = (float(end) for end in rows.aminmax())
    return rows.half() if low > -HALF_MOST and high < HALF_MOST else rows  # no number is in no range
