"""How every benchmark is run and measured: tasks x methods, one row each, all from joint logits on two test sets.

Nobody tells a method which side an image belongs to. Rows that the ``--json`` file has already are not computed again.
"""

from __future__ import annotations

import argparse
import importlib
import math
import statistics
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from pnc_hub.cloning.fitting.gate import auroc
from pnc_hub.models.fingerprint import state_digest
from recipes.frame import rehearsal, training
from recipes.frame.reading import MissingDataError
from recipes.frame.rows import Rows, markdown
from recipes.frame.task import REGIMES, NotForThisTask, Result, Task

SEEDS = (1993, 1994, 1995)
PIXELS = 500 * 32 * 32  # of a batch: large photos in large batches take gigabytes
# groups of methods, and the file of each
METHOD_FILES = {
    "ours": "recipes.method.ours",
    "baselines": "recipes.compare.baselines",
    "ablations": "recipes.method.ablations",
}
Method = Callable[[Task], Result]
# columns of the table: title -> (name in a row, factor, format)
COLUMNS = {
    "Ori": ("ori", 100, ".1f"),
    "Tar": ("tar", 100, ".1f"),
    "Avg_u": ("avg_u", 100, ".1f"),
    "AUROC": ("auroc", 1, ".4f"),
    "diverted %": ("diverted", 100, ".1f"),
    "KL": ("kl", 1, ".2f"),
    "parameters": ("params", 1, ",.0f"),
    "kept %": ("kept", 100, ".0f"),
    "MACs": ("macs", 1, ",.0f"),
    "s": ("seconds", 1, ",.0f"),
}


@dataclass(frozen=True)
class Benchmark:
    """What a benchmark adds to the common command line.

    Attributes:
        name: as in the tables.
        make: (arguments, seed, regime) -> the task.
        options: arguments of its own for ``add_argument``, by name; they are part of what identifies a row.
        describe: (arguments, seed) -> a line on its networks, for ``--networks``.
        seeds: run where none are given.
        regimes: those that it has.
        needs_data: whether there is nothing to run without ``--data``.
    """

    name: str
    make: Callable[[argparse.Namespace, int, str], Task]
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    describe: Callable[[argparse.Namespace, int], str] | None = None
    seeds: tuple[int, ...] = SEEDS
    regimes: tuple[str, ...] = REGIMES
    needs_data: bool = True


def groups() -> dict[str, dict[str, tuple[Method, tuple[str, ...]]]]:
    """Every method by the file that has it: name -> (function, regimes that it has a use for)."""
    return {group: importlib.import_module(file).METHODS for group, file in METHOD_FILES.items()}


def methods() -> dict[str, tuple[Method, tuple[str, ...]]]:
    """Every method."""
    return {name: method for own in groups().values() for name, method in own.items()}


def chosen(names: Sequence[str]) -> list[str]:
    """Methods by name, and all of a file by the file's name."""
    files = groups()
    return list(dict.fromkeys(one for name in names for one in files.get(name, [name])))


def main(benchmark: Benchmark, argv: Sequence[str] | None = None) -> list[dict]:
    """Run a benchmark from the command line; returns its rows."""
    parser = argparse.ArgumentParser(description=f"Benchmark {benchmark.name}.")
    add_options(parser, benchmark)
    return carried_out(benchmark, parser.parse_args(argv))


def carried_out(benchmark: Benchmark, arguments: argparse.Namespace) -> list[dict]:
    """Do what the command line asks for, and print the table."""
    if arguments.rehearse:
        rehearsal.begin()
    if arguments.cache:
        training.use_cache(arguments.cache)
    # a regime without target images is warned of once per clone, and that is what is being measured
    warnings.filterwarnings("ignore", message="the gate has seen images of the cloned classes alone")
    try:
        if arguments.networks:
            for seed in arguments.seeds:
                print(benchmark.describe(arguments, seed) if benchmark.describe else "no networks to train", flush=True)
            return []
        rows = list(run(benchmark, arguments))
    except MissingDataError as error:
        raise SystemExit(str(error)) from None
    print(table(rows))
    return rows


def add_options(parser: argparse.ArgumentParser, benchmark: Benchmark) -> None:
    """The options of ``benchmark``."""
    parser.add_argument("--data", required=benchmark.needs_data, help="folder that holds the data sets")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(benchmark.seeds))
    parser.add_argument("--regime", nargs="+", choices=benchmark.regimes, default=list(benchmark.regimes))
    known = [*groups(), *methods()]
    parser.add_argument("--methods", nargs="+", choices=known, default=["ours", "baselines"], metavar="METHOD")
    parser.add_argument("--json", type=Path, help="keep rows in this file, and take from it those that it has")
    parser.add_argument("--device", help="cpu to stay off an accelerator")
    parser.add_argument("--cache", type=Path, help="folder for trained networks (recipes/.cache)")
    parser.add_argument("--preset", choices=("quick", "full"), default="quick", help="size of networks and of training")
    parser.add_argument("--networks", action="store_true", help="train the networks and say how good they are, no more")
    parser.add_argument("--rehearse", action="store_true", help=rehearsal.OPTION)
    for name, options in benchmark.options.items():
        parser.add_argument(name, **options)


def run(benchmark: Benchmark, arguments: argparse.Namespace) -> Iterator[dict]:
    """The rows that ``arguments`` ask for, in order; new ones are added to the file as soon as they are known."""
    known = methods()
    rows = Rows(arguments.json)
    own = {name: getattr(arguments, name.lstrip("-").replace("-", "_")) for name in benchmark.options}
    for seed in arguments.seeds:
        for regime in arguments.regime:
            task = None
            for name in chosen(arguments.methods):
                method, regimes = known[name]
                if regime not in regimes:
                    continue
                settings = {"benchmark": benchmark.name, "preset": arguments.preset, "regime": regime, "seed": seed}
                settings |= {option.lstrip("-"): value for option, value in own.items()} | {"method": name}
                row = rows.find(settings)
                if row is None:
                    task = task or benchmark.make(arguments, seed, regime)
                    try:
                        row = settings | measure(task, method)
                    except NotForThisTask as reason:
                        print(f"{benchmark.name} {seed} {regime} {name}: left out, {reason}", file=sys.stderr)
                        continue
                    rows.add(row)
                    print(_line(row), file=sys.stderr, flush=True)
                yield row


def measure(task: Task, method: Method) -> dict[str, Any]:
    """Let ``method`` do ``task``, and measure what it made."""
    torch.manual_seed(task.seed)
    alone, old_labels = logits_of(task.target, task.old_test)
    source, positions = logits_of(task.source, task.new_test)
    before = state_digest(task.target)
    result = method(task)
    old, _ = logits_of(result.predict, task.old_test)
    new, _ = logits_of(result.predict, task.new_test)
    if result.extra.get("oracle"):
        # told which side an image belongs to, so the other side has no answer to it
        old[:, alone.shape[1] :], new[:, : alone.shape[1]] = -math.inf, -math.inf
    size = sum(parameter.numel() for parameter in task.source.parameters())
    return {
        **metrics(old, old_labels, new, positions, alone),
        "source_alone": _share(source[:, task.rows].argmax(1) == positions),
        "params": result.params,
        "kept": result.params / size,
        "macs": result.macs,
        "bytes": result.bytes,
        "images": result.images,
        "seconds": round(result.seconds, 2),
        "shots": round(len(task.new) / len(task.labels)),
        "epochs": task.epochs,
        **result.extra,
        "restored": state_digest(task.target) == before,
    }


def metrics(old: Tensor, old_labels: Tensor, new: Tensor, positions: Tensor, alone: Tensor) -> dict[str, float]:
    """Accuracy, gate and locality from joint logits.

    Args:
        old: joint logits [N, T + K] of test images of the target's classes.
        old_labels: their classes [N].
        new: joint logits [M, T + K] of test images of the cloned classes.
        positions: their positions [M] among the cloned classes.
        alone: logits [N, T] of the target alone.

    Returns:
        Fractions; ``auroc`` and ``fpr95`` are of the log-odds of the new columns, ``kl`` is the mean of KL(target alone ||
        joint) in nats.
    """
    old, new, alone = old.double(), new.double(), alone.double()
    width, count = alone.shape[1], old.shape[1] - alone.shape[1]
    ori, tar = _share(old.argmax(1) == old_labels), _share(new.argmax(1) == positions + width)
    inside, outside = ((logits[:, width:].logsumexp(1) - logits[:, :width].logsumexp(1)) for logits in (new, old))
    before, after = alone.log_softmax(1), old.log_softmax(1)[:, :width]
    return {
        "ori": ori,
        "tar": tar,
        "avg_u": (ori + tar) / 2,
        "avg_w": (width * ori + count * tar) / (width + count),
        "auroc": auroc(*_ranked(inside, outside)),
        "fpr95": _share(outside >= inside.sort(descending=True).values[math.ceil(0.95 * len(inside)) - 1]),
        "diverted": _share(old.argmax(1) >= width),
        "kl": float((before.exp() * (before - after)).sum(1).mean()),
        "agreement": _share(old.argmax(1) == alone.argmax(1)),
        "target_alone": _share(alone.argmax(1) == old_labels),
    }


@torch.no_grad()
def logits_of(predict: Callable[[Tensor], Tensor], data: Dataset) -> tuple[Tensor, Tensor]:
    """Logits [N, C] and labels [N] of all of ``data``, on the CPU.

    A network gets its images where it lives, a function gets them on the CPU.
    """
    device = next(predict.parameters()).device if isinstance(predict, nn.Module) else None
    rows, labels = [], []
    for images, classes in DataLoader(data, max(16, PIXELS // data[0][0][0].numel())):
        rows.append(predict(images if device is None else images.to(device)).float().cpu())
        labels.append(classes)
    return torch.cat(rows), torch.cat(labels)


def table(rows: Sequence[dict]) -> str:
    """Means over seeds as a Markdown table, a line for each regime and method."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault((row["regime"], row["method"]), []).append(row)
    cells = [
        [
            *group,
            " ".join(str(row["seed"]) for row in own),
            *(_cell(statistics.fmean(row[name] for row in own), *shown) for name, *shown in COLUMNS.values()),
        ]
        for group, own in groups.items()
    ]
    lines = [markdown(" | ".join(["regime", "method", "seeds", *COLUMNS]), cells)]
    alone = {(row["seed"], row["target_alone"], row["source_alone"]) for row in rows}
    if alone:
        target, source = (100 * statistics.fmean(entry[place] for entry in alone) for place in (1, 2))
        name = rows[0]["benchmark"]
        lines.append(f"\n{name}: target alone {target:.1f} %, source alone among the cloned classes {source:.1f} %.")
    return "\n".join(lines)


def _line(row: dict) -> str:
    parts = (f"{title} {_cell(row[name], *shown)}" for title, (name, *shown) in COLUMNS.items())
    return f"{row['benchmark']} {row['seed']} {row['regime']} {row['method']}: {', '.join(parts)}"


def _cell(value: float, factor: float, form: str) -> str:
    return f"{factor * value:{form}}"


def _share(hits: Tensor) -> float:
    return float(hits.double().mean())


def _ranked(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Scores as their ranks among all: infinite ones, of a method that rules a side out altogether, are no trouble there."""
    ranks = torch.cat([first, second]).unique(return_inverse=True)[1]
    return ranks[: len(first)], ranks[len(first) :]
