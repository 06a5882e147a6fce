"""Trials: the most promising candidates with pruned tails, refined by turns until one is left."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from tqdm.auto import tqdm

from pnc_hub import fusion
from pnc_hub.cloning.fitting.goal import Goal
from pnc_hub.cloning.fitting.refine import Recipe, refine
from pnc_hub.cloning.fitting.stitch import Candidate
from pnc_hub.cloning.images.batches import Batches
from pnc_hub.cloning.measuring.evaluate import gather
from pnc_hub.cloning.networks import Lesson, Networks
from pnc_hub.cloning.pruning import localize
from pnc_hub.cloning.pruning.local_set import local_set
from pnc_hub.cloning.search.curve import Judged, judge
from pnc_hub.cloning.search.phases import begin
from pnc_hub.errors import SourceError
from pnc_hub.models.cost import macs, parameters
from pnc_hub.models.insertion import empty
from pnc_hub.module import CloneModule

MAX_IMAGES = 500  # of each side, by which trials are compared
# Successive halving: so many candidates are refined for this share of the passes, or for so many steps if those are more (a
# few tell nothing of early cuts, which learn most and begin worst), and the best go on.
ROUNDS: tuple[tuple[int, float, int], ...] = ((4, 0.04, 40), (2, 0.08, 60), (1, 1.0, 0))
# So many candidates are pruned, which takes longer than to judge them whole.
TRIALS = ROUNDS[0][0]
CLEARLY = 0.06  # accuracies on the few images of a judgement that differ by less are the same
# Of a tail of up to so many times what it may have, little is removed.
WHOLE = 1.1


@dataclass(frozen=True)
class Size:
    """What a clone may cost, adapter, head and gate included: parameters, and multiply-accumulates per image."""

    parameters: int
    macs: float = float("inf")

    def suits(self, judged: Judged) -> bool:
        """Whether that one hardly needs pruning."""
        return judged.parameters <= WHOLE * self.parameters and judged.macs <= self.macs


@dataclass
class Trial:
    """One candidate on its way: its module, and how it does on held-out images so far."""

    stitched: Judged  # with the whole tail
    module: CloneModule  # pruned, and then refined
    pruned: Judged | None = None
    score: float = float("-inf")

    @property
    def candidate(self) -> Candidate:
        """Where the target is read and the source is cut."""
        return self.stitched.candidate

    def stages(self) -> dict[str, float]:
        """AUROC of the gate on the way here, where there are images of others."""
        judged = {"auroc_stitched": self.stitched, "auroc_pruned": self.pruned}
        return {name: one.auroc for name, one in judged.items() if one and one.auroc is not None}


def promising(
    networks: Networks, batches: Batches, curve: list[Judged], head: nn.Linear, size: Size, closed: bool, bar: tqdm[Any]
) -> list[Trial]:
    """The candidates worth a trial, at most ``TRIALS``, with pruned tails, the best of these first.

    Where the form is ``closed``, which is to say that nothing is trained afterwards, only those that are clearly better whole
    are pruned beside the first that hardly needs it.

    Raises:
        SourceError: none can be made small enough.
    """
    trials: list[Trial] = []
    worth = _closed(curve, size) if closed else _varied(curve, size)
    begin(bar, "prune", min(TRIALS, len(worth)))
    refusal = "every adapter alone is larger; allow more with keep="
    for judged in worth:
        try:
            trials.append(Trial(judged, _pruned(networks, batches, judged.candidate, head, size)))
        except SourceError as error:
            refusal = str(error)
        bar.update()
        if len(trials) == TRIALS:
            break
    if not trials:
        raise SourceError(f"no candidate fits into {size.parameters:,} parameters and {size.macs:,} MACs: {refusal}")
    by_candidate = {id(trial.candidate): trial for trial in trials}
    ranked = judge(networks, batches, [(trial.candidate, trial.module) for trial in trials])
    for judged in ranked:
        by_candidate[id(judged.candidate)].pruned = judged
    return [by_candidate[id(judged.candidate)] for judged in ranked]


def _closed(curve: list[Judged], size: Size) -> list[Judged]:
    """The first that hardly needs pruning, after those that are clearly better whole; all where none is like that."""
    suits = next((judged for judged in curve if size.suits(judged)), None)
    if suits is None:
        return curve
    better = [judged for judged in curve if judged.score[0] > suits.score[0] + CLEARLY]
    return [*better[: TRIALS - 1], suits]


def _varied(curve: list[Judged], size: Size) -> list[Judged]:
    """The curve in the order in which it is worth trying.

    First the best, and the best of those that hardly need pruning, which the curve of whole tails does not tell. Then for each
    stage of the target the best, and the best at its resolution: the closed form favours late cuts, behind which little can
    go wrong and little can be learned; a tail that works at the target's own resolution gains most from refinement.
    """

    def kinds(judged: Judged) -> Iterator[tuple[Any, ...]]:
        insertion, cut = judged.candidate.insertion, judged.candidate.cut
        yield (0,)
        if size.suits(judged):
            yield (1,)
        yield 2, insertion.grid
        if cut.grid == insertion.grid:
            yield 3, insertion.grid

    first: dict[tuple[Any, ...], Judged] = {}
    for judged in curve:
        for kind in kinds(judged):
            first.setdefault(kind, judged)
    chosen = {id(first[kind]): first[kind] for kind in sorted(first, key=lambda kind: kind[0])}
    return [*chosen.values(), *(judged for judged in curve if id(judged) not in chosen)]


def refined(trials: list[Trial], networks: Networks, batches: Batches, recipe: Recipe, bar: tqdm[Any]) -> Trial:
    """The one that does best on held-out images after all rounds; ``trials`` come in the order in which they are promising."""
    steps = max(1, len(batches.mixed("fit", shuffle=True)))
    rounds = _rounds(len(trials), recipe.epochs, steps)
    begin(bar, "train", sum(min(most, len(trials)) * round(epochs * steps) for most, epochs in rounds))
    for most, epochs in rounds:
        trials = sorted(trials, key=lambda trial: -trial.score)[:most]  # the first time in the order they have
        for trial in trials:
            _refine(trial, networks, batches, replace(recipe, epochs=epochs), bar)
    return trials[0]


def _rounds(trials: int, epochs: float, steps: int) -> list[tuple[int, float]]:
    """(candidates that are refined, passes) for each of ``ROUNDS`` that leaves fewer than come to it, and the last."""
    rounds = []
    for (most, share, least), (left, *_) in zip(ROUNDS, [*ROUNDS[1:], (0,)], strict=True):
        if trials > left and epochs:
            rounds.append((most, min(epochs, max(share * epochs, least / steps))))
            trials = min(trials, most)
    return rounds


def _pruned(networks: Networks, batches: Batches, candidate: Candidate, head: nn.Linear, size: Size) -> CloneModule:
    """Adapter, pruned tail and head of at most that size."""
    room = size.parameters - parameters(candidate.adapter) - networks.width - len(fusion.SCALARS) - 2
    cut = candidate.cut
    while room > 0:
        nearby = local_set(networks, batches, cut.name)
        parts = localize.prune(networks.tail(cut.name), head, cut, nearby, room, classes=len(networks.classes))
        module = CloneModule(copy.deepcopy(candidate.adapter), *parts).to(networks.device)
        cost = macs(module, empty(candidate.insertion, device=networks.device))
        if cost <= size.macs:
            return module
        room = int(0.95 * size.macs / cost * min(room, sum(map(parameters, parts))))
    raise SourceError(
        f"{candidate.insertion.name} -> {cut.name} does not get that small; allow more with keep= or budget="
    )


def _refine(trial: Trial, networks: Networks, batches: Batches, recipe: Recipe, bar: tqdm[Any]) -> None:
    pair = (trial.candidate.insertion.name, trial.candidate.cut.name)
    bar.set_postfix_str(" -> ".join(pair))
    held_out = batches.mixed("choose", each=MAX_IMAGES)
    taught = gather(lambda images: {"lesson": networks.teach(images)[:2]}, held_out)
    cloned, rejected = taught["lesson"]
    # of all held-out images together, so that both sides weigh the same
    goal = Goal.of(Lesson(cloned, rejected, cloned, {}), taught["labels"], recipe.anchored)

    def score(module: CloneModule) -> float:
        """Minus the distance from the goal over all held-out images."""
        said = gather(lambda images: {"said": module(networks.target.feature(images, pair[0]))[:2]}, held_out)
        return -float(goal.distance(said["said"]))

    best = trial.score if trial.score > float("-inf") else None
    trial.score = refine(trial.module, networks, batches, pair, recipe, score, bar.update, best)
