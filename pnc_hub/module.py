"""The clone as a module: adapter -> tail -> head, and the gate beside it.

Nothing here comes from an artifact but numbers: the tail is rebuilt from an architecture registered in timm
(``pnc_hub.models.architecture``), and the artifact's tensors are put in place once their names, shapes and dtypes have been
found to be exactly those expected. All of it is in float32, whatever the process's default dtype is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pnc_hub import fusion
from pnc_hub.errors import TargetError
from pnc_hub.models.insertion import InsertionPoint, to_maps
from pnc_hub.models.preprocess import resize
from pnc_hub.models.tensors import tensors_of


class Adapter(nn.Module):
    """A convolution from the target's feature to the feature that the source's tail expects.

    Features of any layout are brought to [B, C, H, W], resized to the source's grid, convolved, and put into the source's
    layout. Class tokens of the source come from a linear map of the image's mean feature.
    """

    def __init__(self, target: InsertionPoint, source: InsertionPoint, kernel: int = 1, device: Any = None) -> None:
        """From ``target`` to ``source`` with a ``kernel`` of that width (odd; 1 is a linear map); weights are uninitialised."""
        super().__init__()
        self.target, self.source, self.kernel = target, source, kernel
        kind = {"device": device, "dtype": torch.float32}
        self.map: Any
        if kernel == 1:
            self.map = nn.Linear(target.channels, source.channels, **kind)
        else:
            self.map = nn.Conv2d(target.channels, source.channels, kernel, padding=kernel // 2, **kind)
        tokens = source.prefix_tokens
        self.prefix = nn.Linear(target.channels, tokens * source.channels, **kind) if tokens else None

    def forward(self, feature: Tensor) -> Tensor:
        """Target layout -> source layout, batch first."""
        maps = resize(to_maps(feature, self.target), self.source.grid)
        channels_last = maps.permute(0, 2, 3, 1)
        mapped: Tensor = self.map(channels_last) if self.kernel == 1 else self.map(maps).permute(0, 2, 3, 1)
        if self.source.layout == "NHWC":
            return mapped
        if self.source.layout == "NC":
            return mapped.flatten(1)
        if self.source.layout == "NCHW":
            return mapped.permute(0, 3, 1, 2)
        tokens = mapped.flatten(1, 2)
        if self.prefix is None:
            return tokens
        prefix = self.prefix(channels_last.mean((1, 2))).unflatten(1, (self.source.prefix_tokens, self.source.channels))
        return torch.cat([prefix, tokens], 1)


class _Converted(nn.Module):
    """A module that refuses to be converted to float16 if a weight would become infinite: it would answer, and wrongly."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> _Converted:
        nn.Module._apply(self, fn, recurse)
        for name, tensor in tensors_of(self).items():
            if tensor.dtype == torch.float16 and not tensor.is_meta and not bool(tensor.isfinite().all()):
                raise TargetError(
                    f"{name!r} of the clone is beyond what float16 can hold; convert the model to bfloat16 or float32"
                )
        return self


class Answer(NamedTuple):
    """What a clone makes of a feature.

    Attributes:
        logits: [B, K] of the cloned classes.
        reject: [B] how much the image is of something else.
        penultimate: [B, C] the feature that both were computed from; the gate reads it too.
    """

    logits: Tensor
    reject: Tensor
    penultimate: Tensor


class CloneModule(_Converted):
    """Adapter, tail and head: feature at the insertion point -> ``Answer``."""

    def __init__(self, adapter: nn.Module, tail: nn.Module, head: nn.Linear) -> None:
        """``head`` has a row per cloned class and, last, one for the reject logit."""
        super().__init__()
        self.adapter, self.tail, self.head = adapter, tail, head

    def forward(self, feature: Tensor) -> Answer:
        """The answer to a feature at the insertion point, in the target's layout."""
        return self.answer(self.tail(self.adapter(feature)))

    def answer(self, penultimate: Tensor) -> Answer:
        """The answer that the head gives to the tail's output [B, C]."""
        logits = self.head(penultimate)
        return Answer(logits[:, :-1], logits[:, -1], penultimate)


class Gate(_Converted):
    """A linear gate on ``fusion.SCALARS`` of both heads and on the penultimate feature, minus a calibrated offset."""

    def __init__(self, features: int, device: Any = None) -> None:
        """``features`` is the width of the module's penultimate feature; everything starts at zero."""
        super().__init__()
        kind = {"device": device, "dtype": torch.float32}
        self.scalars = nn.Parameter(torch.zeros(len(fusion.SCALARS), **kind))
        self.features = nn.Parameter(torch.zeros(features, **kind))
        self.bias = nn.Parameter(torch.zeros((), **kind))
        self.offset = nn.Parameter(torch.zeros((), **kind))

    def forward(self, target_logits: Tensor, clone_logits: Tensor, reject: Tensor, features: Tensor) -> Tensor:
        """The gate logit s [B]: log odds that the image shows a cloned class."""
        scalars = fusion.scalars(target_logits, clone_logits, reject)
        evidence = scalars @ self.scalars.to(scalars.dtype)
        evidence = evidence + features.to(scalars.dtype) @ self.features.to(scalars.dtype)
        return evidence + self.bias.to(scalars.dtype) - self.offset.to(scalars.dtype)
