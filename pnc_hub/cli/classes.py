"""Class names as people write them down: in a file, a class a line, or on the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import click

_INDEX = re.compile(r"(?P<label>.*?)\s*(?:\t|,)\s*(?P<index>\d+)")
_FILE_NAME = re.compile(r".*\.(txt|csv|tsv|json)")

Classes = dict[str, int] | list[str | int]


def parse(_ctx: click.Context, _param: click.Parameter, given: str) -> Classes:
    """What ``pnc_hub.clone`` takes as classes, from a file or from the text itself.

    A file has a class a line: its label or its index in the source, or the label, a tab or comma, and the index; or it is
    a JSON object of label and index. The text itself has labels or indices with commas between them.
    """
    path = Path(given)
    if path.is_file():
        entries = _entries(read(path))
    elif _FILE_NAME.fullmatch(given):
        raise click.BadParameter(f"there is no file {given!r}; give one with a class a line, or names: 'heron,crane'")
    else:
        entries = [(part, None) for part in _filled(given.split(","))]
    if not entries:
        raise click.BadParameter(f"{given!r} names no class")
    numbered = [(label, index) for label, index in entries if index is not None]
    if not numbered:
        return [int(label) if label.isdecimal() else label for label, _ in entries]
    if len(numbered) < len(entries):
        missing = next(label for label, index in entries if index is None)
        raise click.BadParameter(f"some classes have an index and {missing!r} has none; give one to all or to none")
    if len(dict(numbered)) < len(numbered):
        twice = next(label for label, _ in numbered if [name for name, _ in numbered].count(label) > 1)
        raise click.BadParameter(f"class {twice!r} is named twice")
    return dict(numbered)


def labels(_ctx: click.Context, _param: click.Parameter, path: Path | None) -> list[str] | None:
    """The lines of a file, in order."""
    return None if path is None else _filled(read(path).splitlines())


def read(path: Path) -> str:
    """The text of a file."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except ValueError as error:
        raise click.BadParameter(f"{str(path)!r} is no text file ({error})") from error


def _entries(text: str) -> list[tuple[str, int | None]]:
    if text.lstrip().startswith("{"):
        return _from_json(text)
    return [_entry(line) for line in _filled(text.splitlines())]


def _entry(line: str) -> tuple[str, int | None]:
    parts = _INDEX.fullmatch(line)
    if parts and parts["label"]:
        return parts["label"], int(parts["index"])
    if "\t" in line:
        raise click.BadParameter(f"{line!r}: a class is written as its label, a tab and its index in the source")
    return line, None


def _from_json(text: str) -> list[tuple[str, int | None]]:
    try:
        pairs: list[tuple[str, int | None]] = json.loads(text, object_pairs_hook=list)
    except ValueError as error:
        raise click.BadParameter(f"a JSON object of label and index is needed ({error})") from error
    for label, index in pairs:
        if isinstance(index, bool) or not isinstance(index, int):
            raise click.BadParameter(f"class {label!r} has the index {index!r:.40}, and a whole number is needed")
    return pairs


def _filled(lines: list[str]) -> list[str]:
    return [line.strip() for line in lines if line.strip()]
