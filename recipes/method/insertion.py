"""The closed-form insertion curve against training every place, on scikit-learn's digits.

The demo's ResNet (digits 5 to 9) is cloned into its ConvNeXt (digits 0 to 4). One place of each stage of either network is
trained, and so are the place that the curve ranks first and the one that the search chooses, all for the same number of
passes. Regret is the best of them all minus one's own Avg_u, the mean of old and new accuracy on held-out digits that
nobody trained or chose on; two places that differ by less than a point are the same.

python recipes/method/insertion.py --seeds 0 --json insertion.json
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from scipy.stats import spearmanr

sys.path.insert(0, str(Path(__file__).parents[2]))

from pnc_hub.errors import SourceError
from recipes.frame import rehearsal
from recipes.frame.rows import Rows, markdown, over_seeds, points
from recipes.method import digits

# the last module of each stage
INSERTIONS = ("stages.0", "stages.1", "stages.2", "stages.3")
CUTS = ("layer1.1", "layer2.1", "layer3.1", "layer4.1")
BUDGETS = (3_000, 10_000, 20_000, 300_000)
EPOCHS = 8
SHOWN = 12


def rows_of(rows: Rows, seed: int, epochs: float) -> list[dict]:
    """The tables of one seed, beside what identifies them; clones that the file has are not learned again."""

    def learned(epochs: float, **options: object) -> dict:
        settings = {"seed": seed, "epochs": epochs, "options": options}
        return rows.of(settings, partial(measured, seed, epochs, options))

    closed, search = learned(0), learned(epochs)
    curve = closed["curve"]
    pairs = [place_of(place) for place in curve]
    grid = [pair for pair in pairs if pair[0] in INSERTIONS and pair[1] in CUTS]
    grid = rehearsal.few(grid, 2)
    rows_at = {
        pair: learned(epochs, insertion=pair[0], cut=pair[1])
        for pair in dict.fromkeys([*grid, pairs[0], place_of(search)])
    }
    # some places cannot be pruned so far
    trained = {pair: rows_at[pair] for pair in pairs if pair in rows_at and "refused" not in rows_at[pair]}
    return [
        {
            "seed": seed,
            "epochs": epochs,
            "closed": closed,
            "search": search,
            "trained": trained,
            "grid": [pair for pair in grid if pair in trained],
            "budgets": [learned(0, budget={"parameters": most}) for most in rehearsal.few(BUDGETS)],
        }
    ]


def measured(seed: int, epochs: float, options: dict) -> dict:
    """A clone by ``options`` of ``pnc_hub.clone``: where it is, what it costs, how it does on held-out digits."""
    source, target = digits.pair(seed)
    try:
        clone, seconds = digits.cloned(source, target, seed, universal=False, epochs=epochs, **options)
    except SourceError as error:
        return {"refused": str(error)}
    shares = digits.measured(clone, source, target, seed)
    return {
        **{name: shares[name] for name in ("ori", "tar", "avg_u", "auroc")},
        **{name: clone.report[name] for name in ("insertion", "cut", "kept_parameters")},
        "curve": list(clone.curve) if options.get("insertion") is None else [],
        "seconds": seconds,
    }


def table(studies: Sequence[dict]) -> str:
    """The tables of each seed."""
    return "\n\n".join(map(_tables, studies))


def _tables(study: dict) -> str:
    closed, search, trained, grid = (study[name] for name in ("closed", "search", "trained", "grid"))
    curve = closed["curve"]
    best = max([*trained.values(), search], key=lambda row: row["avg_u"])
    first = next(iter(trained.values()))
    glances = {place_of(place): place["avg_u"] for place in curve}
    rank = spearmanr([glances[pair] for pair in grid], [trained[pair]["avg_u"] for pair in grid]).statistic
    ways = [
        (f"the best of all {len(trained)}, each trained", best, sum(row["seconds"] for row in trained.values())),
        ("the curve's first, trained", first, closed["seconds"] + first["seconds"]),
        ("the search (a curve, trials, training of one)", search, search["seconds"]),
        ("closed form alone, not trained", closed, closed["seconds"]),
    ]
    return "\n".join(
        [
            f"Seed {study['seed']}: {len(curve)} places, {len(trained)} of them trained for {study['epochs']:g} passes; rank"
            f" correlation of the curve's Avg_u with that after training over the {len(grid)} of the grid {rank:.2f}.\n",
            regrets(ways, best["avg_u"]),
            "",
            curve_table(curve, trained),
            "",
            budget_table(study["budgets"]),
        ]
    )


def place_of(row: dict) -> tuple[str, str]:
    """(insertion point, cut)."""
    return row["insertion"], row["cut"]


def regrets(ways: Sequence[tuple[str, dict, float]], best: float) -> str:
    """How far each way is from the best that was trained, and what it took."""
    return markdown(
        "way | insertion -> cut | Ori | Tar | Avg_u | regret | kept | seconds",
        (
            [
                *(way, " -> ".join(place_of(row))),
                *points(row["ori"], row["tar"], row["avg_u"], best - row["avg_u"]),
                *(f"{row['kept_parameters']:,}", f"{seconds:.0f}"),
            ]
            for way, row, seconds in ways
        ),
    )


def curve_table(curve: Sequence[dict], trained: dict[tuple[str, str], dict]) -> str:
    """The first places of the curve and all that were trained."""
    return markdown(
        "rank | insertion -> cut | match | Tar | Avg_u | AUROC | parameters | MACs | Avg_u trained",
        (
            [
                *(rank, " -> ".join(place_of(place)), f"{place['match']:.2f}", *points(place["tar"], place["avg_u"])),
                *(f"{place['auroc']:.3f}", f"{place['parameters']:,}", f"{place['macs']:,}"),
                *(points(trained[place_of(place)]["avg_u"]) if place_of(place) in trained else [""]),
            ]
            for rank, place in enumerate(curve, 1)
            if rank <= SHOWN or place_of(place) in trained
        ),
    )


def budget_table(rows: Sequence[dict]) -> str:
    """What is chosen within so many parameters, in closed form."""

    def chosen(row: dict) -> list[str]:
        if "refused" in row:
            return [f"refused: {row['refused']}", "", "", "", ""]
        return [
            " -> ".join(place_of(row)),
            f"{row['kept_parameters']:,}",
            *points(row["ori"], row["tar"], row["avg_u"]),
        ]

    return markdown(
        "parameters, at most | insertion -> cut | kept | Ori | Tar | Avg_u",
        ([f"{row['options']['budget']['parameters']:,}", *chosen(row)] for row in rows),
    )


if __name__ == "__main__":
    over_seeds(__doc__, rows_of, table, seeds=(0,), epochs=EPOCHS)
