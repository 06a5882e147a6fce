"""One experiment: a source, a target, the classes to clone, and the images that a regime allows.

Regimes: R1 images of the cloned classes alone; R2 and unlabelled images of neither side's classes; R3 and 20 images of each
target class; R4 and all training images of the target's classes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset


class NotForThisTask(Exception):
    """A method has nothing to do here."""


def clock() -> float:
    """Seconds: of the processor where there is no accelerator, so that others' work on the machine does not count."""
    if not torch.cuda.is_available():
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


REGIMES = ("R1", "R2", "R3", "R4")
FEW = 20


@dataclass
class Task:
    """What every method is given. Images are tensors as the target takes them.

    Attributes:
        benchmark: its name, as in the tables.
        seed: of class order, splits and training.
        regime: one of ``REGIMES``.
        source: network that knows the cloned classes, in eval mode.
        target: network that should receive them, in eval mode.
        labels: names of the cloned classes.
        rows: for each of them, its row of the source's head.
        new: training images of the cloned classes, (image, position in ``labels``).
        old: images of the target's classes, (image, class), as the regime allows; in R2 unrelated ones, (image, -1); or None.
        new_test: test images of the cloned classes.
        old_test: test images of the target's classes.
        untrained: makes an untrained network like the target with so many classes.
        epochs: passes that networks of this benchmark are trained for.
        source_args: constructor arguments of the source that are not timm's defaults.
        device: where to train.
        held_out: share of the images that a clone keeps back three times: to choose, to calibrate and to report.
    """

    benchmark: str
    seed: int
    regime: str
    source: nn.Module
    target: nn.Module
    labels: list[str]
    rows: list[int]
    new: Dataset
    old: Dataset | None
    new_test: Dataset
    old_test: Dataset
    untrained: Callable[[int], nn.Module] | None = None
    epochs: int = 15
    source_args: dict[str, Any] = field(default_factory=dict)
    device: str | None = None
    held_out: float = 0.05


@dataclass
class Result:
    """What a method made of a task.

    Attributes:
        predict: images [B, C, H, W] -> joint logits [B, T + K], the target's classes first.
        params: parameters that the method adds to (or changes in) the target.
        macs: multiply-accumulates that it adds per image.
        bytes: what would have to be stored or sent.
        images: how many images it read.
        seconds: how long it took by ``clock``, networks given with the task not counted.
        extra: what else is worth a column, such as the insertion point.
    """

    predict: Callable[[Tensor], Tensor]
    params: int
    macs: int
    bytes: int
    images: int
    seconds: float
    extra: dict[str, Any] = field(default_factory=dict)
