"""Photos that are only to be answered: read from disk and brought to a model, a few at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor, nn

from pnc_hub.cloning.images.folders import ENDINGS, find
from pnc_hub.errors import DataError, one_line
from pnc_hub.models.preprocess import UNREADABLE, Preprocess, upright

BATCH = 16


def files_among(paths: Iterable[Path]) -> list[Path]:
    """The files among ``paths``, and the photos in the folders among them.

    Raises:
        DataError: a folder has none.
    """
    files: list[Path] = []
    for path in paths:
        inside = find(path) if path.is_dir() else [path]
        if not inside:
            raise DataError(f"there is no photo in {path}; looked for files that end in {', '.join(ENDINGS)}")
        files += inside
    return files


class ImageFiles:
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
            read = [(path, self._open(path)) for path in self.files[start : start + BATCH]]
            images = {path: image for path, image in read if image is not None}
            if images:
                yield list(images), torch.stack(list(images.values()))

    def _open(self, path: Path) -> Tensor | None:
        try:
            with Image.open(path) as image:
                shown: Tensor = self.transform(upright(image, self.channels))
                return shown
        except UNREADABLE as error:
            self.unreadable[path] = one_line(error)
            return None
