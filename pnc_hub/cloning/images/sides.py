"""The two sides of learning, images of the cloned classes and images of others, and the regime that they make."""

from __future__ import annotations

import warnings
from collections import Counter
from typing import Any

from torch import nn

from pnc_hub.cloning.images.classes import other_classes, relabel_cloned, relabel_target
from pnc_hub.cloning.images.data import Images
from pnc_hub.errors import DataError
from pnc_hub.models.preprocess import Preprocess

FEW = 20  # images of a class, or of all others together, from which on a gate can be learned


def sides(
    source: nn.Module, target: nn.Module, preprocess: Preprocess, wanted: dict[str, int], data: Any, target_data: Any
) -> tuple[Images, Images | None, str]:
    """Images of the cloned classes, images of others (the target's, else the source's), and the regime, R1 to R4."""
    relabel = relabel_cloned(wanted, source, data)
    cloned = Images(data, preprocess, relabel)
    missing = sorted(set(range(len(wanted))) - set(cloned.labels))
    if missing:
        raise DataError(f"no images of {', '.join(list(wanted)[position] for position in missing)} in the data")
    if target_data is not None:
        others = Images(target_data, preprocess, relabel_target(target, target_data, wanted))
        fewest = min(Counter(others.labels).values(), default=0)
        return cloned, others, "R3" if fewest <= FEW else "R4"
    others = Images(data, preprocess, other_classes(data, relabel))
    if len(others) >= FEW:
        return cloned, others, "R2"
    warnings.warn(
        "the gate has seen images of the cloned classes alone, so nothing can be said of what it does to others: give images"
        " of the target's classes as target_data, or leave images of the source's other classes in data",
        stacklevel=3,
    )
    return cloned, None, "R1"
