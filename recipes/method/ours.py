"""The clone, as methods of a benchmark."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

import pnc_hub
from pnc_hub.models.cost import macs
from recipes.frame.task import REGIMES, Result, Task, clock

KEPT_OF_REPORT = ("insertion", "cut", "auroc_stitched", "auroc_pruned")
# name, regimes, arguments of pnc_hub.clone
VARIANTS: tuple[tuple[str, tuple[str, ...], dict[str, Any]], ...] = (
    ("clone", REGIMES, {}),
    ("clone_closed", REGIMES, {"epochs": 0}),
    ("clone_budget", ("R4",), {"epochs": 0, "locality_budget": 0.01}),
    ("closed_small", ("R4",), {"epochs": 0, "keep": 0.15}),
    ("closed_small_budget", ("R4",), {"epochs": 0, "keep": 0.15, "locality_budget": 0.01}),
)


class Shown(Dataset):
    """What of a task the source's user would have: cloned classes under their row of the source, and unrelated images."""

    def __init__(self, task: Task) -> None:
        """In R2 the unrelated images come with a label that no row of the source has."""
        self.parts = [task.new] if task.regime != "R2" else [task.new, task.old]
        self.targets = [task.rows[position] for position in task.new.targets]
        if task.regime == "R2":
            self.targets += [int(task.source.num_classes)] * len(task.old)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        first = self.parts[0]
        image = first[index][0] if index < len(first) else self.parts[1][index - len(first)][0]
        return image, self.targets[index]


def clone(task: Task, **options: Any) -> Result:
    """``pnc_hub.clone`` with ``options``, attached to the target."""
    started = clock()
    learned = pnc_hub.clone(
        task.source,
        task.target,
        dict(zip(task.labels, task.rows, strict=True)),
        Shown(task),
        target_data=task.old if task.regime in ("R3", "R4") else None,
        source_args=task.source_args,
        universal=False,
        held_out=task.held_out,
        flip=task.new[0][0].shape[0] > 1,  # digits are grey, and no digit is its mirror image
        progress=False,
        seed=task.seed,
        device=task.device,
        **options,
    )
    taken = clock() - started
    device = next(task.target.parameters()).device

    def predict(images: Tensor) -> Tensor:
        with pnc_hub.attach(task.target, learned, on_collision="allow"):
            return task.target(images.to(device))

    image = task.new[0][0][None].to(device)
    report = learned.report
    added = macs(predict, image) - macs(task.target, image)
    return Result(
        predict=predict,
        params=report["kept_parameters"],
        macs=added,
        bytes=report["bytes"],
        images=report["images"],
        seconds=taken,
        extra={name: report[name] for name in KEPT_OF_REPORT if name in report.metrics},
    )


METHODS = {name: (partial(clone, **options), regimes) for name, regimes, options in VARIANTS}
