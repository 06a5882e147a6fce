"""What a progress bar says while a clone is learned: which phase of how many, and how much of it is left."""

from __future__ import annotations

from typing import Any

from tqdm.auto import tqdm

PHASES = ("read images", "judge places", "prune", "train", "measure")


def begin(bar: tqdm[Any], phase: str, total: int | None = None) -> None:
    """Start the bar anew for one of ``PHASES``, of so many steps if they are known."""
    bar.reset(total)
    bar.set_description(f"{PHASES.index(phase) + 1}/{len(PHASES)} {phase}")
