"""Photos in folders and tar files: which files are photos, and a data set of them in which each is itself or is left out."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from timm.data import ImageDataset
from timm.data.readers.reader import Reader
from timm.data.readers.reader_image_folder import ReaderImageFolder
from timm.data.readers.reader_image_in_tar import ReaderImageInTar

from pnc_hub.errors import DataError, one_line
from pnc_hub.models.preprocess import UNREADABLE

ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


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
