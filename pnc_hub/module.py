"""The clone as a module: adapter -> tail -> head, and the gate beside it.

Nothing here comes from an artifact but numbers: the tail is rebuilt from an architecture registered in timm
(``pnc_hub.source``), and the artifact's tensors are put in place once their names, shapes and dtypes have been found to be
exactly those expected. All of it is in float32, whatever the process's default dtype is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pnc_hub import fusion
from pnc_hub.errors import InsertionPointError, TargetError
from pnc_hub.points import InsertionPoint
from pnc_hub.preprocess import resize

# The integer attributes that a layer keeps of its width, and that structured pruning therefore changes.
WIDTH_ATTRIBUTES = (
    *("in_channels", "out_channels", "groups", "in_features", "out_features"),
    *("num_features", "num_channels", "normalized_shape"),
    *("num_heads", "attn_dim"),
)


class Adapter(nn.Module):
    """A linear map from a target's feature to the feature that the source's tail expects (a 1x1 convolution).

    Features of any layout are brought to [B, C, H, W], resized to the source's grid, mapped, and put into the source's
    layout. Class tokens of the source come from a second linear map of the image's mean feature.
    """

    def __init__(self, target: InsertionPoint, source: InsertionPoint, device: Any = None) -> None:
        """Maps features at ``target`` to features at ``source``; weights are uninitialised."""
        super().__init__()
        self.target, self.source = target, source
        kind = {"device": device, "dtype": torch.float32}
        self.map = nn.Linear(target.channels, source.channels, **kind)
        tokens = source.prefix_tokens
        self.prefix = nn.Linear(target.channels, tokens * source.channels, **kind) if tokens else None

    def forward(self, feature: Tensor) -> Tensor:
        """Target layout -> source layout, batch first."""
        maps = resize(to_maps(feature, self.target), self.source.grid).permute(0, 2, 3, 1)
        mapped: Tensor = self.map(maps)
        if self.source.layout == "NHWC":
            return mapped
        if self.source.layout == "NC":
            return mapped.flatten(1)
        if self.source.layout == "NCHW":
            return mapped.permute(0, 3, 1, 2)
        tokens = mapped.flatten(1, 2)
        if self.prefix is None:
            return tokens
        prefix = self.prefix(maps.mean((1, 2))).unflatten(1, (self.source.prefix_tokens, self.source.channels))
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


def to_maps(feature: Tensor, point: InsertionPoint) -> Tensor:
    """A feature of any layout as maps [B, C, H, W]; class tokens are left out, a vector becomes a 1x1 map."""
    if point.layout == "NCHW":
        return feature
    if point.layout == "NHWC":
        return feature.permute(0, 3, 1, 2)
    if point.layout == "NC":
        return feature[:, :, None, None]
    tokens = feature[:, point.prefix_tokens :].transpose(1, 2)
    length = int(tokens.shape[2])  # a tensor while torch.jit.trace looks on
    rows = round((length * point.grid[0] / point.grid[1]) ** 0.5)
    if not rows or length % rows:
        raise InsertionPointError(
            f"{length} tokens behind {point.prefix_tokens} of {point.name!r} make no map of the proportions {point.grid}"
        )
    maps: Tensor = tokens.unflatten(2, (rows, length // rows))
    return maps


def attributes_of(module: nn.Module) -> dict[str, dict[str, int]]:
    """The width attributes of every layer that has any, by layer name."""
    found = {}
    for name, layer in module.named_modules():
        values = {attribute: vars(layer).get(attribute) for attribute in WIDTH_ATTRIBUTES}
        values = {attribute: _as_int(value) for attribute, value in values.items() if _as_int(value) is not None}
        if values:
            found[name] = values
    return found


def shrink(module: nn.Module, shapes: dict[str, list[int]], attributes: dict[str, dict[str, int]]) -> None:
    """Give tensors of ``module`` (on the meta device) smaller shapes, and its layers the widths that go with them.

    Raises:
        InsertionPointError: a name is not there, or a size is larger than the architecture's.
    """
    tensors, widths = tensors_of(module), attributes_of(module)
    for name, shape in shapes.items():
        full = tuple(tensors[name].shape) if name in tensors else None
        if (
            full is None
            or len(shape) != len(full)
            or not all(1 <= new <= old for new, old in zip(shape, full, strict=True))
        ):
            raise InsertionPointError(f"tensor {name!r} after the cut can not have shape {shape}; it has {full}")
    for name, values in attributes.items():
        widest = widths.get(name, {})
        if not widest or not all(1 <= value <= widest.get(attribute, 0) for attribute, value in values.items()):
            raise InsertionPointError(f"layer {name!r} after the cut can not have the widths {values}; it has {widest}")
        layer = module.get_submodule(name)
        for attribute, value in values.items():
            setattr(layer, attribute, (value,) if isinstance(getattr(layer, attribute), tuple) else value)
    put_tensors(module, {**tensors, **{name: tensors[name].new_empty(shape) for name, shape in shapes.items()}})


def empty(point: InsertionPoint, batch: int = 1, device: Any = None) -> Tensor:
    """Zeros of the shape that a feature at ``point`` has."""
    height, width = point.grid
    shape = {
        "NCHW": (batch, point.channels, height, width),
        "NHWC": (batch, height, width, point.channels),
        "NLC": (batch, point.prefix_tokens + height * width, point.channels),
        "NC": (batch, point.channels),
    }[point.layout]
    return torch.zeros(shape, device=device, dtype=torch.float32)


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer, the non-persistent ones too: without them a tail on the meta device can not run."""
    return dict([*module.named_parameters(), *module.named_buffers()])


def put_tensors(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Replace every parameter and buffer of ``module`` by the tensor of that name; parameters come out frozen.

    One that two layers share has the first of its names alone, as in ``tensors_of``; they share the new one too.
    """
    names = {id(tensor): name for name, tensor in tensors_of(module).items()}
    parameters: dict[str, nn.Parameter] = {}
    for layer in module.modules():
        for attribute, old in layer._parameters.items():
            if old is not None:
                name = names[id(old)]
                new = parameters.setdefault(name, nn.Parameter(tensors[name], requires_grad=False))
                layer._parameters[attribute] = new
        for attribute, buffer in layer._buffers.items():
            if buffer is not None:
                layer._buffers[attribute] = tensors[names[id(buffer)]]


def _as_int(value: Any) -> int | None:
    value = value[0] if isinstance(value, tuple) and len(value) == 1 else value
    return value if isinstance(value, int) and not isinstance(value, bool) else None
