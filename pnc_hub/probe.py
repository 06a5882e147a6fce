"""The probe: a shipped input, with what target and clone make of it. It shows when either is not what it was.

Per adapter, for n inputs: ``image`` [n, C, 4, 4], a random pattern that is enlarged to the network's images (no photo of
anybody's is published); ``feature``, what the target makes of it at the insertion point; ``logits`` [n, K], what the clone
makes of the feature.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pnc_hub.errors import ProbeError
from pnc_hub.files import TensorSpec
from pnc_hub.module import empty
from pnc_hub.points import INPUT

if TYPE_CHECKING:
    from pnc_hub.artifact import Clone
    from pnc_hub.config import AdapterConfig, CloneConfig

SIDE = 4
MAX_INPUTS, MAX_CHANNELS = 16, 64
# Relative error of the target's feature beyond which its weights or its structure are others; by size of its dtype.
FEATURE_TOLERANCE = {8: 1e-3, 4: 1e-3, 2: 0.1}


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
        feature = tuple(empty(adapter.insertion.point(), count, device="meta").shape)
        specs[f"{adapter.name}/image"] = TensorSpec((count, channels, SIDE, SIDE), torch.float32)
        specs[f"{adapter.name}/feature"] = TensorSpec(feature, torch.float32)
        specs[f"{adapter.name}/logits"] = TensorSpec((count, len(config.classes)), torch.float32)
    return specs


@torch.inference_mode()
def run(clone: Clone, adapter: AdapterConfig) -> float:
    """Run the probe's feature through the clone's module.

    Returns:
        By how much its logits miss those expected, at most.

    Raises:
        ProbeError: by more than the artifact's tolerance.
    """
    shipped, tolerance = clone.probe(adapter), clone.config.probe
    module, _ = clone.build(adapter, clone.config.preprocess.value())
    difference = (module(shipped["feature"])[0] - shipped["logits"]).abs()
    if not bool((difference <= tolerance.atol + tolerance.rtol * shipped["logits"].abs()).all()):
        raise ProbeError(
            f"adapter {adapter.name!r} misses its probe by {difference.max():.3g}, more than the artifact allows;"
            " it was made with another version of timm or torch: ask its publisher to save it again"
        )
    return float(difference.max())


@torch.inference_mode()
def feature_error(model: nn.Module, clone: Clone, adapter: AdapterConfig, size: tuple[int, ...]) -> float:
    """Relative error of the target's feature on the probe; 0 for an adapter at the input, which reads no feature.

    Args:
        model: the target in eval mode.
        clone: the clone.
        adapter: one of its adapters, made for a target.
        size: (C, H, W) of the target's images.
    """
    if adapter.insertion.module == INPUT:
        return 0.0
    shipped, seen = clone.probe(adapter), []
    reference = next(model.parameters())
    handle = model.get_submodule(adapter.insertion.module).register_forward_hook(
        lambda _m, _a, out: seen.append(out.clone())
    )
    try:
        model(enlarge(shipped["image"], size).to(reference))
    finally:
        handle.remove()
    found, wanted = seen[0].float().cpu(), shipped["feature"]
    return (
        float((found - wanted).norm() / wanted.norm().clamp_min(1e-12)) if found.shape == wanted.shape else float("inf")
    )
