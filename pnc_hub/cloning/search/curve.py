"""The insertion curve: how well a clone would do at each pair of insertion point and cut, before anything is trained.

Every candidate's closed-form adapter is put before the whole tail, a gate is fitted on what comes out, and the joint answer
is measured on held-out images. It tells what the closed form is worth everywhere for the price of a few hundred images; what
training would add it does not know (`recipes/method/insertion.py`), which is why the search also tries early places.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pnc_hub.cloning.fitting import gate as gates
from pnc_hub.cloning.fitting.gate import Sides
from pnc_hub.cloning.fitting.stitch import Candidate
from pnc_hub.cloning.images.batches import Batches
from pnc_hub.cloning.measuring.evaluate import Gathered, evidence, gather_sides
from pnc_hub.cloning.networks import Networks, SourceAndTarget
from pnc_hub.models.cost import macs, parameters
from pnc_hub.models.insertion import empty
from pnc_hub.module import CloneModule

# Images of each side and part: at a first glance for all, and for a short list. Two accuracies on 200 images that differ by
# less than three points are the same.
GLANCE, IMAGES, SHORTLIST = 32, 200, 12


@dataclass(frozen=True)
class Judged:
    """One point of the curve."""

    candidate: Candidate  # where the target is read and the source is cut, with the closed-form adapter
    match: float  # share of the source's logits' variance that is reproduced on held-out images (R2)
    tar: float  # accuracy among the cloned classes
    avg_u: float | None  # mean of old and new accuracy of the joint answer; None without images of others
    auroc: float | None  # of the gate; None without images of others
    parameters: int  # of adapter, tail (unpruned on the curve) and head
    macs: int  # multiply-accumulates of the same for one image

    @property
    def score(self) -> tuple[float, float]:
        """Larger is better: joint accuracy, then the gate; without images of others what is known of the cloned."""
        return (self.tar, self.match) if self.avg_u is None else (self.avg_u, self.auroc or 0.0)

    def row(self) -> dict[str, Any]:
        """As a flat record."""
        return {
            "insertion": self.candidate.insertion.name,
            "cut": self.candidate.cut.name,
            **{name: getattr(self, name) for name in ("match", "tar", "avg_u", "auroc", "parameters", "macs")},
        }


@torch.no_grad()
def insertion_curve(networks: Networks, batches: Batches, candidates: list[Candidate], head: nn.Linear) -> list[Judged]:
    """Judge every candidate on held-out images, best first; those that look best at a glance are looked at again."""
    tails = {candidate.cut.name: networks.tail(candidate.cut.name) for candidate in candidates}
    whole = [(one, CloneModule(one.adapter, tails[one.cut.name], head)) for one in candidates]
    glances = judge(networks, batches, whole, GLANCE)
    shortlist = {id(judged.candidate) for judged in glances[:SHORTLIST]}
    return judge(networks, batches, [pair for pair in whole if id(pair[0]) in shortlist]) + glances[SHORTLIST:]


@torch.no_grad()
def judge(
    networks: SourceAndTarget, batches: Batches, modules: list[tuple[Candidate, CloneModule]], images: int = IMAGES
) -> list[Judged]:
    """How modules do as they are, with a gate of their own, on so many images of each side and part; best first."""
    points = {candidate.insertion.name for candidate, _ in modules}

    def answers(batch: Tensor) -> dict[str, Any]:
        logits, features = networks.target(batch, points)
        # without the features: scalars are enough to compare candidates, and features take a fit of thousands of weights each
        given = [module(features[candidate.insertion.name])[:2] for candidate, module in modules]
        return {"target": logits, "taught": networks.teach(batch).cloned, "answers": given}

    fit, held_out = (gather_sides(answers, batches, part, images) for part in ("fit", "choose"))
    judged = [
        Judged(
            candidate,
            _match(number, held_out),
            *_joint(evidence(fit, number), evidence(held_out, number), batches.covered, networks.odds),
            parameters(module),
            macs(module, empty(candidate.insertion, device=networks.device)),
        )
        for number, (candidate, module) in enumerate(modules)
    ]
    return _ranked(judged, min(len(side["labels"]) for side in held_out if side))


def _ranked(judged: list[Judged], images: int) -> list[Judged]:
    """Best first; accuracies on so many ``images`` of each side that differ by less than a standard error are the same.

    Then the second score decides. Few images make all of these equal: then how well the source's logits are reproduced, to a
    tenth, then cost.
    """
    judged = sorted(judged, key=lambda one: (*one.score, -one.macs), reverse=True)
    best = (judged[0].score[0] * images + 1) / (images + 2)  # of a hundred right answers the next may still be wrong
    error = math.sqrt(best * (1 - best) / images / (1 if judged[0].avg_u is None else 2))
    alike = [one for one in judged if one.score[0] >= best - error]
    ordered = sorted(alike, key=lambda one: (-round(one.score[1], 3), -round(one.match, 1), one.macs))
    return ordered + judged[len(alike) :]


def _match(number: int, sides: Gathered) -> float:
    """Share of the variance of the source's logits that a module reproduces."""
    goal = torch.cat([side["taught"] for side in sides if side])
    logits = torch.cat([side["answers"][number][0] for side in sides if side])
    return float(1 - ((goal - logits) ** 2).sum() / ((goal - goal.mean(0)) ** 2).sum().clamp_min(1e-12))


def _joint(fit: Sides, held_out: Sides, covered: bool, odds: float) -> tuple[float, float | None, float | None]:
    """(accuracy among the cloned classes, joint accuracy, AUROC of a gate) on held-out images."""
    new, old = held_out
    tar = float((new.clone_logits.argmax(1) == new.labels).float().mean())
    if old is None:
        return tar, None, None
    gate = gates.fit(*fit, held_out, False, covered, odds)
    gate.offset.fill_(gates.best_offset(gate, *fit, None, covered))
    avg_u = (new.accuracy(gate, True) + old.accuracy(gate, False)) / 2
    return tar, avg_u, gates.auroc(new.gate_logit(gate), old.gate_logit(gate))
