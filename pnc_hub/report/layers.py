"""How much of each layer of the source's tail a clone kept, from the shapes that its configuration records."""

from __future__ import annotations

import math
from collections import Counter

from torch import nn

from pnc_hub.artifact.assembly import rebuilt
from pnc_hub.artifact.config import CloneConfig
from pnc_hub.errors import MalformedArtifactError
from pnc_hub.models.tensors import tensors_of

MOST_LAYERS = 32


def kept_layers(config: CloneConfig) -> dict[str, tuple[int, int]]:
    """Layer after the cut -> (weights kept, weights of the source's), in the source's order.

    Of many layers those of one block are counted together. Empty where nothing was pruned, or where this timm cannot build
    the source to compare with.
    """
    if not config.tail.shapes:
        return {}
    try:
        tail = tensors_of(nn.ModuleDict({"tail": rebuilt(config).tail(config.cut)}))
    except MalformedArtifactError:
        return {}
    # norms and biases follow the layers that they belong to
    weights = {name: tensor for name, tensor in tail.items() if tensor.is_floating_point() and tensor.dim() > 1}
    kept = (math.prod(config.tail.shapes.get(name, tensor.shape)) for name, tensor in weights.items())
    layers = (name.removeprefix("tail.").rpartition(".")[0] or name for name in weights)
    return _grouped([*zip(layers, kept, (tensor.numel() for tensor in weights.values()), strict=True)])


def _grouped(layers: list[tuple[str, int, int]]) -> dict[str, tuple[int, int]]:
    """At most ``MOST_LAYERS``: names are shortened from the end until there are as few; those that then share one are added."""
    for depth in range(max((name.count(".") for name, _, _ in layers), default=0) + 1, 0, -1):
        kept, whole = Counter[str](), Counter[str]()
        for name, part, of in layers:
            shortened = ".".join(name.split(".")[:depth])
            kept[shortened] += part
            whole[shortened] += of
        if len(whole) <= MOST_LAYERS:
            break
    return {name: (kept[name], whole[name]) for name in list(whole)[:MOST_LAYERS]}
