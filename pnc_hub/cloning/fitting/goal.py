"""What a clone should say of some images, and how far it is from that."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from pnc_hub.cloning.networks import Lesson

ANCHOR = 0.3  # weight of the level of the logits


class Goal(NamedTuple):
    """Distributions over the cloned classes and "something else", of whole batches.

    On images of the cloned classes the goal is half the source's distribution, half the label; on the target's images it is
    "something else". Both sides weigh the same, whatever their numbers.
    """

    shares: Tensor  # [B, K + 1]
    weight: Tensor  # [B], their sum is 1
    level: Tensor | None = None  # clone logits [B, K] whose level is to be kept, which a softmax does not see
    spread: Tensor | float = 0.0  # variance of these

    @classmethod
    def of(cls, lesson: Lesson, labels: Tensor, anchored: bool) -> Goal:
        """From the source on the same images.

        Args:
            lesson: what it says.
            labels: position among the cloned classes [B]; -1 for the target's images.
            anchored: also keep the level of the clone logits that of the source's.
        """
        said = torch.cat([lesson.cloned, lesson.rejected[:, None]], 1).softmax(1)
        truth = F.one_hot(torch.where(labels >= 0, labels, lesson.cloned.shape[1]), said.shape[1])
        shares = torch.where(labels[:, None] >= 0, (said + truth) / 2, truth)
        new = (labels >= 0).float()
        sides = 1 + (new.min() != new.max())
        weight = (new / new.sum().clamp_min(1) + (1 - new) / (1 - new).sum().clamp_min(1)) / sides
        if not anchored:
            return cls(shares, weight)
        return cls(shares, weight, lesson.cloned, lesson.cloned.var(correction=0))

    def distance(self, output: tuple[Tensor, ...], rows: Tensor | None = None) -> Tensor:
        """KL from the goal to the module's output; that of parts of a batch adds up to that of the whole.

        Args:
            output: clone logits [R, K], reject logit [R], and whatever follows.
            rows: the images [R] of the batch that these are of, all by default.
        """
        cloned, reject = output[0].float(), output[1].float()
        shares, weight, level = self.shares, self.weight, self.level
        if rows is not None:
            shares, weight, level = shares[rows], weight[rows], None if level is None else level[rows]
        logits = torch.cat([cloned, reject[:, None]], 1)
        loss = (F.kl_div(logits.log_softmax(1), shares, reduction="none").sum(1) * weight).sum()
        if level is not None:
            error = ((cloned - level) ** 2).mean(1) / (1 + self.spread)
            loss = loss + ANCHOR * (error * weight).sum()
        return loss
