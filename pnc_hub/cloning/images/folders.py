"""Photos in folders and tar files: each is itself, or is left out and said so."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from PIL import Image
from timm.data import ImageDataset

from pnc_hub.errors import DataError
from pnc_hub.models.preprocess import UNREADABLE


class Photos(ImageDataset):
    """timm's, which in place of a photo that can not be read would give the next one, whatever that shows."""

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        file, label = self.reader[index][:2]
        try:
            image = Image.open(file)
            image.load()
        except UNREADABLE as error:
            raise DataError(f"{self.name(index)!r} can not be read ({error}); mend it or take it out") from error
        return image, -1 if label is None else label

    @classmethod
    def of(cls, *arguments: Any, **options: Any) -> Photos:
        """As ``ImageDataset``, which has no annotations."""
        return cls(*arguments, **options)

    def name(self, index: int) -> str:
        """Of the file."""
        return str(self.filename(index))  # type: ignore[no-untyped-call]

    def readable(self, indices: Sequence[int]) -> list[int]:
        """Those of ``indices`` whose files are images, by their first bytes; a warning tells of others."""
        kept = [index for index in indices if self._is_image(index)]
        if len(kept) < len(indices):
            left_out = sorted(set(indices) - set(kept))
            warnings.warn(
                f"{len(left_out)} of {len(indices)} photos can not be read and are left out:"
                f" {self.name(left_out[0])!r}{' ...' if left_out[1:] else ''}",
                stacklevel=4,
            )
        return kept

    def _is_image(self, index: int) -> bool:
        try:
            with self.reader[index][0] as file, Image.open(file):
                return True
        except UNREADABLE:
            return False


def readable(dataset: Any, indices: list[int]) -> list[int]:
    """Those of ``indices`` whose items can be read, as far as that is known before they are."""
    return dataset.readable(indices) if isinstance(dataset, Photos) else indices
