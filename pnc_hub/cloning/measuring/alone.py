"""The source alone on images of the cloned classes: what a clone of it can be expected to know."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from accelerate.utils import reduce

from pnc_hub.cloning.networks import Networks


@torch.no_grad()
def source_alone(networks: Networks, batches: Iterable[Any]) -> tuple[float, float]:
    """Accuracy of the source among the cloned classes and among all of its own; warns if the labels do not seem to fit."""
    among_cloned, among_all, count = 0, 0, 0
    for images, labels in batches:
        lesson = networks.teach(images)
        right = lesson.cloned.argmax(1) == labels
        among_cloned, count = among_cloned + int(right.sum()), count + len(labels)
        among_all += int((right & lesson.cloned_wins).sum())
    counts = torch.tensor([among_cloned, among_all, count], device=networks.device)
    among_cloned, among_all, count = reduce(counts, "sum").tolist()
    if among_all / count <= 1.5 / networks.num_classes:
        warnings.warn(
            f"the source recognises {among_all} of {count} images of the cloned classes, no more than by chance: check that"
            " classes= maps each label to its index in the source",
            stacklevel=4,
        )
    return among_cloned / count, among_all / count
