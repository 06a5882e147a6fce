"""Insertion points: places of a model where its features can be read, or where it can be cut."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pnc_hub.errors import InsertionPointError
from pnc_hub.models.trace import BATCH

INPUT = "input"
LAYOUTS = ("NCHW", "NHWC", "NLC", "NC")


@dataclass(frozen=True)
class InsertionPoint:
    """A place where features can be read, or where a source can be cut.

    Attributes:
        name: the module's path, as in ``model.get_submodule(name)``; ``"input"`` is the image itself.
        channels: size of the channel axis.
        reduction: input height divided by the height of the feature map (the whole input height for ``"NC"``).
        layout: ``"NCHW"``, ``"NHWC"``, ``"NLC"`` (tokens, class tokens first) or ``"NC"`` (a vector per image).
        grid: (height, width) of the map at the model's own input size; (1, 1) for ``"NC"``.
        prefix_tokens: number of class or register tokens before the map (``"NLC"`` only).
    """

    name: str
    channels: int
    reduction: int
    layout: str
    grid: tuple[int, int]
    prefix_tokens: int = 0


def describe(model: nn.Module, name: str, feature: Any, image: tuple[int, int, int]) -> InsertionPoint | None:
    """What the ``feature`` behind module ``name`` looks like; None where it is neither map, tokens nor vector of an image."""
    height = image[1]
    shape = tuple(feature.shape) if isinstance(feature, torch.Tensor) else ()
    if 0 in shape or shape[:1] != (BATCH,):
        return None
    if len(shape) == 2:
        return InsertionPoint(name, shape[1], height, "NC", (1, 1))
    if len(shape) == 3:
        return _describe_tokens(name, shape, image, getattr(model, "num_prefix_tokens", 0))
    if len(shape) != 4:
        return None
    first, last = shape[1:3], shape[2:4]
    last_is_channels = is_grid(first, image) and (
        not is_grid(last, image) or getattr(model, "output_fmt", "NCHW") == "NHWC"
    )
    channels, grid, layout = (shape[3], first, "NHWC") if last_is_channels else (shape[1], last, "NCHW")
    if not is_grid(grid, image):
        return None
    return InsertionPoint(name, channels, max(1, round(height / grid[0])), layout, (grid[0], grid[1]))


def is_grid(size: tuple[int, ...], image: tuple[int, int, int]) -> bool:
    """Whether ``size`` (height, width) has about the proportions of the ``image`` (C, H, W), within one row or column."""
    _, height, width = image
    return abs(size[0] * width - size[1] * height) < max(height, width) and size[0] <= height


def _describe_tokens(
    name: str, shape: tuple[int, ...], image: tuple[int, int, int], prefix_tokens: int
) -> InsertionPoint | None:
    _, height, width = image
    for prefix in dict.fromkeys((prefix_tokens, 0, 1, 2)):  # not every model tells how many it has
        tokens = shape[1] - prefix
        rows = round((tokens * height / width) ** 0.5) if tokens > 0 else 0
        guessed = prefix not in (prefix_tokens, 0)
        if rows > guessed and tokens % rows == 0 and is_grid((rows, tokens // rows), image):
            grid = (rows, tokens // rows)
            return InsertionPoint(name, shape[2], max(1, round(height / rows)), "NLC", grid, prefix)
    return None


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
