"""The closed-form insertion curve against training every place, on scikit-learn's digits.

The demo's ResNet (digits 5 to 9) is cloned into its ConvNeXt (digits 0 to 4). One place of each stage of either network is
trained, and so are the place that the curve ranks first and the one that the search chooses, all for the same number of
passes. Regret is the best of them all minus one's own Avg_u, the mean of old and new accuracy on held-out digits that
nobody trained or chose on; two places that differ by less than a point are the same.

python recipes/method/insertion.py --seeds 0 --json insertion.json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from scipy.stats import spearmanr
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).parents[2]))

import pnc_hub
from pnc_hub.cli import demo
from pnc_hub.cloning.measuring.evaluate import measure
from pnc_hub.errors import SourceError
from recipes.frame.rows import Rows
from recipes.frame.task import clock
from recipes.method import digits

# the last module of each stage
INSERTIONS = ("stages.0", "stages.1", "stages.2", "stages.3")
CUTS = ("layer1.1", "layer2.1", "layer3.1", "layer4.1")
BUDGETS = (3_000, 10_000, 20_000, 300_000)
EPOCHS = 8
SHOWN = 12


class Study:
    """One seed: every clone that is learned is a row, and rows that the file has are not computed again."""

    def __init__(self, rows: Rows, seed: int) -> None:
        """``rows`` gets what is new."""
        self.rows, self.seed = rows, seed

    def row(self, epochs: float, **options: object) -> dict:
        """A clone by ``options`` of ``pnc_hub.clone``: where it is, what it costs, how it does on held-out digits."""
        settings = {"seed": self.seed, "epochs": epochs, "options": options}
        row = self.rows.find(settings)
        if row is None:
            row = settings | self._measured(epochs, options)
            self.rows.add(row)
            print({name: value for name, value in row.items() if name != "curve"}, file=sys.stderr, flush=True)
        return row

    def _measured(self, epochs: float, options: dict) -> dict:
        source, target = digits.pair(self.seed)
        started = clock()
        try:
            clone = pnc_hub.clone(
                source,
                target,
                {str(digit): position for position, digit in enumerate(demo.SOURCE_DIGITS)},
                demo.Digits(demo.SOURCE_DIGITS, self.seed, train=True),
                target_data=demo.Digits(demo.TARGET_DIGITS, self.seed, train=True),
                source_args=demo.SOURCE_ARGS,
                universal=False,
                flip=False,
                epochs=epochs,
                seed=self.seed,
                progress=False,
                **options,
            )
        except SourceError as error:
            return {"refused": str(error)}
        seconds = clock() - started
        shown = (demo.Digits(known, self.seed, train=False) for known in (demo.SOURCE_DIGITS, demo.TARGET_DIGITS))
        found = measure(target, clone, *(DataLoader(part, 128) for part in shown))
        return {
            **{name: found[name] for name in ("ori", "tar", "avg_u", "auroc")},
            **{name: clone.report[name] for name in ("insertion", "cut", "kept_parameters")},
            "curve": list(clone.curve) if options.get("insertion") is None else [],
            "seconds": round(seconds, 1),
        }


def study(rows: Rows, seed: int, epochs: float) -> str:
    """Everything for one seed; the tables as Markdown."""
    this = Study(rows, seed)
    closed, search = this.row(0), this.row(epochs)
    curve = closed["curve"]
    pairs = [place_of(place) for place in curve]
    grid = [pair for pair in pairs if pair[0] in INSERTIONS and pair[1] in CUTS]
    chosen = place_of(search)
    trained = {
        pair: this.row(epochs, insertion=pair[0], cut=pair[1]) for pair in dict.fromkeys([*grid, pairs[0], chosen])
    }
    trained = {
        pair: row for pair, row in trained.items() if "refused" not in row
    }  # places that can not be pruned so far
    grid = [pair for pair in grid if pair in trained]
    budgets = [this.row(0, budget={"parameters": most}) for most in BUDGETS]
    best = max([*trained.values(), search], key=lambda row: row["avg_u"])
    first = next(trained[pair] for pair in pairs if pair in trained)
    exhaustive = sum(row["seconds"] for row in trained.values())
    glances = {place_of(place): place["avg_u"] for place in curve}
    rank = spearmanr([glances[pair] for pair in grid], [trained[pair]["avg_u"] for pair in grid]).statistic
    return "\n".join(
        [
            f"Seed {seed}: {len(pairs)} places, {len(trained)} of them trained for {epochs:g} passes; rank correlation of the"
            f" curve's Avg_u with that after training over the {len(grid)} of the grid {rank:.2f}.\n",
            *regrets(
                [
                    (f"the best of all {len(trained)}, each trained", best, exhaustive),
                    ("the curve's first, trained", first, closed["seconds"] + first["seconds"]),
                    ("the search (a curve, trials, training of one)", search, search["seconds"]),
                    ("closed form alone, not trained", closed, closed["seconds"]),
                ],
                best["avg_u"],
            ),
            "",
            *curve_table(curve, trained),
            "",
            *budget_table(budgets),
        ]
    )


def place_of(row: dict) -> tuple[str, str]:
    """(insertion point, cut)."""
    return row["insertion"], row["cut"]


def regrets(ways: Sequence[tuple[str, dict, float]], best: float) -> list[str]:
    """One line for each way to choose a place."""
    lines = ["| way | insertion -> cut | Ori | Tar | Avg_u | regret | kept | seconds |", f"|{' --- |' * 8}"]
    for name, row, seconds in ways:
        shares = " | ".join(
            f"{100 * value:.1f}" for value in (row["ori"], row["tar"], row["avg_u"], best - row["avg_u"])
        )
        lines.append(
            f"| {name} | {' -> '.join(place_of(row))} | {shares} | {row['kept_parameters']:,} | {seconds:.0f} |"
        )
    return lines


def curve_table(curve: Sequence[dict], trained: dict[tuple[str, str], dict]) -> list[str]:
    """The first places of the curve and all that were trained."""
    lines = [
        "| rank | insertion -> cut | match | Tar | Avg_u | AUROC | parameters | MACs | Avg_u trained |",
        f"|{' --- |' * 9}",
    ]
    for rank, place in enumerate(curve, 1):
        after = trained.get(place_of(place))
        if rank > SHOWN and after is None:
            continue
        trained_to = "" if after is None else f"{100 * after['avg_u']:.1f}"
        lines.append(
            f"| {rank} | {' -> '.join(place_of(place))} | {place['match']:.2f} | {100 * place['tar']:.1f} |"
            f" {100 * place['avg_u']:.1f} | {place['auroc']:.3f} | {place['parameters']:,} | {place['macs']:,} | {trained_to} |"
        )
    return lines


def budget_table(rows: Sequence[dict]) -> list[str]:
    """What is chosen within so many parameters, in closed form."""
    lines = ["| parameters, at most | insertion -> cut | kept | Ori | Tar | Avg_u |", f"|{' --- |' * 6}"]
    for row in rows:
        most = f"{row['options']['budget']['parameters']:,}"
        if "refused" in row:
            lines.append(f"| {most} | refused: {row['refused']} | | | | |")
            continue
        shares = " | ".join(f"{100 * row[name]:.1f}" for name in ("ori", "tar", "avg_u"))
        lines.append(f"| {most} | {' -> '.join(place_of(row))} | {row['kept_parameters']:,} | {shares} |")
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    """Train what the ``--json`` file does not have yet, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=float, default=EPOCHS, help="passes of each training")
    parser.add_argument("--json", type=Path, help="keep rows in this file, and take from it those that it has")
    arguments = parser.parse_args(argv)
    rows = Rows(arguments.json)
    for seed in arguments.seeds:
        print(study(rows, seed, arguments.epochs), flush=True)


if __name__ == "__main__":
    main()
