"""Measured rows: each is measured once, kept in a JSON file that is whole at every moment, and shown as Markdown."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from recipes.frame import rehearsal


class Rows:
    """The rows in a JSON file."""

    def __init__(self, path: Path | None) -> None:
        """Begins with what the file has; ``None`` keeps them in memory alone."""
        self.path = path
        self.rows: list[dict] = json.loads(path.read_text()) if path and path.exists() else []

    def find(self, settings: dict) -> dict | None:
        """The row of these settings, if it is there."""
        return next((row for row in self.rows if all(row.get(key) == value for key, value in settings.items())), None)

    def add(self, row: dict) -> None:
        """Keep a row and write the file anew."""
        self.rows.append(row)
        if self.path:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            part = self.path.with_name(f"{self.path.name}.{os.getpid()}")
            part.write_text(json.dumps(self.rows, indent=1) + "\n")
            part.replace(self.path)

    def of(self, settings: dict, measure: Callable[[], dict]) -> dict:
        """The row of these settings; if there is none, what ``measure()`` gives is added to them and kept."""
        row = self.find(settings)
        if row is None:
            row = settings | measure()
            self.add(row)
            print(
                {key: value for key, value in row.items() if not isinstance(value, list)}, file=sys.stderr, flush=True
            )
        return row


def markdown(titles: str, rows: Iterable[Sequence[Any]]) -> str:
    """A table of cells, which are written as they print; ``titles`` are separated by ``|``."""
    lines = [titles.split(" | "), ["---"] * len(titles.split(" | ")), *rows]
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in lines)


def points(*shares: float) -> list[str]:
    """Accuracies as a table has them, in percent."""
    return [f"{100 * share:.1f}" for share in shares]


def over_seeds(
    about: str,
    measured: Callable[[Rows, int, float], list[dict]],
    table: Callable[[Sequence[dict]], str],
    *,
    seeds: Sequence[int],
    epochs: float,
    argv: Sequence[str] | None = None,
) -> list[dict]:
    """The command line of a study that is repeated over seeds: measure what is not in the file yet, print the table.

    Args:
        about: what it is, for ``--help``.
        measured: (rows of the file, seed, passes of each training) -> the rows to show.
        table: of rows.
        seeds: by default.
        epochs: by default.
        argv: the command line.
    """
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(seeds))
    parser.add_argument("--epochs", type=float, default=epochs, help="passes of each training")
    parser.add_argument("--json", type=Path, help="keep rows in this file, and take from it those that it has")
    parser.add_argument("--rehearse", action="store_true", help=rehearsal.OPTION)
    arguments = parser.parse_args(argv)
    if arguments.rehearse:
        rehearsal.begin()
    rows = Rows(arguments.json)
    shown = [row for seed in arguments.seeds for row in measured(rows, seed, arguments.epochs)]
    print(table(shown), flush=True)
    return shown
