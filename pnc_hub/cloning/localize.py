"""Localisation: which channels of the source's tail the cloned classes need.

Structured pruning with Torch-Pruning's dependency groups and group Taylor importance (first-order change of the loss when a
channel is removed), judged on the *local set*: images of the cloned classes and perturbed neighbours of them, weighted by
proximity, as LIME explains a prediction. The tail's input is fixed, since every target's adapter produces it.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pnc_hub.errors import SourceError
from pnc_hub.module import attributes_of, empty, tensors_of
from pnc_hub.points import InsertionPoint

logger = logging.getLogger(__name__)

# Neighbours: cells per side of the masking grid, largest share of them masked, crop and shift, noise over contrast.
PATCHES, LARGEST_MASK, CROP, NOISE = 4, 0.5, 0.15, 0.1
# No layer loses more than this share of its channels.
LARGEST_CUT = 0.9


def neighbours(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Perturbed neighbours of ``images`` [B, C, H, W] and how near they are [B], between 0 and 1.

    Each image is cropped and shifted a little, some cells of a grid are replaced by its mean colour, and it gets a little
    noise; the proximity falls with the share of cells that were replaced.
    """
    count, _, height, width = images.shape

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator).to(images.device)

    zoom = 1 - CROP * uniform(count)
    shift = (2 * uniform(count, 2) - 1) * CROP
    crop = torch.zeros(count, 2, 3, device=images.device)
    crop[:, 0, 0], crop[:, 1, 1], crop[:, :, 2] = zoom, zoom, shift
    grid = F.affine_grid(crop, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    hidden = (uniform(count, 1, PATCHES, PATCHES) < LARGEST_MASK * uniform(count, 1, 1, 1)).float()
    mask = F.interpolate(hidden, size=(height, width), mode="nearest")
    noise = torch.randn(images.shape, generator=generator).to(images.device) * images.std((2, 3), keepdim=True) * NOISE
    changed = moved * (1 - mask) + images.mean((2, 3), keepdim=True) * mask + noise
    return changed, torch.exp(-((hidden.mean((1, 2, 3)) / 0.5) ** 2))


def prune(
    tail: nn.Module,
    head: nn.Linear,
    cut: InsertionPoint,
    local_set: Iterable[tuple[Tensor, Tensor, Tensor]],
    largest: int,
) -> tuple[nn.Module, nn.Linear]:
    """Remove the least important channels of ``tail`` until tail and head have at most ``largest`` parameters.

    Args:
        tail: feature at the cut -> penultimate feature; not changed.
        head: penultimate feature -> logits of the cloned classes (and the reject logit); not changed.
        cut: describes the feature that the tail takes.
        local_set: batches of (feature at the cut, class or reject row, weight).
        largest: parameters that may stay.

    Returns:
        The pruned (tail, head); the same architecture with fewer channels.

    Raises:
        SourceError: it can not be made that small.
    """
    whole = nn.Sequential(_stand_in(cut, head.weight.device), copy.deepcopy(tail), copy.deepcopy(head))
    if parameters(whole[1:]) <= largest:
        return whole[1], whole[2]
    gradients = _gradients(whole, local_set)
    low, high, best = 0.0, 1.0, None
    for _ in range(7):
        ratio = (low + high) / 2
        pruned = _pruned(whole, gradients, cut, ratio)
        if pruned is not None and parameters(pruned[1:]) <= largest:
            best, high = pruned, ratio
        else:
            low = ratio
    if best is None:
        raise SourceError(
            f"the source after {cut.name!r} can not be pruned to {largest:,} parameters (it has {parameters(whole[1:]):,});"
            " allow more with keep=, or cut later"
        )
    return best[1], best[2]


def changes(pruned: nn.Module, original: nn.Module) -> tuple[dict[str, list[int]], dict[str, dict[str, int]]]:
    """(shapes, attributes) by which ``pruned`` differs from ``original``, as ``config.json`` records them."""
    full = {name: tuple(tensor.shape) for name, tensor in tensors_of(original).items()}
    shapes = {
        name: list(tensor.shape) for name, tensor in tensors_of(pruned).items() if tuple(tensor.shape) != full[name]
    }
    widths, attributes = attributes_of(original), {}
    for name, values in attributes_of(pruned).items():
        changed = {attribute: value for attribute, value in values.items() if value != widths[name][attribute]}
        if changed:
            attributes[name] = changed
    return shapes, attributes


def parameters(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def _gradients(whole: nn.Sequential, local_set: Iterable) -> dict[str, Tensor]:
    """Gradient of the local loss with respect to every parameter.

    The loss is cross-entropy with the labels: that of imitating the source has no gradient before anything is pruned.
    """
    whole.requires_grad_(True).eval().zero_grad()
    for feature, label, weight in local_set:
        loss = F.cross_entropy(whole(feature), label, reduction="none")
        (loss * weight).sum().backward()
    return {name: p.grad for name, p in whole.named_parameters() if p.grad is not None}


def _pruned(whole: nn.Sequential, gradients: dict[str, Tensor], cut: InsertionPoint, ratio: float) -> Any:
    """A copy of ``whole`` with ``ratio`` of its channels removed, or None where the result does not run."""
    import torch_pruning

    copied = copy.deepcopy(whole)
    for name, parameter in copied.named_parameters():
        parameter.grad = gradients[name].clone() if name in gradients else torch.zeros_like(parameter)
    example = empty(cut, batch=2, device=next(copied.parameters()).device)
    # attention would also need its number of heads told; its residual stream is the tail's input, which is fixed
    attention = [layer for name, layer in copied.named_modules() if name.endswith((".qkv", ".q", ".k", ".v", ".proj"))]
    try:
        with warnings.catch_warnings():
            # parameters outside of layers are pruned with what they scale, and the result is run below
            warnings.filterwarnings("ignore", "Unwrapped parameters", UserWarning)
            pruner = torch_pruning.pruner.BasePruner(
                copied,
                example,
                importance=torch_pruning.importance.GroupTaylorImportance(),
                global_pruning=True,
                pruning_ratio=ratio,
                max_pruning_ratio=LARGEST_CUT,
                ignored_layers=[copied[0], copied[2], *attention],
            )
        pruner.step()
        copied.zero_grad()
        with torch.no_grad():
            copied(example)
    except Exception as error:  # the dependency graph fails in its own ways on architectures it does not know
        logger.info("pruning at ratio %.2f failed: %s: %s", ratio, type(error).__name__, error)
        return None
    return copied


def _stand_in(cut: InsertionPoint, device: torch.device) -> nn.Module:
    """An identity layer in the adapter's place: what is coupled to its output may not be pruned."""
    if cut.layout == "NCHW":
        layer: nn.Module = nn.Conv2d(cut.channels, cut.channels, 1, device=device)
        nn.init.dirac_(layer.weight)
    else:
        layer = nn.Linear(cut.channels, cut.channels, device=device)
        nn.init.eye_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
