"""The reject row: all that the source knows beside the cloned classes, as one more linear row of its head."""

from __future__ import annotations

from torch import Tensor

from pnc_hub.cloning.fitting import ridge
from pnc_hub.cloning.images.batches import Batches
from pnc_hub.cloning.networks import Networks

MAX_IMAGES = 500  # in each part


def reject_rows(networks: Networks, batches: Batches) -> tuple[Tensor, Tensor]:
    """The energy of the source's other classes, fitted by one row: (weight [1, C], bias [1]); zeros where there are none."""
    if not len(networks.others):
        return networks.head.weight.new_zeros(1, networks.width), networks.head.bias.new_zeros(1)

    def rows(images: Tensor) -> tuple[Tensor, Tensor]:
        lesson = networks.teach(images)
        return lesson.penultimate, lesson.rejected[:, None]

    moments = [
        ridge.fit_rows(batches.accelerator, batches.mixed(part, each=MAX_IMAGES // 2), rows)
        for part in ("fit", "choose")
    ]
    weights = ridge.ridge(*moments).float()
    return weights[:-1].T, weights[-1]
