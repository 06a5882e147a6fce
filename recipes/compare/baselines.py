"""What a clone is compared with, on the same data and in the same script. Each method is ``f(task) -> Result``.

Where constants were compared, it was on seed 1992, which no table reports; their comments say which.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from recipes.compare.ensembles import ensemble_bic, ensemble_energy, ensemble_gate, ensemble_raw, ensemble_softmax
from recipes.compare.incremental import ewc, finetune, icarl, joint, lwf
from recipes.compare.pnc_ref import pnc_ref
from recipes.compare.probes import probe, prototype, ridge
from recipes.compare.side_network import side_network
from recipes.compare.study import Study
from recipes.frame.task import REGIMES, Result, Task


def target_alone(task: Task) -> Result:
    """The target as it is: it never answers with a cloned class."""
    study = Study(task)
    target = study.networks.target.model

    def predict(images: Tensor) -> Tensor:
        logits = target(images)
        return torch.cat([logits, logits.new_full((len(logits), study.count), float("-inf"))], 1)

    return study.result(predict, [], images=0)


def oracle_gate(task: Task) -> Result:
    """Both full networks, by somebody who knows which side an image belongs to: the most that any gate can reach.

    Nothing can be predicted from an image alone. ``extra["oracle"]`` says so: the first columns are to be judged on images
    of the target's classes, the last on those of the cloned ones.
    """
    study = Study(task)

    def predict(images: Tensor) -> Tensor:
        target, cloned, _, _ = study.read(images)
        return torch.cat([target, cloned], 1)

    return study.result(predict, [study.networks.source.model, study.networks.head], images=0, oracle=True)


METHODS: dict[str, tuple[Callable[[Task], Result], tuple[str, ...]]] = {
    "target_alone": (target_alone, REGIMES),
    "oracle_gate": (oracle_gate, REGIMES),
    "joint": (joint, ("R4",)),
    "ensemble_raw": (ensemble_raw, REGIMES),
    "ensemble_softmax": (ensemble_softmax, REGIMES),
    "ensemble_energy": (ensemble_energy, ("R2", "R3", "R4")),
    "ensemble_bic": (ensemble_bic, ("R3", "R4")),
    "ensemble_gate": (ensemble_gate, ("R2", "R3", "R4")),
    "prototype": (prototype, ("R2", "R3", "R4")),
    "ridge": (ridge, ("R2", "R3", "R4")),
    "probe": (probe, REGIMES),
    "finetune": (finetune, ("R1", "R3", "R4")),
    "lwf": (lwf, ("R1",)),
    "ewc": (ewc, ("R1",)),
    "icarl": (icarl, ("R3",)),
    "side_network": (side_network, REGIMES),
    "pnc_ref": (pnc_ref, ("R1", "R3", "R4")),
}
