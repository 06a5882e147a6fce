"""Where the files of an artifact are: in no file yet, in a folder, or (``pnc_hub.hub.download``) on the Hub.

A folder is written whole or not at all, and never over files of others.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from pnc_hub.artifact import files
from pnc_hub.artifact.config import LIBRARY_NAME
from pnc_hub.errors import ArtifactError, CloneNotFoundError


class Storage:
    """The storage of what was made here: there are no files, all tensors are in memory.

    Attributes:
        name: Hub id or folder as it was asked for, for messages; None in memory.
        revision: the commit that all files are from; None for what is not on the Hub.
        origin: the Hub id, or the folder as an absolute path; None in memory.
    """

    name: str | None = None
    revision: str | None = None
    origin: str | Path | None = None

    def path(self, file: str, digest: str | None = None, most: int = files.MAX_FILE_BYTES) -> Path:
        """A local path of ``file``, downloaded if need be; its content is not verified yet, and it may not exist.

        Args:
            file: name inside the artifact.
            digest: sha256 that config.json records for it; one that the storage knows must be the same.
            most: bytes, beyond which a download is broken off.

        Raises:
            CloneNotFoundError: there is none.
        """
        raise CloneNotFoundError("this clone was made without it", file=file)

    def header(self, file: str, digest: str | None = None) -> files.Header:
        """What ``file`` holds; of one that would have to be downloaded only the first bytes are fetched."""
        return files.read_header(self.path(file, digest), file)

    def holds(self, file: str) -> bool:
        """Whether reading ``file`` needs no download."""
        return True

    def names(self) -> Iterable[str]:
        """All files that are there, those of others among them."""
        return ()


class Folder(Storage):
    """A folder that ``save_pretrained`` wrote."""

    def __init__(self, folder: str | Path) -> None:
        self.name = str(Path(folder))
        self.origin: Path = Path(folder).resolve()

    def path(self, file: str, digest: str | None = None, most: int = files.MAX_FILE_BYTES) -> Path:
        """Where ``file`` is, if it is there."""
        return self.origin / file

    def names(self) -> Iterable[str]:
        """Everything in the folder that is no folder."""
        return [path.relative_to(self.origin).as_posix() for path in self.origin.rglob("*") if not path.is_dir()]


def put(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Let ``folder`` hold the files ``contents`` and nothing else.

    They are written beside it and then take its place: whatever interrupts it, what was there before is there again.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent, ignore_cleanup_errors=True) as work:
        new, old = Path(work, "new"), Path(work, "old")
        fill(new, contents)
        try:
            if folder.exists():
                folder.rename(old)
            new.rename(folder)
        except BaseException:
            if old.exists() and not folder.exists():
                old.rename(folder)
            raise


def fill(folder: Path, contents: Mapping[str, bytes]) -> dict[str, Path]:
    """Write ``contents`` to files in ``folder``; the path of each."""
    paths = {file: folder / file for file in contents}
    for file, content in contents.items():
        paths[file].parent.mkdir(parents=True, exist_ok=True)
        paths[file].write_bytes(content)
    return paths


def is_replaceable(folder: Path) -> bool:
    """Whether ``folder`` is empty, or a clone and nothing else: saving removes what was there."""
    paths = [path.relative_to(folder).as_posix() for path in folder.rglob("*")] if folder.is_dir() else [""]
    if not paths:
        return True
    try:
        config = files.read_json(folder / files.CONFIG, files.CONFIG)
    except ArtifactError:
        return False
    return all(map(files.is_ours, paths)) and isinstance(config, dict) and config.get("library_name") == LIBRARY_NAME
