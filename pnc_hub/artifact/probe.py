"""The probe: a shipped input, with what target and clone make of it. It shows when either is not what it was.

Per adapter, for n inputs: ``image`` [n, C, 4, 4], a random pattern that is enlarged to the network's images (no photo of
anybody's is published); ``feature``, what the target makes of it at the insertion point; ``logits`` [n, K], what the clone
makes of the feature.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pnc_hub.artifact.config import CloneConfig
from pnc_hub.artifact.files import TensorSpec
from pnc_hub.models.insertion import empty

SIDE = 4
MAX_INPUTS, MAX_CHANNELS = 16, 64


def pattern(count: int, channels: int) -> Tensor:
    """``image`` of a probe: [count, channels, 4, 4], always the same."""
    return torch.randn(count, channels, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def enlarge(image: Tensor, size: tuple[int, ...]) -> Tensor:
    """``image`` of a probe [n, C, 4, 4] at the size (C, H, W) of a network's images."""
    return F.interpolate(image, size=tuple(size[1:]), mode="bilinear", align_corners=False)


def expected(config: CloneConfig, found: dict[str, TensorSpec]) -> dict[str, TensorSpec]:
    """What the file of probes must hold; only the numbers of inputs and of image channels are its own affair."""
    specs = {}
    for adapter in config.adapters:
        image = found.get(f"{adapter.name}/image")
        count, channels = image.shape[:2] if image is not None and len(image.shape) == 4 else (1, 1)
        count, channels = min(max(count, 1), MAX_INPUTS), min(max(channels, 1), MAX_CHANNELS)
        feature = tuple(empty(adapter.insertion, count, device="meta").shape)
        specs[f"{adapter.name}/image"] = TensorSpec((count, channels, SIDE, SIDE), torch.float32)
        specs[f"{adapter.name}/feature"] = TensorSpec(feature, torch.float32)
        specs[f"{adapter.name}/logits"] = TensorSpec((count, len(config.classes)), torch.float32)
    return specs
