"""``pnc-hub.lock``: the commit of each clone that a program was tested with, and the sha256 of its files.

A lock is JSON, ``{"user/name": {"revision": commit, "files": {name: sha256}}}``, to be kept with the program that attaches
the clones. It is what a repository's name is not: the same clone tomorrow, whoever owns the name by then.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pnc_hub import files, hub
from pnc_hub.errors import ArtifactError, LockError

if TYPE_CHECKING:
    from pnc_hub.artifact import Clone

FILE = "pnc-hub.lock"
_SHA256 = re.compile(r"[0-9a-f]{64}")

Lock = str | Path | Mapping[str, Any]


@dataclass(frozen=True)
class Pin:
    """What a lock holds of one clone.

    Attributes:
        repo_id: ``user/name``, or a folder as it is named where it is attached.
        revision: the commit; None for a folder.
        files: sha256 by name of every file but the card.
    """

    repo_id: str
    revision: str | None
    files: dict[str, str]

    @classmethod
    def of(cls, clone: Clone) -> Pin:
        """The pin of a clone that was read from the Hub or from a folder."""
        return cls(str(clone.repo_id), clone.revision, clone.digests)

    def resolve(self, revision: str | None) -> str | None:
        """The revision to read where ``revision`` was asked for: the commit itself, if nothing else was."""
        if revision is None:
            return self.revision
        if hub.COMMIT.fullmatch(revision) and revision != self.revision:
            raise self._refusal(f"commit {self.revision} is locked", revision)
        return revision

    def check(self, clone: Clone) -> None:
        """Raise ``LockError`` unless ``clone`` is the one that was locked."""
        found = Pin.of(clone)
        if found.revision != self.revision:
            raise self._refusal(f"commit {self.revision} is locked", found.revision)
        for file in sorted(found.files.keys() | self.files.keys()):
            if found.files.get(file) != self.files.get(file):
                raise self._refusal(
                    f"its sha256 is {found.files.get(file)}, and {self.files.get(file)} is locked", found.revision, file
                )

    def _refusal(self, reason: str, revision: str | None, file: str | None = None) -> LockError:
        remedy = "attach the locked one, or lock this one anew (pnc_hub.lock.write)"
        return LockError(f"{reason}; {remedy}", repo_id=self.repo_id, revision=revision, file=file)


def write(*clones: Clone, path: str | Path = FILE) -> Path:
    """Lock ``clones``, in a file that may hold others already; those that it holds under the same id are locked anew.

    Args:
        *clones: read from the Hub or from a folder (``Clone.from_pretrained``, ``Attachment.clone``).
        path: the file, which is replaced whole or not at all.

    Returns:
        The path.

    Raises:
        CloneNotFoundError: a clone was never saved, so it has no files.
        LockError: ``path`` is there and is no lock.

    Example:
        >>> with pnc_hub.attach(model, "user/clone-birds") as birds:  # doctest: +SKIP
        ...     pnc_hub.lock.write(birds.clone)
        >>> pnc_hub.attach(model, "user/clone-birds", lock="pnc-hub.lock")  # doctest: +SKIP
    """
    path = Path(path)
    pins = read(path) if path.exists() else {}
    pins.update((pin.repo_id, pin) for pin in map(Pin.of, clones))
    entries = {name: asdict(pin) for name, pin in sorted(pins.items())}
    for entry in entries.values():
        del entry["repo_id"]
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        files.write_json(Path(folder) / path.name, entries)
        os.replace(Path(folder) / path.name, path)
    return path


def read(lock: Lock) -> dict[str, Pin]:
    """The pins of a lock by id.

    Args:
        lock: a file, or what such a file holds.

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
        raise LockError(f"it can not be read as a lock ({error.reason})", file=str(lock)) from error


def find(lock: Lock, name: str | None) -> Pin:
    """The pin of the clone called ``name``.

    Raises:
        LockError: there is none, or it is no lock.
    """
    pins = read(lock)
    if name not in pins:
        raise LockError(
            f"it is not in the lock, which holds {', '.join(pins) or 'nothing'}; look at it, then add it"
            " (pnc_hub.lock.write)",
            repo_id=name,
        )
    return pins[name]


def _parse(entries: Any, file: str) -> dict[str, Pin]:
    if not isinstance(entries, Mapping) or not all(map(_is_entry, entries.values())):
        raise LockError('not a lock: it holds {id: {"revision": commit, "files": {name: sha256}}}', file=file)
    return {str(name): Pin(str(name), entry["revision"], dict(entry["files"])) for name, entry in entries.items()}


def _is_entry(entry: Any) -> bool:
    def is_match(pattern: re.Pattern[str], value: Any) -> bool:
        return isinstance(value, str) and pattern.fullmatch(value) is not None

    if not isinstance(entry, Mapping) or set(entry) != {"revision", "files"} or not isinstance(entry["files"], Mapping):
        return False
    known = entry["revision"] is None or is_match(hub.COMMIT, entry["revision"])
    return known and bool(entry["files"]) and all(is_match(_SHA256, digest) for digest in entry["files"].values())
