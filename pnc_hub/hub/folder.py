"""The folder of a clone: written whole or not at all, and never over files of others."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from pnc_hub.artifact import files
from pnc_hub.artifact.config import LIBRARY_NAME
from pnc_hub.errors import ArtifactError


def put(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Let ``folder`` hold the files ``contents`` and nothing else.

    They are written beside it and then take its place: whatever interrupts it, what was there before is there again.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    new, old = work / "new", work / "old"
    try:
        fill(new, contents)
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


def fill(folder: Path, contents: Mapping[str, bytes]) -> dict[str, Path]:
    """Write ``contents`` to files in ``folder``; the path of each."""
    paths = {file: folder / file for file in contents}
    for file, content in contents.items():
        paths[file].parent.mkdir(parents=True, exist_ok=True)
        paths[file].write_bytes(content)
    return paths


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
