"""The insertion curve: how well a clone would do at each place, before anything is trained.

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
from pnc_hub.cloning.fitting.stitch import Candidate
from pnc_hub.cloning.images.batches import Batches
from pnc_hub.cloning.measuring.evaluate import gather
from pnc_hub.cloning.networks import Networks, SourceAndTarget
from pnc_hub.models import cost
from pnc_hub.models.cost import parameters
from pnc_hub.models.insertion import InsertionPoint, empty
from pnc_hub.module import CloneModule

# Images of each side and part: at a first glance for all, and for a short list. Two accuracies on 200 images that differ by
# less than three points are the same.
GLANCE, IMAGES, SHORTLIST = 32, 200, 12


@dataclass(frozen=True)
class Place:
    """One point of the curve.

    Attributes:
        candidate: where the target is read and the source is cut, with the closed-form adapter.
        match: share of the source's logits' variance that is reproduced on held-out images (R2).
        tar: accuracy among the cloned classes.
        avg_u: mean of old and new accuracy of the joint answer; None without images of others.
        auroc: of the gate; None without images of others.
        parameters: of adapter, tail (unpruned on the curve) and head.
        macs: multiply-accumulates of the same for one image.
    """

    candidate: Candidate
    match: float
    tar: float
    avg_u: float | None
    auroc: float | None
    parameters: int
    macs: int

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
def insertion_curve(
    networks: Networks, batches: Batches, candidates: list[Candidate], reject: tuple[Tensor, Tensor]
) -> list[Place]:
    """Judge every candidate on held-out images, best first; those that look best at a glance are looked at again.

    Args:
        networks: source and target.
        batches: the images; at most ``IMAGES`` of each side and part are looked at.
        candidates: with their closed-form adapters.
        reject: reject rows of the head.
    """
    tails = {candidate.cut.name: networks.tail(candidate.cut.name) for candidate in candidates}
    head = networks.head_rows(reject)
    whole = [(one, CloneModule(one.adapter, tails[one.cut.name], head)) for one in candidates]
    glances = judge(networks, batches, whole, GLANCE)
    short = {id(place.candidate) for place in glances[:SHORTLIST]}
    return judge(networks, batches, [pair for pair in whole if id(pair[0]) in short]) + glances[SHORTLIST:]


@torch.no_grad()
def judge(
    networks: SourceAndTarget, batches: Batches, modules: list[tuple[Candidate, CloneModule]], images: int = IMAGES
) -> list[Place]:
    """How modules do as they are, with a gate of their own, on so many images of each side and part; best first."""
    points = {candidate.insertion.name for candidate, _ in modules}

    def read(batch: Tensor) -> tuple[Tensor, ...]:
        logits, features = networks.target(batch, points)
        columns = [logits, networks.teach(batch).cloned]
        for candidate, module in modules:
            columns += module(features[candidate.insertion.name])[:2]
        return tuple(columns)

    parts = [
        (
            gather(read, batches.loader([getattr(batches.cloned, part)], most=images)),
            gather(read, batches.loader([getattr(batches.target, part)], most=images)) if batches.target else None,
        )
        for part in ("fit", "choose")
    ]
    places = [
        _place(2 + 2 * number, *pair, parts, (batches.covered, networks.odds)) for number, pair in enumerate(modules)
    ]
    return _ranked(places, min(len(side[0]) for side in parts[1] if side))


def _ranked(places: list[Place], images: int) -> list[Place]:
    """Best first; accuracies that differ by less than a standard error are the same, and the second score decides.

    Few images make all of these equal: then how well the source's logits are reproduced decides, to a tenth, then cost.

    Args:
        places: in any order.
        images: how many of each side they were judged on.
    """
    places = sorted(places, key=lambda place: (*place.score, -place.macs), reverse=True)
    best = (places[0].score[0] * images + 1) / (images + 2)  # of a hundred right answers the next may still be wrong
    error = math.sqrt(best * (1 - best) / images / (1 if places[0].avg_u is None else 2))
    alike = [place for place in places if place.score[0] >= best - error]
    ordered = sorted(alike, key=lambda place: (-round(place.score[1], 3), -round(place.match, 1), place.macs))
    return ordered + places[len(alike) :]


def _place(
    column: int, candidate: Candidate, module: CloneModule, parts: list[Any], known: tuple[bool, float]
) -> Place:
    fit, choose = ((_evidence(own, column), old and _evidence(old, column)) for own, old in parts)
    goal, found = (torch.cat([side[k] for side in parts[1] if side]) for k in (1, column))
    new, old = choose
    avg_u = separation = None
    if old is not None:
        gate = gates.fit(*fit, choose, False, *known)
        gate.offset.fill_(gates.best_offset(gate, *fit, None, known[0]))
        avg_u = (new.accuracy(gate, True) + old.accuracy(gate, False)) / 2
        separation = gates.auroc(new.gate_logit(gate), old.gate_logit(gate))
    return Place(
        candidate,
        float(1 - ((goal - found) ** 2).sum() / ((goal - goal.mean(0)) ** 2).sum().clamp_min(1e-12)),
        float((new.clone_logits.argmax(1) == new.labels).float().mean()),
        avg_u,
        separation,
        parameters(module),
        macs(module, candidate.insertion),
    )


def _evidence(side: tuple[Tensor, ...], column: int) -> gates.Evidence:
    """Of scalars alone: they are enough to compare places, and features would take a fit of thousands of weights each."""
    return gates.Evidence(side[0], side[column], side[column + 1], side[0].new_zeros(len(side[0]), 0), side[-1])


def macs(module: nn.Module, point: InsertionPoint) -> int:
    """Multiply-accumulates of ``module`` for one image's feature at ``point``."""
    return cost.macs(module, empty(point, device=next(module.parameters()).device))
