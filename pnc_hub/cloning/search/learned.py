"""What learning ends with: a module, and gates fitted on what each will see."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from pnc_hub.cloning.fitting import gate as gates
from pnc_hub.cloning.images.batches import Batches
from pnc_hub.cloning.images.shown import Shown
from pnc_hub.cloning.measuring.evaluate import evidence, gather_sides
from pnc_hub.cloning.networks import SourceAndTarget
from pnc_hub.cloning.search.curve import Judged
from pnc_hub.models.cost import parameters
from pnc_hub.models.insertion import InsertionPoint
from pnc_hub.module import CloneModule, Gate

# Gates have a few hundred numbers to learn, and a conformal quantile is not finer than the images it came from.
MAX_GATE_IMAGES = 2000


@dataclass
class Learned:
    """What learning produced."""

    module: CloneModule
    gate: Gate  # for the target
    universal_gate: Gate | None  # for any target
    insertion: InsertionPoint
    cut: InsertionPoint
    match: float
    stages: dict[str, float] = field(default_factory=dict)  # AUROC of the gate: whole tail stitched, then pruned

    def parameters(self) -> int:
        """Parameters that the target gets: adapter, tail, head, gate."""
        return parameters(self.module) + parameters(self.gate)


def with_gates(
    module: CloneModule,
    origin: Judged,
    networks: SourceAndTarget,
    batches: Batches,
    budget: float | None,
    universal: bool,
) -> Learned:
    """Gates for this target and, if ``universal``, for any, with offsets calibrated on a part of the images of their own.

    ``origin`` is the candidate that the finished ``module`` came from.
    """
    module, insertion, cut = module.eval().requires_grad_(False), origin.candidate.insertion, origin.candidate.cut
    # a budget may need more images than a gate, and is met more finely by twice as many
    calibrating = max(MAX_GATE_IMAGES, 2 * gates.images_needed(budget) if budget else 0)

    def answers(images: Shown | Tensor) -> dict[str, Any]:
        logits, features = networks.target(images, [insertion.name])
        given = {"adapted": module(features[insertion.name])}
        if universal:
            penultimate = module.tail(networks.teach(images, [cut.name]).features[cut.name])
            given["universal"] = module.answer(penultimate)
        return {"target": logits, "answers": given}

    def exactly(images: Shown) -> dict[str, Any]:
        """Nothing in half precision: a budget is counted in single images."""
        return answers(images.pixels())

    choose = gather_sides(answers, batches, "choose", MAX_GATE_IMAGES)
    calibrate = gather_sides(exactly, batches, "calibrate", calibrating)
    # where no gate is learned, nothing is asked of the images to learn on
    learns = universal or batches.covered
    parts = gather_sides(answers, batches, "fit", MAX_GATE_IMAGES) if learns else choose, choose, calibrate

    def fitted(through: str) -> Gate:
        for_any = through == "universal"
        fit, choose, calibrate = (evidence(part, through) for part in parts)
        gate = gates.fit(*fit, choose, for_any, batches.covered, networks.odds)
        gate.offset.fill_(gates.best_offset(gate, *calibrate, budget, batches.covered or for_any))
        return gate

    universal_gate = fitted("universal") if universal else None
    return Learned(module, fitted("adapted"), universal_gate, insertion, cut, origin.match)
