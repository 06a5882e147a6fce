"""The choice of insertion point and cut: a curve of closed-form candidates, short trials of the best, refinement of one."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pnc_hub import fusion
from pnc_hub.cloning.fitting import gate as gates
from pnc_hub.cloning.fitting import ridge, stitch
from pnc_hub.cloning.fitting.refine import Recipe, distillation_loss, refine
from pnc_hub.cloning.images.batches import Batches
from pnc_hub.cloning.measuring.evaluate import gather
from pnc_hub.cloning.networks import Lesson, Networks, SourceAndTarget
from pnc_hub.cloning.package import Learned
from pnc_hub.cloning.pruning import localize
from pnc_hub.cloning.search.curve import Place, insertion_curve, judge, macs
from pnc_hub.errors import InsertionPointError, SourceError
from pnc_hub.models.cost import parameters
from pnc_hub.models.insertion import INPUT, InsertionPoint
from pnc_hub.module import CloneModule, Gate

MAX_RIDGE_IMAGES = 500
# Gates have a few hundred numbers to learn, and a conformal quantile is not finer than the images it came from.
MAX_GATE_IMAGES = 2000
# Localisation looks at so many pixels of each side, so that its time does not grow with the size of the images.
LOCAL_PIXELS = 1 << 23
# Successive halving: so many places are refined for this share of the passes, or for so many steps if those are more (a few
# tell nothing of early cuts, which learn most and begin worst), and the best go on.
ROUNDS: tuple[tuple[int, float, int], ...] = ((8, 0.04, 40), (3, 0.08, 80), (1, 1.0, 0))
# Of a tail of up to so many times what it may have, little is removed.
WHOLE = 1.1


@dataclass(frozen=True)
class Size:
    """What a clone may cost, adapter, head and gate included: parameters, and multiply-accumulates per image."""

    parameters: int
    macs: float = float("inf")


class Trial:
    """One place on its way: its module, and how it does on held-out images so far."""

    def __init__(self, place: Place, module: CloneModule) -> None:
        """``module`` is pruned and stitched, not yet refined; ``place`` is of the whole tail, ``pruned`` of this one."""
        self.place, self.module, self.score = place, module, float("-inf")
        self.pruned: Place | None = None

    def stages(self) -> dict[str, float]:
        """AUROC of the gate on the way here, where there are images of others."""
        places = {"auroc_stitched": self.place, "auroc_pruned": self.pruned}
        return {name: place.auroc for name, place in places.items() if place and place.auroc is not None}


def best_clone(
    networks: Networks,
    batches: Batches,
    fixed: tuple[str | None, str | None],
    size: Size,
    recipe: Recipe,
    locality_budget: float | None,
    bar: tqdm[Any],
) -> tuple[Learned, list[Place]]:
    """The candidate that does best on held-out images, refined, with its gates; and the curve it was chosen from.

    Args:
        networks: source and target.
        batches: the images.
        fixed: (insertion point, cut) where the caller chose them.
        size: what the clone may cost.
        recipe: of the full refinement.
        locality_budget: largest share of the target's images that may be diverted, or None.
        bar: shows progress.

    Raises:
        InsertionPointError: no pair is admissible.
        SourceError: none can be made small enough.
    """
    pairs = search_pairs(networks, fixed)
    fit, held_out = (batches.mixed(part, each=MAX_RIDGE_IMAGES // 2) for part in ("fit", "choose"))
    bar.set_description(f"fit adapters to {len(pairs)} pairs of places")
    candidates = stitch.search(networks, batches.accelerator, fit, held_out, pairs, batches.seed)
    bar.set_description(f"judge {len(candidates)} places")
    reject = _reject_rows(networks, batches)
    places = insertion_curve(networks, batches, candidates, reject)
    bar.set_description("prune and repair")
    trials = _trials(networks, batches, places, reject, size)
    by_candidate = {id(trial.place.candidate): trial for trial in trials}
    trials = []
    for place in judge(networks, batches, [(one.place.candidate, one.module) for one in by_candidate.values()]):
        trials.append(by_candidate[id(place.candidate)])
        trials[-1].pruned = place
    steps = max(1, len(batches.mixed("fit", shuffle=True)))
    rounds = _rounds(len(trials), recipe.epochs, steps)
    bar.total = sum(min(most, len(trials)) * round(epochs * steps) for most, epochs in rounds)
    bar.set_description("train")
    for most, epochs in rounds:
        trials = sorted(trials, key=lambda trial: -trial.score)[:most]  # the first time in the order they have
        for trial in trials:
            _refine(trial, networks, batches, replace(recipe, epochs=epochs), bar)
    return with_gate(trials[0], networks, batches, locality_budget, recipe.universal), places


def _rounds(trials: int, epochs: float, steps: int) -> list[tuple[int, float]]:
    """(places that are refined, passes) for each of ``ROUNDS`` that leaves fewer places than come to it, and the last.

    Args:
        trials: places to begin with.
        epochs: passes of the whole refinement.
        steps: steps in a pass.
    """
    rounds = []
    for (most, share, least), (left, *_) in zip(ROUNDS, [*ROUNDS[1:], (0,)], strict=True):
        if trials > left and epochs:
            rounds.append((most, min(epochs, max(share * epochs, least / steps))))
            trials = min(trials, most)
    return rounds


def search_pairs(
    networks: SourceAndTarget, fixed: tuple[str | None, str | None]
) -> list[tuple[InsertionPoint, InsertionPoint]]:
    """The pairs to search, or ``InsertionPointError``; ``fixed`` is (insertion point, cut) where the caller chose them."""
    points, cuts = networks.points(), networks.cuts()
    for name, known, what in (
        (fixed[0], points, "insertion point of the target"),
        (fixed[1], cuts, "cut of the source"),
    ):
        if name is not None and name not in known:
            raise InsertionPointError(f"{name!r} is no {what}; there are {', '.join(known)}")
    if fixed[0] == INPUT:
        raise InsertionPointError(
            "an adapter reads an interior point; every clone made with universal=True fits the input"
        )
    pairs = stitch.admissible_pairs(points, cuts, *fixed)
    if not pairs:
        raise InsertionPointError(
            f"no pair of an insertion point ({fixed[0] or 'any'}) and a cut ({fixed[1] or 'any'}) fits: maps may grow at most"
            " twofold, and a vector can not become a map"
        )
    return pairs


def _trials(
    networks: Networks, batches: Batches, places: list[Place], reject: tuple[Tensor, Tensor], size: Size
) -> list[Trial]:
    """The places worth a trial, with pruned tails.

    For each stage of the target the best, and the best at its resolution: the closed form favours late cuts, behind which
    little can go wrong and little can be learned; a tail that works at the target's own resolution gains most from
    refinement. And the best of those that hardly need pruning, which the curve of whole tails does not tell.
    """
    trials: list[Trial] = []
    seen: set[tuple[Any, ...]] = set()
    refusal = "every adapter alone is larger; allow more with keep="
    for place in places:
        target, source = place.candidate.insertion, place.candidate.cut
        kinds: set[tuple[Any, ...]] = set()
        if len(trials) < ROUNDS[0][0]:
            kinds = {(target.grid, False), (target.grid, source.grid == target.grid)}
        if place.parameters <= WHOLE * size.parameters and place.macs <= size.macs:
            kinds.add(("whole",))
        kinds -= seen
        if not kinds:
            continue
        try:
            trials.append(Trial(place, _pruned(networks, batches, place.candidate, reject, size)))
            seen |= kinds
        except SourceError as error:
            refusal = str(error)
    if not trials:
        raise SourceError(f"no candidate fits into {size.parameters:,} parameters and {size.macs:,} MACs: {refusal}")
    return trials


def _pruned(
    networks: Networks, batches: Batches, candidate: stitch.Candidate, reject: tuple[Tensor, Tensor], size: Size
) -> CloneModule:
    """Adapter, pruned tail and head of at most that size."""
    room = size.parameters - parameters(candidate.adapter) - networks.width - len(fusion.SCALARS) - 2
    cut = candidate.cut
    while room > 0:
        tail, head = localize.prune(
            networks.tail(cut.name),
            networks.head_rows(reject),
            cut,
            _local_set(networks, batches, cut.name),
            room,
            classes=len(networks.classes),
        )
        module = CloneModule(copy.deepcopy(candidate.adapter), tail, head).to(networks.device)
        cost = macs(module, candidate.insertion)
        if cost <= size.macs:
            return module
        room = int(0.95 * size.macs / cost * min(room, parameters(tail) + parameters(head)))
    raise SourceError(
        f"{candidate.insertion.name} -> {cut.name} does not get that small; allow more with keep= or budget="
    )


def _refine(trial: Trial, networks: Networks, batches: Batches, recipe: Recipe, bar: tqdm[Any]) -> None:
    pair = (trial.place.candidate.insertion.name, trial.place.candidate.cut.name)
    bar.set_description(" -> ".join(pair))
    held_out = batches.mixed("choose", each=MAX_GATE_IMAGES)
    trial.score = refine(
        trial.module,
        networks,
        batches.accelerator,
        pair,
        batches.mixed("fit", shuffle=True),
        lambda module: -_held_out_loss(module, networks, pair, held_out, recipe.anchored),
        recipe,
        torch.Generator().manual_seed(batches.seed + batches.accelerator.process_index),
        bar.update,
    )


def with_gate(
    trial: Trial, networks: SourceAndTarget, batches: Batches, budget: float | None, universal: bool
) -> Learned:
    """Gates for this target and for any, each fitted on what it will see, with offsets calibrated on their own part."""
    module, candidate = trial.module.eval().requires_grad_(False), trial.place.candidate
    point, cut = candidate.insertion.name, candidate.cut.name
    # a budget may need more images than a gate, and is met more finely by twice as many
    calibrated = max(MAX_GATE_IMAGES, 2 * gates.images_needed(budget) if budget else 0)

    def read(images: Tensor) -> tuple[Tensor, ...]:
        logits, features = networks.target(images, [point])
        columns = (logits, *module(features[point]))
        if not universal:
            return columns
        penultimate = module.tail(networks.teach(images, [cut]).features[cut])
        return (*columns, *module.answer(penultimate))

    parts: list[tuple[tuple[Tensor, ...], tuple[Tensor, ...] | None]] = [
        (
            gather(read, batches.loader([getattr(batches.cloned, part)], most=most)),
            gather(read, batches.loader([getattr(batches.target, part)], most=most)) if batches.target else None,
        )
        for part, most in (("fit", MAX_GATE_IMAGES), ("choose", MAX_GATE_IMAGES), ("calibrate", calibrated))
    ]

    def fitted(first: int, for_any: bool) -> Gate:
        fit, choose, calibrate = (
            (_evidence(own, first), None if old is None else _evidence(old, first)) for own, old in parts
        )
        gate = gates.fit(*fit, choose, for_any, batches.covered, networks.odds)
        gate.offset.fill_(gates.best_offset(gate, *calibrate, budget, batches.covered or for_any))
        return gate

    return Learned(
        module,
        fitted(1, False),
        fitted(4, True) if universal else None,
        candidate.insertion,
        candidate.cut,
        trial.place.match,
        trial.stages(),
    )


def _evidence(side: tuple[Tensor, ...], first: int) -> gates.Evidence:
    """``side`` holds target logits, then (clone logits, reject logit, features) from ``first`` on, and labels last."""
    return gates.Evidence(side[0], side[first], side[first + 1], side[first + 2], side[-1])


def _reject_rows(networks: Networks, batches: Batches) -> tuple[Tensor, Tensor]:
    """The energy of the source's other classes as one more linear row of its head: (weight [1, C], bias [1])."""
    if not len(networks.others):
        return networks.head.weight.new_zeros(1, networks.width), networks.head.bias.new_zeros(1)

    def rows(images: Tensor) -> tuple[Tensor, Tensor]:
        lesson = networks.teach(images)
        return lesson.penultimate, lesson.rejected[:, None]

    moments = [
        ridge.fit_rows(batches.accelerator, batches.mixed(part, each=MAX_RIDGE_IMAGES // 2), rows)
        for part in ("fit", "choose")
    ]
    weights = ridge.ridge(*moments).float()
    return weights[:-1].T, weights[-1]


def _local_set(networks: Networks, batches: Batches, cut: str) -> Iterable[tuple[Tensor, Tensor, Tensor]]:
    """Batches of (source feature at the cut, class or reject row, proximity): images, neighbours, and the others' images."""
    _, height, width = networks.source.preprocess.input_size
    most = max(1, min(MAX_RIDGE_IMAGES, LOCAL_PIXELS // (height * width)))
    generator = torch.Generator().manual_seed(batches.seed)
    # every process reads all of them, and so prunes alike
    for images, labels in batches.loader([batches.cloned.fit], most=most, whole=True):
        changed, near = localize.neighbours(images, generator)
        for batch, weight in ((images, torch.ones_like(near)), (changed, near)):
            yield networks.teach(batch, [cut]).features[cut], labels, weight
    if batches.target is not None:
        for images, labels in batches.loader([batches.target.fit], most=most, whole=True):
            reject = torch.full_like(labels, len(networks.classes))
            yield networks.teach(images, [cut]).features[cut], reject, torch.ones(len(labels), device=networks.device)


@torch.no_grad()
def _held_out_loss(
    module: CloneModule, networks: Networks, pair: tuple[str, str], held_out: Iterable[Any], anchored: bool
) -> float:
    """The distillation loss over all held-out images together, so that both sides weigh the same."""

    def read(images: Tensor) -> tuple[Tensor, ...]:
        lesson = networks.teach(images)
        return *module(networks.target.feature(images, pair[0]))[:2], lesson.cloned, lesson.rejected

    *output, cloned, rejected, labels = gather(read, held_out)
    lesson = Lesson(cloned, rejected, cloned, {})
    return float(distillation_loss(tuple(output), lesson, labels, anchored))
