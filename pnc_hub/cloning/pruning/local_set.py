"""The local set: images of the cloned classes and perturbed neighbours of them, weighted by proximity, and other images.

What the source needs for the cloned classes is judged on it, as LIME explains a prediction.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from pnc_hub.cloning.images.batches import Batches
from pnc_hub.cloning.networks import Networks

MAX_IMAGES = 500  # of each side
# So many pixels of each side are looked at, so that the time does not grow with the size of the images.
PIXELS = 1 << 23
# Neighbours: cells per side of the masking grid, largest share of them masked, crop and shift, noise over contrast.
PATCHES, LARGEST_MASK, CROP, NOISE = 4, 0.5, 0.15, 0.1


def local_set(networks: Networks, batches: Batches, cut: str) -> Iterable[tuple[Tensor, Tensor, Tensor]]:
    """Batches of (source feature at the cut, class or reject row, proximity): images, neighbours, and the others' images."""
    _, height, width = networks.source.preprocess.input_size
    most = max(1, min(MAX_IMAGES, PIXELS // (height * width)))
    generator = torch.Generator().manual_seed(batches.seed)
    # every process reads all of them, and so prunes alike
    for images, labels in batches.loader([batches.cloned.fit], most=most, whole=True):
        changed, proximity = neighbours(images, generator)
        for batch, weight in ((images, torch.ones_like(proximity)), (changed, proximity)):
            yield networks.teach(batch, [cut]).features[cut], labels, weight
    if batches.target is not None:
        for images, labels in batches.loader([batches.target.fit], most=most, whole=True):
            reject = torch.full_like(labels, len(networks.classes))
            yield networks.teach(images, [cut]).features[cut], reject, torch.ones(len(labels), device=networks.device)


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
