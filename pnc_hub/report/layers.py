"""How much of each layer of the source's tail a clone kept, from the shapes that its configuration records."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from pnc_hub.errors import MalformedArtifactError

if TYPE_CHECKING:
    from pnc_hub.artifact.config import CloneConfig

MOST_LAYERS = 32


def kept_layers(config: CloneConfig) -> dict[str, tuple[int, int]]:
    """Layer after the cut -> (weights kept, weights of the source's), in the source's order.

    Of many layers those of one block are counted together. Empty where nothing was pruned, or where this timm cannot build
    the source to compare with.
    """
    from torch import nn

    from pnc_hub.artifact.assembly import rebuilt
    from pnc_hub.models.tensors import tensors_of

    if not config.tail.shapes:
        return {}
    try:
        tail = tensors_of(nn.ModuleDict({"tail": rebuilt(config).tail(config.cut)}))
    except MalformedArtifactError:
        return {}
    kept = {name: math.prod(config.tail.shapes.get(name, tensor.shape)) for name, tensor in tail.items()}
    # norms and biases follow the layers that they belong to
    weights = [name for name, tensor in tail.items() if tensor.is_floating_point() and tensor.dim() > 1]
    return _grouped(
        _summed(
            (name.removeprefix("tail.").rpartition(".")[0] or name, (kept[name], tail[name].numel()))
            for name in weights
        )
    )


def _grouped(layers: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """At most ``MOST_LAYERS``: names are shortened from the end until there are as few; those that then share one are added."""
    deepest = max((name.count(".") for name in layers), default=0)
    while len(layers) > MOST_LAYERS and deepest:
        layers = _summed((".".join(name.split(".")[:deepest]), sizes) for name, sizes in layers.items())
        deepest -= 1
    return dict(list(layers.items())[:MOST_LAYERS])


def _summed(sizes: Iterable[tuple[str, tuple[int, int]]]) -> dict[str, tuple[int, int]]:
    """By name, the sum of each number."""
    sums: dict[str, tuple[int, int]] = {}
    for name, (kept, whole) in sizes:
        before = sums.get(name, (0, 0))
        sums[name] = (before[0] + kept, before[1] + whole)
    return sums
