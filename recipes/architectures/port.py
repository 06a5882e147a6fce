"""The same module in three target architectures, on scikit-learn's digits.

What a ResNet knows of the digits 5 to 9 is cloned into a ConvNeXt that knows 0 to 4, then ported to a MobileNetV2 and a ViT
that know 0 to 4 as well: from images without labels, in closed form. Beside each, the same clone at the input of the target,
where it shares no computation. All is measured on held-out digits that nobody trained or chose on.

python recipes/architectures/port.py --seeds 0 1 2 --json port.json
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch.utils.data import ConcatDataset

sys.path.insert(0, str(Path(__file__).parents[2]))

import pnc_hub
from pnc_hub.artifact import files
from pnc_hub.cli import demo
from pnc_hub.hub.clone import Clone
from pnc_hub.models.insertion import INPUT
from recipes.architectures.families import FAMILIES, NEW, OLD, network
from recipes.frame import rehearsal
from recipes.frame.rows import Rows, markdown, over_seeds, points
from recipes.frame.task import clock
from recipes.method import digits

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


def measured(seed: int, epochs: float) -> list[dict]:
    """One row for every target and way."""
    known = demo.Digits(OLD, seed, train=True)
    networks = network(SOURCE, NEW, seed), network(FIRST, OLD, seed)
    clone, seconds = digits.cloned(*networks, seed, source_args=FAMILIES[SOURCE][1], cut=CUT, epochs=epochs)
    rows = [row(clone, FIRST, "learned", seed, seconds), row(universal(clone), FIRST, "input", seed, 0.0)]
    shown = ConcatDataset([demo.Digits(NEW, seed, train=True), known])
    for other in rehearsal.few(OTHERS):
        receives = network(other, OLD, seed)
        for way, options in (("port", {}), ("port, old labelled", {"target_data": known})):
            started = clock()
            ported = pnc_hub.port(clone, receives, shown, **options, seed=seed, progress=False)
            rows.append(row(ported, other, way, seed, round(clock() - started, 1)))
        rows.append(row(universal(clone), other, "input", seed, 0.0))
    return rows


def universal(clone: Clone) -> Clone:
    """The clone with its adapter for any target alone."""
    adapters = [adapter for adapter in clone.config.adapters if adapter.target is None]
    return Clone(replace(clone.config, adapters=adapters), clone.all_tensors())


def row(clone: Clone, family: str, way: str, seed: int, seconds: float) -> dict:
    """What is lost on either side, and what the adapter weighs that came last."""
    adapter = next(one for one in reversed(clone.config.adapters) if one.target is not None or way == "input")
    at_input = adapter.insertion.name == INPUT
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*not calibrated")  # the rows at the input show what that costs
        shares = digits.measured(clone, network(SOURCE, NEW, seed), network(family, OLD, seed), seed)
    return {
        "target": family,
        "way": way,
        "seed": seed,
        "insertion": adapter.insertion.name,
        "adapter_bytes": clone.nbytes(adapter.file, *[files.TRUNK] * at_input),
        "module_bytes": clone.nbytes(files.WEIGHTS),
        **shares,
        "seconds": seconds,
    }


def table(rows: Sequence[dict]) -> str:
    """Markdown; accuracies in percent."""
    return markdown(
        " | ".join(title for _, title in COLUMNS), ([_cell(name, row[name]) for name, _ in COLUMNS] for row in rows)
    )


def _cell(name: str, value: str | float) -> str:
    if name in SHARES:
        return points(value)[0]
    if name.endswith("bytes"):
        return f"{value:,}"
    return f"{value:.4f}" if name == "auroc" else str(value)


def rows_of(rows: Rows, seed: int, epochs: float) -> list[dict]:
    """Those of one seed; what the file has is not measured again."""
    return rows.of({"seed": seed, "epochs": epochs, "cut": CUT}, lambda: {"rows": measured(seed, epochs)})["rows"]


if __name__ == "__main__":
    over_seeds(__doc__, rows_of, table, seeds=(0, 1, 2), epochs=EPOCHS)
