"""Photos on disk: which files are photos; a data set of those in folders and tar files; and any of them, to be answered."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from timm.data import ImageDataset, create_transform, resolve_model_data_config
from timm.data.readers.reader import Reader
from timm.data.readers.reader_image_folder import ReaderImageFolder
from timm.data.readers.reader_image_in_tar import ReaderImageInTar
from torch import Tensor, nn

from pnc_hub.errors import DataError, one_line
from pnc_hub.models.preprocess import UNREADABLE, Preprocess, upright

ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
BATCH = 16  # photos that are answered at a time


def find(folder: Path) -> list[Path]:
    """The photos in ``folder`` and the folders in it, by their endings, in order; hidden files are left out."""
    files = (path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS and not path.name.startswith("."))
    return sorted(path for path in files if path.is_file())


class ImageFolder(ImageDataset):
    """Photos labelled by their folders; timm's would give the next one in place of a photo that cannot be read."""

    def __init__(self, root: str) -> None:
        """``root`` is a folder with a folder per class, a tar file of such, or a folder of tar files, one per class."""
        path = Path(root)
        if path.is_dir() and not any(path.glob("*.tar")):
            if not find(path):
                raise DataError(f"there is no photo in {root!r}; looked for files that end in {', '.join(ENDINGS)}")
            reader: Reader = ReaderImageFolder(root, input_key=";".join(ENDINGS))
        else:  # without its cache, which it writes beside the data
            reader = ReaderImageInTar(root, cache_tarinfo=False)
        super().__init__(root, reader=reader)  # type: ignore[no-untyped-call]

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        file, label = self.reader[index][:2]
        try:
            image = Image.open(file)
            image.load()
        except UNREADABLE as error:
            raise DataError(
                f"{self.name(index)!r} cannot be read ({one_line(error)}); mend it or take it out"
            ) from error
        return image, -1 if label is None else label

    def name(self, index: int) -> str:
        """Of the file."""
        return str(self.filename(index))  # type: ignore[no-untyped-call]

    def readable(self, indices: Sequence[int]) -> list[int]:
        """Those of ``indices`` whose files are images, by their first bytes; a warning names what is left out."""
        kept = [index for index in indices if self._is_image(index)]
        if len(kept) < len(indices):
            left_out = sorted(set(indices) - set(kept))
            warnings.warn(
                f"{len(left_out)} of {len(indices)} photos cannot be read and are left out:"
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
