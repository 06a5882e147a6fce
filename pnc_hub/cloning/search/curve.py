"""The insertion curve: how well a clone would do at pairs of insertion point and cut, before anything is trained.

A candidate's closed-form adapter is put before the whole tail, and what comes out is compared with the source's answers on
held-out images. Not every pair is looked at: one of each stage first, then the neighbours of those that do best, as long as
that helps. The few best are looked at again, on more images and with a gate. It tells what the closed form is worth for the
price of a few hundred images; what training would add it does not know (`recipes/method/insertion.py`), which is why the search
also tries early places.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from pnc_hub.cloning.fitting import gate as gates
from pnc_hub.cloning.fitting.gate import Sides
from pnc_hub.cloning.fitting.stitch import Candidate, Stitches
from pnc_hub.cloning.images.batches import Batches
from pnc_hub.cloning.images.shown import Shown
from pnc_hub.cloning.measuring.evaluate import Gathered, evidence, gather_sides
from pnc_hub.cloning.networks import SourceAndTarget
from pnc_hub.models.cost import macs, parameters
from pnc_hub.models.insertion import InsertionPoint, empty
from pnc_hub.module import CloneModule

# Images of each side: at a first glance, and for a short list, fewer where they are large (but ``FEWEST``). Two accuracies on
# 200 images that differ by less than three points are the same.
GLANCE, IMAGES, FEWEST, PIXELS, SHORTLIST = 16, 200, 64, 1 << 21, 6
BEAM = 4  # so many of the best have their neighbours looked at

Pair = tuple[InsertionPoint, InsertionPoint]


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
def insertion_curve(
    networks: SourceAndTarget,
    batches: Batches,
    stitches: Stitches,
    whole_module: Callable[[Candidate], CloneModule],
    first: Callable[[Judged], object],
) -> list[Judged]:
    """Judge candidates on held-out images, best first.

    Args:
        networks: source and target.
        batches: their images.
        stitches: the pairs, with their adapters.
        whole_module: puts a candidate's adapter before the whole tail.
        first: is told which looks best, before the best are looked at again.
    """
    whole: dict[Pair, tuple[Candidate, CloneModule]] = {}
    glances: dict[Pair, Judged] = {}

    def look(pairs: Iterable[Pair]) -> None:
        new = [pair for pair in dict.fromkeys(pairs) if pair not in glances]
        for insertion, cut in new:
            candidate = stitches.candidate(insertion, cut)
            whole[insertion, cut] = candidate, whole_module(candidate)
        judged = judge(networks, batches, [whole[pair] for pair in new], glance=True) if new else []
        glances.update({(one.candidate.insertion, one.candidate.cut): one for one in judged})

    def best(count: int | None = None) -> list[Pair]:
        """By turns the best in accuracy, of which a few images tell little, and in how the logits match."""
        judged = list(glances.values())
        turns = zip(_ranked(judged, GLANCE), sorted(judged, key=lambda one: -round(one.match, 3)), strict=True)
        order = [(one.candidate.insertion, one.candidate.cut) for turn in turns for one in turn]
        return list(dict.fromkeys(order))[:count]

    look(_one_per_stage(stitches.pairs))
    seen: set[Pair] = set()
    while new := set(best(BEAM)) - seen:
        seen |= new
        look(near for pair in best(BEAM) if pair in new for near in _neighbours(pair, stitches.pairs))
    shortlist = best(SHORTLIST)
    first(glances[shortlist[0]])
    judged = judge(networks, batches, [whole[pair] for pair in shortlist])
    rest = [glances[pair] for pair in best() if pair not in shortlist]
    return judged + rest


@torch.no_grad()
def judge(
    networks: SourceAndTarget,
    batches: Batches,
    modules: list[tuple[Candidate, CloneModule]],
    *,
    glance: bool = False,
) -> list[Judged]:
    """How modules do as they are, with a gate of their own, on some images of each side and part; best first.

    At a ``glance`` these are few. Then, and where no gate can be learned, the gate is a fixed one, and its offset the best for
    the very images that are looked at.
    """
    _, height, width = networks.target.preprocess.input_size
    images = GLANCE if glance else min(IMAGES, max(FEWEST, PIXELS // (height * width)))
    points = {candidate.insertion.name for candidate, _ in modules}

    def answers(batch: Shown) -> dict[str, Any]:
        logits, features = networks.target(batch, points)
        # without the features: scalars are enough to compare candidates, and features take a fit of thousands of weights each
        given = [module(features[candidate.insertion.name])[:2] for candidate, module in modules]
        return {"target": logits, "taught": networks.teach(batch).cloned, "answers": given}

    held_out = gather_sides(answers, batches, "choose", images)
    learned = not glance and batches.covered
    fit = gather_sides(answers, batches, "fit", images) if learned else held_out
    judged = [
        Judged(
            candidate,
            _match(number, held_out),
            *_joint(
                evidence(fit, number), evidence(held_out, number), learned, glance or batches.covered, networks.odds
            ),
            parameters(module),
            macs(module, empty(candidate.insertion, device=networks.device)),
        )
        for number, (candidate, module) in enumerate(modules)
    ]
    return _ranked(judged, min(len(side["labels"]) for side in held_out if side))


def _one_per_stage(pairs: list[Pair]) -> list[Pair]:
    """For the last point of each of the target's stages, the last cut of the stage of the source that is most like it."""
    inserted, cuts = ({_stage(pair[side]): pair[side] for pair in pairs} for side in (0, 1))
    chosen = []
    for insertion in inserted.values():
        own = [cut for cut in cuts.values() if (insertion, cut) in pairs]
        if own:
            chosen.append((insertion, min(own, key=lambda cut: _unlike(insertion, cut))))
    return chosen or pairs[-1:]


def _neighbours(pair: Pair, pairs: list[Pair]) -> Iterator[Pair]:
    """The next earlier and later pair of the same insertion point, and of the same cut."""
    for side in (0, 1):
        line = [other for other in pairs if other[side] == pair[side]]
        here = line.index(pair)
        yield from line[max(0, here - 1) : here]
        yield from line[here + 1 : here + 2]


def _stage(point: InsertionPoint) -> tuple[Any, ...]:
    return point.channels, point.grid, point.layout


def _unlike(insertion: InsertionPoint, cut: InsertionPoint) -> float:
    return abs(math.log(math.prod(insertion.grid) / math.prod(cut.grid)))


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


def _joint(
    fit: Sides, held_out: Sides, learned: bool, lowered: bool, odds: float
) -> tuple[float, float | None, float | None]:
    """(accuracy among the cloned classes, joint accuracy, AUROC of a gate) on held-out images.

    The gate is ``learned`` on those to fit on, or a fixed one; its offset may be ``lowered`` below zero, or not.
    """
    new, old = held_out
    tar = float((new.clone_logits.argmax(1) == new.labels).float().mean())
    if old is None:
        return tar, None, None
    gate = gates.fit(*fit, held_out, False, learned, odds)
    gate.offset.fill_(gates.best_offset(gate, *fit, None, lowered))
    avg_u = (new.accuracy(gate, True) + old.accuracy(gate, False)) / 2
    return tar, avg_u, gates.auroc(new.gate_logit(gate), old.gate_logit(gate))
