"""How a model wants its images: size, mean, standard deviation, interpolation, crop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image, ImageOps
from timm.data import resolve_data_config
from torch import Tensor, nn
from torch.nn import functional as F

from pnc_hub.models.classifier import pretrained_cfg

UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)  # what Pillow raises


@dataclass(frozen=True)
class Preprocess:
    """The image convention of one model; ``input_size`` is (channels, height, width) in pixels."""

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    crop_pct: float = 0.875

    @classmethod
    def of(cls, model: nn.Module) -> Preprocess:
        """The convention that timm records with ``model`` (timm's defaults where it records none)."""
        size, recorded = input_size(model), _recorded(model)

        def per_channel(values: Sequence[float]) -> tuple[float, ...]:
            values = tuple(map(float, values))
            return values if len(values) == size[0] else (sum(values) / len(values),) * size[0]

        mean, std = per_channel(recorded["mean"]), per_channel(recorded["std"])
        return cls(size, mean, std, str(recorded["interpolation"]), float(recorded["crop_pct"]))


class Reprocess(nn.Module):
    """Turns images made for one model into images made for another: mean, standard deviation, channels and size."""

    given_mean: Tensor
    given_std: Tensor
    wanted_mean: Tensor
    wanted_std: Tensor

    def __init__(self, given: Preprocess, wanted: Preprocess) -> None:
        """``given`` is the convention of the images that will come, ``wanted`` that of the network behind."""
        super().__init__()
        self.size = wanted.input_size[1:]
        self.channels = wanted.input_size[0]
        self.register_buffer("given_mean", _column(given.mean), persistent=False)
        self.register_buffer("given_std", _column(given.std), persistent=False)
        self.register_buffer("wanted_mean", _column(wanted.mean), persistent=False)
        self.register_buffer("wanted_std", _column(wanted.std), persistent=False)
        self.identity = (given.mean, given.std, given.input_size[0]) == (wanted.mean, wanted.std, wanted.input_size[0])

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, H, W] in the given convention -> [B, C', H', W'] in the wanted one."""
        if not self.identity:
            images = images * self.given_std + self.given_mean
            if images.shape[1] != self.channels:
                images = images.mean(1, keepdim=True).expand(-1, self.channels, -1, -1)
            images = (images - self.wanted_mean) / self.wanted_std
        return resize(images, self.size)


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """[B, C, H, W] -> [B, C, *size]: averages where the map shrinks, interpolates where it grows."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    if maps.shape[-2] >= size[0] and maps.shape[-1] >= size[1]:
        return F.adaptive_avg_pool2d(maps, size)
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def input_size(model: nn.Module) -> tuple[int, int, int]:
    """(channels, height, width) of the images that ``model`` was built for."""
    channels, height, width = _recorded(model)["input_size"]
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    if isinstance(size, (tuple, list)) and len(size) == 2:
        height, width = size
    return int(_channels(model) or channels), int(height), int(width)


def _channels(model: nn.Module) -> int | None:
    """What the model says of its images, or its first convolution does (which may come behind a rearrangement)."""
    channels = getattr(model, "in_chans", None)
    if isinstance(channels, int):
        return channels
    first = pretrained_cfg(model).get("first_conv") or ()
    modules = dict(model.named_modules())
    convolutions = (modules.get(name) for name in ((first,) if isinstance(first, str) else first))
    return next((layer.in_channels for layer in convolutions if isinstance(layer, nn.Conv2d)), None)


def _recorded(model: nn.Module) -> dict[str, Any]:
    """What timm records with ``model`` of its images, timm's defaults where it records nothing."""
    asked = {"crop_mode": None}  # it refuses to get nothing
    recorded: dict[str, Any] = resolve_data_config(asked, pretrained_cfg(model))
    return recorded


def _column(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device="cpu")[:, None, None]


def upright(image: Image.Image, channels: int) -> Image.Image:
    """``image`` as it was held, which phones store beside the pixels, in colour; grey for one channel.

    Example:
        >>> upright(Image.new("L", (4, 3)), 3).mode
        'RGB'
    """
    return ImageOps.exif_transpose(image).convert("L" if channels == 1 else "RGB")
