"""How much of each layer of the source's tail a clone kept, from the shapes that its configuration records."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pnc_hub.artifact.config import CloneConfig

MOST_LAYERS = 32


def kept_layers(config: CloneConfig) -> dict[str, tuple[int, int]]:
    """Layer after the cut -> (weights kept, weights of the source's), in the source's order.

    Of many layers those of one block are counted together. Empty where nothing was pruned, or where this timm can not build
    the source to compare with.
    """
    from torch import nn

    from pnc_hub.models.architecture import Architecture
    from pnc_hub.models.tensors import tensors_of

    if not config.tail.shapes:
        return {}
    named = config.source
    try:
        size = config.preprocess.input_size
        source = Architecture.of(named.architecture, named.arguments(), size)
        tail = tensors_of(nn.ModuleDict({"tail": source.tail(config.cut)}))
    except Exception:  # names and arguments that do not go together fail in as many ways as timm has constructors
        return {}
    layers: dict[str, tuple[int, int]] = {}
    for name, tensor in tail.items():
        if tensor.is_floating_point() and tensor.dim() > 1:  # norms and biases follow the layers that they belong to
            layer = name.removeprefix("tail.").rpartition(".")[0] or name
            kept = math.prod(config.tail.shapes.get(name, list(tensor.shape)))
            before = layers.get(layer, (0, 0))
            layers[layer] = (before[0] + kept, before[1] + tensor.numel())
    return _grouped(layers)


def _grouped(layers: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """At most ``MOST_LAYERS``: names are shortened from the end until there are as few, and what then has one name is added."""
    deepest = max((name.count(".") for name in layers), default=0)
    while len(layers) > MOST_LAYERS and deepest:
        deepest -= 1
        groups: dict[str, tuple[int, int]] = {}
        for name, (kept, whole) in layers.items():
            short = ".".join(name.split(".")[: deepest + 1])
            before = groups.get(short, (0, 0))
            groups[short] = (before[0] + kept, before[1] + whole)
        layers = groups
    return dict(list(layers.items())[:MOST_LAYERS])
