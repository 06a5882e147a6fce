"""The same module in three target architectures, on scikit-learn's digits.

What a ResNet knows of the digits 5 to 9 is cloned into a ConvNeXt that knows 0 to 4, then ported to a MobileNetV2 and a ViT
that know 0 to 4 as well: from images without labels, in closed form. Beside each, the same clone at the input of the target,
where it shares no computation. All is measured on held-out digits that nobody trained or chose on.

python recipes/architectures/port.py --seeds 0 1 2 --json port.json
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch.utils.data import ConcatDataset, DataLoader

sys.path.insert(0, str(Path(__file__).parents[2]))

import pnc_hub
from pnc_hub.artifact import files
from pnc_hub.cli import demo
from pnc_hub.cloning.measuring.evaluate import accuracy, measure
from pnc_hub.hub.clone import Clone
from pnc_hub.models.insertion import INPUT
from recipes.architectures.families import FAMILIES, NEW, OLD, logits, network
from recipes.frame.rows import Rows
from recipes.frame.task import clock

SOURCE, FIRST, OTHERS = "ResNet", "ConvNeXt", ("MobileNetV2", "ViT")
# The search may take an early cut (conv1 in one seed of three), whose large maps no layer of the others has.
CUT = "layer2.1"
EPOCHS = 10
COLUMNS = (
    ("target", "target"),
    ("way", "way"),
    ("seed", "seed"),
    ("insertion", "read at"),
    ("adapter_bytes", "adapter (bytes)"),
    ("module_bytes", "module (bytes)"),
    ("target_alone", "target alone"),
    ("ori", "Ori"),
    ("source_alone", "source alone"),
    ("tar", "Tar"),
    ("diverted", "diverted"),
    ("auroc", "AUROC"),
    ("seconds", "s"),
)
SHARES = ("target_alone", "ori", "source_alone", "tar", "diverted")


def rows_of(seed: int, epochs: float) -> list[dict]:
    """One row for every target and way."""
    source, target = network(SOURCE, NEW, seed), network(FIRST, OLD, seed)
    known = demo.Digits(OLD, seed, train=True)
    started = clock()
    clone = pnc_hub.clone(
        source,
        target,
        {str(digit): position for position, digit in enumerate(NEW)},
        demo.Digits(NEW, seed, train=True),
        target_data=known,
        source_args=FAMILIES[SOURCE][1],
        cut=CUT,
        flip=False,
        epochs=epochs,
        seed=seed,
        progress=False,
    )
    rows = [row(clone, 0, FIRST, "learned", seed, clock() - started)]
    rows.append(row(universal(clone), 0, FIRST, "input", seed, 0.0))
    shown = ConcatDataset([demo.Digits(NEW, seed, train=True), known])
    for other in OTHERS:
        receives = network(other, OLD, seed)
        for way, options in (("port", {}), ("port, old labelled", {"target_data": known})):
            started = clock()
            ported = pnc_hub.port(clone, receives, shown, **options, seed=seed, progress=False)
            rows.append(row(ported, 1, other, way, seed, clock() - started))
        rows.append(row(universal(clone), 0, other, "input", seed, 0.0))
    return rows


def universal(clone: Clone) -> Clone:
    """The clone with its adapter for any target alone."""
    adapters = [adapter for adapter in clone.config.adapters if adapter.target is None]
    return Clone(replace(clone.config, adapters=adapters), clone.all_tensors())


def row(clone: Clone, place: int, family: str, way: str, seed: int, seconds: float) -> dict:
    """What is lost on either side, and what the adapter at that place of the configuration weighs."""
    target, adapter = network(family, OLD, seed), clone.config.adapters[place]
    at_input = adapter.insertion.name == INPUT
    new, old = (demo.Digits(digits, seed, train=False) for digits in (NEW, OLD))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*not calibrated")  # the rows at the input show what that costs
        found = measure(target, clone, DataLoader(new, 128), DataLoader(old, 128))
    if not found["restored"]:
        raise AssertionError(f"{family} is not what it was before the clone came")
    return {
        "target": family,
        "way": way,
        "seed": seed,
        "insertion": adapter.insertion.name,
        "adapter_bytes": clone.nbytes(adapter.file, *[files.TRUNK] * at_input),
        "module_bytes": clone.nbytes(files.WEIGHTS),
        **{name: found[name] for name in ("target_alone", "ori", "tar", "diverted", "auroc")},
        "source_alone": accuracy(logits(network(SOURCE, NEW, seed), new), torch.tensor(new.targets)),
        "seconds": round(seconds, 1),
    }


def table(rows: Sequence[dict]) -> str:
    """Markdown; accuracies in percent."""
    lines = [f"| {' | '.join(title for _, title in COLUMNS)} |", f"|{' --- |' * len(COLUMNS)}"]
    lines += [f"| {' | '.join(_cell(name, row[name]) for name, _ in COLUMNS)} |" for row in rows]
    return "\n".join(lines)


def _cell(name: str, value: str | float) -> str:
    if name in SHARES:
        return f"{100 * value:.1f}"
    if name.endswith("bytes"):
        return f"{value:,}"
    return f"{value:.4f}" if name == "auroc" else str(value)


def main(argv: Sequence[str] | None = None) -> list[dict]:
    """Measure what the ``--json`` file does not have yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=float, default=EPOCHS, help="passes of the refinement of the clone")
    parser.add_argument("--json", type=Path, help="keep rows in this file, and take from it those that it has")
    arguments = parser.parse_args(argv)
    kept, shown = Rows(arguments.json), []
    for seed in arguments.seeds:
        settings = {"seed": seed, "epochs": arguments.epochs, "cut": CUT}
        found = kept.find(settings)
        if found is None:
            found = settings | {"rows": rows_of(seed, arguments.epochs)}
            kept.add(found)
            print(table(found["rows"]), file=sys.stderr, flush=True)
        shown += found["rows"]
    print(table(shown))
    return shown


if __name__ == "__main__":
    main()
