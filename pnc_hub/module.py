"""The clone as a module: adapter -> tail -> head, and the gate beside it.

Nothing here comes from an artifact but numbers: the tail is rebuilt from an architecture registered in timm
(``pnc_hub.models.architecture``), and the artifact's tensors are put in place once their names, shapes and dtypes have been
found to be exactly those expected. All of it is in float32, whatever the process's default dtype is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pnc_hub import fusion
from pnc_hub.errors import TargetError
from pnc_hub.models.insertion import InsertionPoint, to_maps
from pnc_hub.models.preprocess import resize
from pnc_hub.models.tensors import tensors_of


class Adapter(nn.Module):
    """A convolution from a target's feature to the feature that the source's tail expects; 1 x 1, a linear map at each place.

    Features of any layout are brought to [B, C, H, W], resized to the source's grid, mapped, and put into the source's
    layout. Class tokens of the source come from a second linear map of the image's mean feature.
    """

    def __init__(self, target: InsertionPoint, source: InsertionPoint, kernel: int = 1, device: Any = None) -> None:
        """Maps features at ``target`` to features at ``source``, ``kernel`` (odd) places wide; weights are uninitialised."""
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
        last = maps.permute(0, 2, 3, 1)  # channels last, as a linear layer wants them
        mapped: Tensor = self.map(last) if self.kernel == 1 else self.map(maps).permute(0, 2, 3, 1)
        if self.source.layout == "NHWC":
            return mapped
        if self.source.layout == "NC":
            return mapped.flatten(1)
        if self.source.layout == "NCHW":
            return mapped.permute(0, 3, 1, 2)
        tokens = mapped.flatten(1, 2)
        if self.prefix is None:
            return tokens
        prefix = self.prefix(last.mean((1, 2))).unflatten(1, (self.source.prefix_tokens, self.source.channels))
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


class CloneModule(_Converted):
    """Feature at the insertion point -> (clone logits, reject logit, features of the gate)."""

    def __init__(self, adapter: nn.Module, tail: nn.Module, head: nn.Linear) -> None:
        """``head`` has a row per cloned class and, last, the reject logit: how much the image is of something else."""
        super().__init__()
        self.adapter, self.tail, self.head = adapter, tail, head

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns ([B, K], [B], [B, C]): the penultimate feature comes last."""
        return self.answer(self.tail(self.adapter(feature)))

    def answer(self, penultimate: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same of the penultimate feature [B, C]."""
        logits = self.head(penultimate)
        return logits[:, :-1], logits[:, -1], penultimate


class Gate(_Converted):
    """A linear gate on scalars of both heads and on the module's penultimate features, minus a calibrated offset."""

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
