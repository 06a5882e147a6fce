"""The local set: images of the cloned classes and others, as the source sees them at a cut.

What the source needs for the cloned classes is judged on it, as LIME explains a prediction on what lies near it. The paper adds
perturbed neighbours of the images; they changed nothing (`recipes/method/cifar10.md`) and are left to `recipes/compare`.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from pnc_hub.cloning.images.batches import Batches
from pnc_hub.cloning.networks import Networks

MAX_IMAGES = 500  # of each side
# So many pixels of each side are looked at, so that the time does not grow with the size of the images.
PIXELS = 1 << 22


def local_set(networks: Networks, batches: Batches, cut: str) -> Iterable[tuple[Tensor, Tensor, Tensor]]:
    """Batches of (source feature at the cut, class or reject row, weight): of the cloned classes, then of others."""
    _, height, width = networks.source.preprocess.input_size
    most = max(1, min(MAX_IMAGES, PIXELS // (height * width)))
    for side in filter(None, (batches.cloned, batches.target)):
        # every process reads all of them, and so prunes alike
        for images, labels in batches.loader([side.fit], most=most, whole=True):
            classes = labels if side is batches.cloned else torch.full_like(labels, len(networks.classes))
            yield networks.teach(images, [cut]).features[cut], classes, torch.ones(len(labels), device=networks.device)
