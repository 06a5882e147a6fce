"""Where the files of an artifact are: in memory, in a folder, or (``pnc_hub.hub.download``) on the Hub."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from torch import Tensor

from pnc_hub.artifact import files
from pnc_hub.artifact.files import Header
from pnc_hub.errors import CloneNotFoundError


class Storage(Protocol):
    """What reading an artifact needs to know of the place where its files are."""

    @property
    def name(self) -> str | None:
        """Hub id or folder as it was asked for, for messages; None in memory."""

    @property
    def revision(self) -> str | None:
        """The commit that all files are from; None for what is not on the Hub."""

    @property
    def origin(self) -> str | Path | None:
        """The Hub id, or the folder as an absolute path; None in memory."""

    def path(self, file: str, digest: str | None = None, most: int = files.MAX_FILE_BYTES) -> Path:
        """A local path of ``file``, downloaded if need be; its content is not verified yet, and it may not exist.

        Args:
            file: name inside the artifact.
            digest: sha256 that config.json records for it; one that the storage knows must be the same.
            most: bytes, beyond which a download is broken off.
        """

    def header(self, file: str, digest: str | None = None) -> Header:
        """What ``file`` holds; of one that would have to be downloaded only the first bytes are fetched."""

    def holds(self, file: str) -> bool:
        """Whether reading ``file`` needs no download."""

    def names(self) -> Iterable[str]:
        """All files that are there, those of others among them."""


class Memory:
    """Tensors that were made here and are in no file."""

    name = revision = origin = None

    def __init__(self, tensors: dict[str, dict[str, Tensor]]) -> None:
        """``tensors`` by name, by file."""
        self.tensors = tensors

    def path(self, file: str, digest: str | None = None, most: int = files.MAX_FILE_BYTES) -> Path:
        """Raise ``CloneNotFoundError``: nothing here has a path."""
        raise CloneNotFoundError("this clone was made without it", file=file)

    def header(self, file: str, digest: str | None = None) -> Header:
        """Of the tensors that were made for ``file``."""
        tensors = self.tensors.get(file, {})
        size = sum(tensor.nbytes for tensor in tensors.values())
        return Header(file, size, files.specs(tensors.items()), {}, size)

    def holds(self, file: str) -> bool:
        """Always: there is nowhere to download from."""
        return True

    def names(self) -> Iterable[str]:
        """Files that tensors were made for."""
        return self.tensors.keys()


class Folder:
    """A folder that ``save_pretrained`` wrote."""

    revision = None

    def __init__(self, folder: str | Path) -> None:
        """``folder`` may be relative to where the process is now."""
        self.name, self.origin = str(Path(folder)), Path(folder).resolve()

    def path(self, file: str, digest: str | None = None, most: int = files.MAX_FILE_BYTES) -> Path:
        """Where ``file`` is, if it is there."""
        return self.origin / file

    def header(self, file: str, digest: str | None = None) -> Header:
        """From the first bytes of the file."""
        return files.read_header(self.path(file), file)

    def holds(self, file: str) -> bool:
        """Always."""
        return True

    def names(self) -> Iterable[str]:
        """Everything in the folder that is no folder."""
        return [path.relative_to(self.origin).as_posix() for path in self.origin.rglob("*") if not path.is_dir()]
