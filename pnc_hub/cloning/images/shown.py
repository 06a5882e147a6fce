"""A batch of images by who they are: pixels are read when something asks for them, and what is computed of them is kept."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from pnc_hub.cloning.images.data import Images
from pnc_hub.cloning.images.kept import PICTURE, Kept

# Of all images of a batch together: what a layer makes of these is small enough for the allocator to use the same memory again
# and again; of larger batches the pages come new each time, which took two thirds of a MobileNetV2's time.
PIXELS = 4 * 224 * 224
HALF_MOST = 60_000.0  # what is larger is not kept in half precision


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
        self.keys = [images.key(position) for images, position in members]
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

    def _picture(self, row: int) -> Tensor:
        images, position = self.members[row]
        stored = self._unkept.get(row, self.kept.get(PICTURE, self.keys[row]))
        if stored is None:
            stored = images.stored(position)
            self._keep(row, stored)
        return images.normalised(stored)

    def _keep(self, row: int, picture: Tensor) -> None:
        if not self.kept.put(PICTURE, [self.keys[row]], picture[None]):
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
        missing = [row for row in range(len(images)) if any(rows[row] is None for rows in known.values())]
        if missing:
            unknown = [name for name, rows in known.items() if any(row is None for row in rows)]
            with torch.inference_mode():
                computed = self._compute(images.pixels(missing), unknown)
            keys = [images.keys[row] for row in missing]
            for name, rows in computed.items():
                images.kept.put((self, name), keys, rows if name in self._exact else _halved(rows))
                for row, value in zip(missing, rows, strict=True):
                    known[name][row] = value
        return {
            name: torch.stack([row.to(images.device) for row in rows if row is not None]).float()
            for name, rows in known.items()
        }


def _halved(rows: Tensor) -> Tensor:
    """In half precision where the numbers allow it."""
    fits = rows.is_floating_point() and bool((rows.abs() < HALF_MOST).all())  # False where one is no number
    return rows.half() if fits else rows
