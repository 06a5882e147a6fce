"""The folder of a clone: written whole or not at all, and never over files of others."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from pnc_hub.artifact import files
from pnc_hub.artifact.config import LIBRARY_NAME
from pnc_hub.errors import ArtifactError


def put(folder: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a folder beside ``folder`` that then takes its place.

    Whatever interrupts it, what was there before is there again.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    new, old = work / "new", work / "old"
    try:
        new.mkdir()
        write(new)
        try:
            if folder.exists():
                folder.rename(old)
            new.rename(folder)
        except BaseException:
            if old.exists() and not folder.exists():
                old.rename(folder)
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def is_replaceable(folder: Path) -> bool:
    """Empty, or a clone and nothing else: saving removes what was there."""
    paths = [path.relative_to(folder).as_posix() for path in folder.rglob("*")] if folder.is_dir() else [""]
    if not paths:
        return True
    try:
        config = files.read_json(folder / files.CONFIG, files.CONFIG)
    except ArtifactError:
        return False
    return all(map(files.is_ours, paths)) and isinstance(config, dict) and config.get("library_name") == LIBRARY_NAME
