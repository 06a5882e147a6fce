"""``pnc-hub.lock``: the commit of each clone that a program was tested with, and the sha256 of its files.

A lock is JSON, ``{"user/name": {"revision": commit, "files": {name: sha256}}}``, to be kept with the program that attaches
the clones. It is what a repository's name is not: the same clone tomorrow, whoever owns the name by then. A folder is named
as it is seen from the lock, ``"./clones/birds"``, and has no revision.
"""

from __future__ import annotations

import getpass
import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pnc_hub.artifact import checks, files
from pnc_hub.artifact.contents import Contents
from pnc_hub.errors import ArtifactError, LockError

FILE = "pnc-hub.lock"

Lock = str | Path | Mapping[str, Any]


@dataclass(frozen=True)
class Pin:
    """What a lock holds of one clone.

    Attributes:
        repo_id: ``user/name``, or a folder as it is seen from the lock.
        revision: the commit; None for a folder.
        files: sha256 by name of every file but the card.
    """

    repo_id: str
    revision: str | None
    files: dict[str, str]

    @classmethod
    def of(cls, clone: Contents, lock: Lock) -> Pin:
        """The pin in ``lock`` of a clone that was read from the Hub or from a folder."""
        return cls(_name(clone.origin, lock), clone.revision, clone.digests)

    def resolve(self, revision: str | None) -> str | None:
        """The revision to read where ``revision`` was asked for: the commit itself, if nothing else was."""
        if revision is None:
            return self.revision
        if checks.passes(checks.commit, revision) and revision != self.revision:
            raise self._refusal(f"commit {self.revision} is locked", revision)
        return revision

    def check(self, clone: Contents) -> None:
        """Raise ``LockError`` unless ``clone`` was read from what was locked."""
        if clone.revision != self.revision:
            raise self._refusal(f"commit {self.revision} is locked", clone.revision)
        digests = clone.digests
        for file in sorted(digests.keys() | self.files.keys()):
            if digests.get(file) != self.files.get(file):
                raise self._refusal(
                    f"its sha256 is {digests.get(file)}, and {self.files.get(file)} is locked", clone.revision, file
                )

    def _refusal(self, reason: str, revision: str | None, file: str | None = None) -> LockError:
        remedy = "attach the locked one, or lock this one anew (pnc_hub.lock.write)"
        return LockError(f"{reason}; {remedy}", repo_id=self.repo_id, revision=revision, file=file)


def write(*clones: Contents, path: str | Path = FILE) -> Path:
    """Lock ``clones``, in a file that may hold others already; those that it holds under the same id are locked anew.

    Args:
        *clones: read from the Hub or from a folder (``Clone.from_pretrained``, ``Attachment.clone``).
        path: the file, which is replaced whole or not at all.

    Returns:
        The path.

    Raises:
        CloneNotFoundError: a clone was never saved, so it has no files.
        LockError: ``path`` is there and is no lock, or it cannot be written.

    Example:
        >>> with pnc_hub.attach(model, "user/clone-birds") as birds:  # doctest: +SKIP
        ...     pnc_hub.lock.write(birds.clone)
        >>> pnc_hub.attach(model, "user/clone-birds", lock="pnc-hub.lock")  # doctest: +SKIP
    """
    path = Path(path).resolve()
    pins = [Pin.of(clone, path) for clone in clones]
    try:
        with _alone(path):
            locked = (read(path) if path.exists() else {}) | {pin.repo_id: pin for pin in pins}
            entries = {name: {"revision": pin.revision, "files": pin.files} for name, pin in sorted(locked.items())}
            with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
                new = Path(folder) / path.name
                new.write_bytes(files.json_bytes(entries))
                os.replace(new, path)
    except OSError as error:
        raise LockError(f"it cannot be written ({error}); nothing was changed", file=str(path)) from error
    return path


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Nobody else on this machine writes the lock meanwhile: two that read it, add theirs and write would lose one."""
    from huggingface_hub.utils import WeakFileLock

    digest = hashlib.sha256(f"{getpass.getuser()} {path}".encode()).hexdigest()
    with WeakFileLock(Path(tempfile.gettempdir(), f"pnc-hub-{digest[:32]}.lock")):
        yield


def read(lock: Lock) -> dict[str, Pin]:
    """The pins by id of ``lock``, a file or what such a file holds.

    Raises:
        LockError: it is no lock.
    """
    if isinstance(lock, Mapping):
        return _parse(lock, "the lock")
    try:
        return _parse(files.read_json(Path(lock), str(lock)), str(lock))
    except LockError:
        raise
    except ArtifactError as error:
        raise LockError(f"it cannot be read as a lock ({error.reason})", file=str(lock)) from error


def find(lock: Lock, origin: str | Path | None) -> Pin:
    """The pin in ``lock`` of the clone from ``origin``: its Hub id, or its folder as a ``Path``.

    Raises:
        LockError: there is none, or it is no lock.
    """
    pins, name = read(lock), _name(origin, lock)
    if name not in pins:
        raise LockError(
            f"it is not in the lock, which holds {', '.join(pins) or 'nothing'}; look at it, then add it"
            " (pnc_hub.lock.write)",
            repo_id=name,
        )
    return pins[name]


def _name(origin: str | Path | None, lock: Lock) -> str:
    """What a clone is called in ``lock``; folders are named from where the lock is, or for one in memory from here."""
    if not isinstance(origin, Path):
        return str(origin)
    start = Path() if isinstance(lock, Mapping) else Path(lock).parent
    seen = Path(os.path.relpath(origin.resolve(), start.resolve())).as_posix()
    return seen if seen.startswith("..") else f"./{seen}"


def _parse(entries: Any, file: str) -> dict[str, Pin]:
    if not isinstance(entries, Mapping) or not all(map(_is_entry, entries.values())):
        raise LockError('not a lock: it holds {id: {"revision": commit, "files": {name: sha256}}}', file=file)
    return {str(name): Pin(str(name), entry["revision"], dict(entry["files"])) for name, entry in entries.items()}


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, Mapping) or set(entry) != {"revision", "files"} or not isinstance(entry["files"], Mapping):
        return False
    pinned = entry["revision"] is None or checks.passes(checks.commit, entry["revision"])
    return pinned and bool(entry["files"]) and all(checks.passes(checks.sha256, one) for one in entry["files"].values())
