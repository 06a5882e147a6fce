"""The search from coarse to fine beside judging every pair of insertion point and cut, both in closed form with whole tails.

Each way chooses on the images that learning chooses on. What is chosen is measured on those that no choice was made on, with
a gate learned and calibrated as ever. Regret is the exhaustive choice's Avg_u, the mean of old and new accuracy, minus the
search's. Seconds are of the processor; both networks have looked at the images before.

python recipes/method/search.py digits --seeds 0 1 2 3 4 --json search.json
python recipes/method/search.py cifar10 real --data DIR --json search.json
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from pnc_hub.cloning.fitting import gate as gates
from pnc_hub.cloning.fitting.stitch import Candidate, Stitches
from pnc_hub.cloning.images.batches import Batches
from pnc_hub.cloning.measuring.evaluate import evidence, gather_sides
from pnc_hub.cloning.networks import Networks
from pnc_hub.cloning.search import select
from pnc_hub.cloning.search.curve import insertion_curve, judge
from pnc_hub.module import CloneModule
from recipes.frame import rehearsal, training
from recipes.frame.rows import Rows, markdown, points
from recipes.method import benchmark, ours

SEEDS = {"digits": (0, 1, 2, 3, 4), "cifar10": (1993, 1994, 1995, 1996, 1997), "real": (1993, 1994, 1995, 1996, 1997)}
MOST = 2000  # images of each side that a choice is measured on


class _Ended(Exception):
    """Learning goes no further than the search."""


def measured(arguments: argparse.Namespace, name: str, seed: int) -> dict[str, Any]:
    """Both choices on one task, what they are worth, and what they took."""
    row: dict[str, Any] = {}

    def study(networks: Networks, batches: Batches, *_: Any) -> None:
        row.update(compared(networks, batches))
        raise _Ended

    task = benchmark.BENCHMARKS[name].make(arguments, seed, "R4")
    with patch("pnc_hub.cloning.learn.best_clone", study):
        try:
            ours.clone(task, epochs=0)
        except _Ended:
            return row
    raise AssertionError("learning came to an end without a search")


def compared(networks: Networks, batches: Batches) -> dict[str, Any]:
    """The search and the exhaustive curve over the same pairs."""
    pairs = rehearsal.few(select.search_pairs(networks, (None, None)), 4)
    head, tail = networks.head_rows(select.reject_rows(networks, batches)), cache(networks.tail)

    def whole(candidate: Candidate) -> CloneModule:
        return CloneModule(candidate.adapter, tail(candidate.cut.name), head)

    def stitched() -> Stitches:
        return Stitches(networks, batches, pairs, select.MAX_RIDGE_IMAGES // 2)

    started = time.process_time()
    for _ in stitched().read():
        pass
    read = time.process_time()
    curve = insertion_curve(networks, batches, stitched(), whole, lambda judged: None)
    searched = time.process_time()
    stitches = stitched()
    candidates = [stitches.candidate(*pair) for pair in pairs]
    exhaustive = judge(networks, batches, [(candidate, whole(candidate)) for candidate in candidates])
    ended = time.process_time()
    choices = {"search": curve[0].candidate, "exhaustive": exhaustive[0].candidate}
    return {
        **{f"{way}_place": f"{one.insertion.name} -> {one.cut.name}" for way, one in choices.items()},
        **{f"{way}_avg_u": held_out(networks, batches, one, whole(one)) for way, one in choices.items()},
        "pairs": len(pairs),
        "looked_at": len(curve),
        "read_seconds": read - started,
        "search_seconds": searched - read,
        "exhaustive_seconds": ended - searched,
    }


@torch.no_grad()
def held_out(networks: Networks, batches: Batches, candidate: Candidate, module: CloneModule) -> float:
    """Avg_u of a candidate on images that no choice was made on."""
    point = candidate.insertion.name

    def answers(images: Any) -> dict[str, Any]:
        logits, features = networks.target(images, [point])
        return {"target": logits, "answers": [module(features[point])[:2]]}

    fit, choose, report = (
        evidence(gather_sides(answers, batches, part, MOST), 0) for part in ("fit", "choose", "report")
    )
    gate = gates.fit(*fit, choose, False, batches.covered, networks.odds)
    gate.offset.fill_(gates.best_offset(gate, *choose, None, batches.covered))
    new, old = report
    return (new.accuracy(gate, True) + old.accuracy(gate, False)) / 2


def table(rows: Sequence[dict]) -> str:
    """One line for each task, then the means."""

    def line(row: dict) -> list[Any]:
        regret = row["exhaustive_avg_u"] - row["search_avg_u"]
        return [
            *(row["benchmark"], row["seed"], row["search_place"], row["exhaustive_place"]),
            *points(row["search_avg_u"], row["exhaustive_avg_u"], regret),
            *(f"{row['looked_at']} of {row['pairs']}", f"{row['read_seconds']:.0f}"),
            *(f"{row['search_seconds']:.1f}", f"{row['exhaustive_seconds']:.1f}"),
        ]

    titles = (
        "benchmark | seed | search | exhaustive | Avg_u, search | exhaustive | regret | pairs judged | s, read | s, search"
        " | s, exhaustive"
    )
    regret = statistics.mean(row["exhaustive_avg_u"] - row["search_avg_u"] for row in rows)
    return f"{markdown(titles, map(line, rows))}\n\nMean regret {100 * regret:.2f} points over {len(rows)} tasks."


def main(argv: Sequence[str] | None = None) -> list[dict]:
    """Measure what the JSON file has not yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("benchmarks", nargs="+", choices=list(SEEDS))
    parser.add_argument("--data", help="folder that holds the data sets")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--json", type=Path, help="keep rows in this file, and take from it those that it has")
    parser.add_argument("--cache", type=Path, help="folder for trained networks (recipes/.cache)")
    parser.add_argument("--rehearse", action="store_true", help=rehearsal.OPTION)
    arguments = parser.parse_args(argv)
    if arguments.rehearse:
        rehearsal.begin()
    if arguments.cache:
        training.use_cache(arguments.cache)
    rows, shown = Rows(arguments.json), []
    for name in arguments.benchmarks:
        task = argparse.Namespace(
            data=arguments.data, preset="quick", device="cpu", clone="five" if name == "digits" else 5
        )
        seeds = arguments.seeds or SEEDS[name]
        shown += [rows.of({"benchmark": name, "seed": seed}, partial(measured, task, name, seed)) for seed in seeds]
    print(table(shown), flush=True)
    return shown


if __name__ == "__main__":
    main()
