"""What is asked of images before a pass: a clone would answer to wrong ones as well, and wrongly."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pnc_hub.errors import ImageError
from pnc_hub.models.insertion import InsertionPoint


def check_images(images: Tensor, channels: int) -> None:
    """Raise ``ImageError`` unless ``images`` are floats [B, channels, H, W]."""
    if not images.is_floating_point():
        raise ImageError(f"images must be normalised floats, {_found(images)}")
    if images.dim() != 4 or images.shape[1] != channels:
        raise ImageError(f"images must be [B, {channels}, height, width], {_found(images)}")


def check_proportions(images: Tensor, insertion: InsertionPoint, size: tuple[int, int, int]) -> None:
    """Raise ``ImageError`` where it is open how the tokens that come of ``images`` are arranged: not as at ``size``."""
    _, height, width = size
    if insertion.layout == "NLC" and images.shape[2] * width != images.shape[3] * height:
        raise ImageError(
            f"the clone reads tokens of images {height} high and {width} wide, or of others of these proportions, found"
            f" {images.shape[2]} high and {images.shape[3]} wide; crop them, or attach the clone at the input"
        )


def shape(value: Any) -> str:
    """The shape of a tensor, or what it is instead."""
    return str(list(value.shape)) if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _found(images: Tensor) -> str:
    kind = str(images.dtype).removeprefix("torch.")
    return f"found {shape(images)} of {kind}; apply the model's timm transform first"
