"""Copies of an image that differ a little: shifted and mirrored, each always in the same way, so that they can be kept."""

from __future__ import annotations

import random
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

SHIFT = 8  # a copy is shifted by up to this part of its size


@dataclass(frozen=True)
class Copies:
    """How copies are made.

    Attributes:
        seed: other copies for another seed.
        flip: whether a mirrored image shows the same class.
    """

    seed: int
    flip: bool = True

    def of(self, image: Tensor, which: int, number: int) -> Tensor:
        """Copy ``number`` of an image [C, H, W] that is the ``which``-th of its data set; copy 0 is the image itself.

        The others are shifted by up to an eighth of their size, zeros coming in, and by chance mirrored.
        """
        if number == 0:
            return image
        draw = random.Random(f"{self.seed} {which} {number}")
        _, height, width = image.shape
        down, right = (draw.randint(-(size // SHIFT), size // SHIFT) for size in (height, width))
        if self.flip and draw.random() < 0.5:
            image = image.flip(2)
        # what is taken away at one side comes in as zeros at the other
        return F.pad(image, (right, -right, down, -down))
