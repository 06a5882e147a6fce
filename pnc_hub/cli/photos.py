"""Photos on disk: found, opened, and brought to a model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from PIL import Image
from timm.data import create_transform, get_img_extensions, resolve_model_data_config
from torch import Tensor, nn

from pnc_hub.errors import DataError
from pnc_hub.models.preprocess import UNREADABLE, Preprocess, upright

BATCH = 16


def find(paths: Iterable[Path]) -> list[Path]:
    """The files among ``paths``, and the images in the folders among them.

    Raises:
        DataError: a folder has none.
    """
    kinds, found = get_img_extensions(as_set=True), []
    for path in paths:
        inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in kinds and file.is_file())
        if path.is_dir() and not inside:
            raise DataError(f"there is no photo in {path}; looked for files that end in {', '.join(sorted(kinds))}")
        found += inside if path.is_dir() else [path]
    return found


class Photos:
    """Photos as ``model`` wants them: timm's preprocessing for its weights, at the size that it was built for.

    Attributes:
        unreadable: what is wrong with those that could not be read, filled while they are read.
    """

    def __init__(self, files: list[Path], model: nn.Module) -> None:
        """Nothing is read yet."""
        wants = Preprocess.of(model)  # knows the size and the channels of this very model; timm, those of its weights
        as_built = {"input_size": wants.input_size, "mean": wants.mean, "std": wants.std}
        self.channels = wants.input_size[0]
        self.transform = create_transform(**{**resolve_model_data_config(model), **as_built})
        self.files = files
        self.unreadable: dict[Path, str] = {}

    def __iter__(self) -> Iterator[tuple[list[Path], Tensor]]:
        """Files and what they show [B, C, H, W], ``BATCH`` at a time."""
        for start in range(0, len(self.files), BATCH):
            read = [
                (path, image) for path in self.files[start : start + BATCH] if (image := self._open(path)) is not None
            ]
            if read:
                yield [path for path, _ in read], torch.stack([image for _, image in read])

    def _open(self, path: Path) -> Tensor | None:
        try:
            with Image.open(path) as image:
                shown: Tensor = self.transform(upright(image, self.channels))
                return shown
        except UNREADABLE as error:
            self.unreadable[path] = " ".join(str(error).split())
            return None
