"""The probe: a shipped input, with what target and clone make of it. It shows when either is not what it was.

Per adapter, for n inputs: ``image`` [n, C, 4, 4], a random pattern that is enlarged to the network's images (no photo of
anybody's is published); ``feature``, what the target makes of it at the insertion point; ``logits`` [n, K], what the clone
makes of the feature.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pnc_hub.errors import ProbeError, TargetError
from pnc_hub.files import TensorSpec
from pnc_hub.module import empty
from pnc_hub.points import INPUT

if TYPE_CHECKING:
    from pnc_hub.artifact import Clone
    from pnc_hub.branch import Branch
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
    if shipped["image"].shape[1] != size[0]:
        return float("inf")
    reference = next(model.parameters(), torch.zeros(()))

    def read(_module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> None:
        seen.append(output.clone())
        raise _EnoughError

    handle = model.get_submodule(adapter.insertion.module).register_forward_hook(read)
    try:
        # eagerly, because a compiled graph would not see the hook
        with suppress(_EnoughError), torch.compiler.set_stance("force_eager"):
            model(enlarge(shipped["image"], size).to(reference))
    finally:
        handle.remove()
    wanted = shipped["feature"]
    if not seen or seen[0].shape != wanted.shape:
        return float("inf")
    found = seen[0].float().cpu()
    return float((found - wanted).norm() / wanted.norm().clamp_min(1e-12))


@torch.inference_mode()
def refresh(clone: Clone, adapter: AdapterConfig) -> None:
    """Let the probe of ``adapter`` expect what the clone, all of it in memory, answers now."""
    module, _ = clone.build(adapter, clone.config.preprocess.value())
    shipped = clone.probe(adapter)
    shipped["logits"].copy_(module(shipped["feature"])[0])


def verify(model: nn.Module, branch: Branch, end: int, run_as: Callable[[Tensor], Tensor]) -> float:
    """Check that target and clone answer the probe as recorded, and that ``run_as`` answers an image as ``model`` does.

    Args:
        model: the target, in eval mode.
        branch: an attached clone.
        end: where its logits end in the output of ``model``.
        run_as: how the model is run.

    Returns:
        The largest absolute difference from the probe's expected logits.

    Raises:
        ProbeError: one of them does not.
    """
    kind, insertion, size = type(model).__name__, branch.adapter.insertion.module, branch.given.input_size
    difference = run(branch.clone, branch.adapter)
    reference = next(model.parameters(), torch.zeros(()))
    error = feature_error(model, branch.clone, branch.adapter, size)
    if not error <= FEATURE_TOLERANCE.get(reference.element_size(), FEATURE_TOLERANCE[2]):
        raise ProbeError(
            f"{kind} answers the probe at {insertion!r} with another feature than the target that the clone was made for"
            f" (relative error {error:.2g}): its weights or its structure are others. Load those weights, or have an"
            " adapter made for this model."
        )
    shipped = branch.clone.probe(branch.adapter)["image"][:1]
    image = enlarge(shipped if shipped.shape[1] == size[0] else shipped.mean(1, keepdim=True), size)
    image = image.expand(-1, size[0], -1, -1).to(reference)
    try:
        with torch.compiler.set_stance("force_eager"):
            expected = model(image)
        found = run_as(image)
    except TargetError as error:
        raise ProbeError(str(error)) from error
    if not bool(expected[:, end - len(branch.clone.labels) : end].isfinite().all()):
        raise ProbeError(
            f"the clone has no answer to its probe in {str(expected.dtype).removeprefix('torch.')}: it overflows. Convert the"
            " model to bfloat16 or float32"
        )
    complete = expected.shape[1] >= end and found.shape == expected.shape
    if not complete or not torch.allclose(found, expected, rtol=1e-2, atol=1e-2):
        raise ProbeError(
            f"the callable returns {list(found.shape)} and does not carry the clone's logits: it was compiled or captured"
            " before the clone was attached. Attach first, or call torch.compiler.reset()."
        )
    return difference


class _EnoughError(Exception):
    """The feature has been read; the rest of the pass is not wanted."""
