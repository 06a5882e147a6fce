"""Perturbed neighbours of images, as the paper's local set has them: what LIME does to explain one prediction."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# Cells per side of the masking grid, largest share of them masked, crop and shift, noise over contrast.
PATCHES, LARGEST_MASK, CROP, NOISE = 4, 0.5, 0.15, 0.1


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
