"""The choice of insertion point and cut: closed-form candidates, short trials, full refinement of the best."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pnc_hub import fusion
from pnc_hub.cloning import gate as gates
from pnc_hub.cloning import localize, stitch
from pnc_hub.cloning.batches import Batches
from pnc_hub.cloning.evaluate import gather
from pnc_hub.cloning.networks import Lesson, Networks
from pnc_hub.cloning.package import Learned
from pnc_hub.cloning.refine import Recipe, distillation_loss, refine
from pnc_hub.errors import InsertionPointError, SourceError
from pnc_hub.module import CloneModule, Gate
from pnc_hub.points import INPUT, InsertionPoint

MAX_RIDGE_IMAGES, MAX_RANKED_IMAGES = 500, 64
# Localisation looks at so many pixels of each side, so that its time does not grow with the size of the images.
LOCAL_PIXELS = 1 << 23
# Successive halving: so many candidates are refined for this share of the epochs, the best go on; None: all.
ROUNDS: tuple[tuple[int | None, float], ...] = ((None, 0.1), (3, 0.2), (1, 1.0))


class Trial:
    """One candidate on its way: its module, and how it does on held-out images so far."""

    def __init__(self, candidate: stitch.Candidate, module: CloneModule) -> None:
        """``module`` is pruned and stitched, not yet refined."""
        self.candidate, self.module, self.score = candidate, module, float("-inf")


def best_clone(
    networks: Networks,
    batches: Batches,
    fixed: tuple[str | None, str | None],
    keep: float,
    recipe: Recipe,
    budget: float | None,
    bar: tqdm,
) -> Learned:
    """The candidate that does best on held-out images, refined, with its gates.

    Args:
        networks: source and target.
        batches: the images.
        fixed: (insertion point, cut) where the caller chose them.
        keep: largest share of the source's parameters.
        recipe: of the full refinement.
        budget: locality budget, or None.
        bar: shows progress.

    Raises:
        InsertionPointError: no pair is admissible.
        SourceError: none can be made small enough.
    """
    candidates = _candidates(networks, batches, fixed)
    trials = _stitched(networks, batches, _worth_a_trial(candidates), int(keep * networks.parameters))
    rounds = [(min(most or len(trials), len(trials)), round(share * recipe.epochs)) for most, share in ROUNDS]
    bar.total = sum(count * epochs for count, epochs in rounds)
    for count, epochs in rounds:
        trials = sorted(trials, key=lambda trial: -trial.score)[:count]
        for trial in trials:
            _refine(trial, networks, batches, replace(recipe, epochs=epochs), bar)
    return _with_gate(trials[0], networks, batches, budget)


def _candidates(networks: Networks, batches: Batches, fixed: tuple[str | None, str | None]) -> list[stitch.Candidate]:
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
    fit = batches.mixed("fit", most=MAX_RIDGE_IMAGES)
    held_out = batches.mixed("choose", most=MAX_RANKED_IMAGES)
    return stitch.search(networks, batches.accelerator, fit, held_out, pairs, batches.seed)


def _worth_a_trial(candidates: list[stitch.Candidate]) -> list[stitch.Candidate]:
    """For each stage of the target the best match, and the best match among the source's maps of the same size.

    The closed-form match favours late cuts, behind which little can go wrong and little can be learned; a tail that works
    at its own resolution gains most from refinement.
    """
    chosen: dict[tuple, stitch.Candidate] = {}
    for candidate in candidates:  # best match first
        stage = candidate.target.grid
        chosen.setdefault((stage, "best"), candidate)
        if candidate.source.grid == candidate.target.grid:
            chosen.setdefault((stage, "same size"), candidate)
    return list({id(candidate): candidate for candidate in chosen.values()}.values())


def _stitched(networks: Networks, batches: Batches, candidates: list[stitch.Candidate], largest: int) -> list[Trial]:
    """Candidates with their tails pruned to at most ``largest`` parameters, adapter, head and gate included.

    What the cloned classes need of the source does not depend on the target, so candidates with the same cut share it.
    """
    reject = _reject_row(networks, batches)
    by_cut: dict[InsertionPoint, list[tuple[int, stitch.Candidate]]] = {}
    refusal = "every adapter alone is larger; allow more with keep="
    for candidate in candidates:
        room = largest - localize.parameters(candidate.adapter) - networks.width - len(fusion.SCALARS) - 2
        if room > 0:
            by_cut.setdefault(candidate.source, []).append((room, candidate))
    trials = []
    for cut, members in by_cut.items():
        whole = networks.tail(cut.name), networks.head_rows(reject)
        try:
            pruned = localize.prune(
                *whole, cut, _local_set(networks, batches, cut.name), min(room for room, _ in members)
            )
        except SourceError as error:
            refusal = str(error)
            continue
        for _, candidate in members:
            trials.append(Trial(candidate, CloneModule(candidate.adapter, *copy.deepcopy(pruned)).to(networks.device)))
    if not trials:
        raise SourceError(f"no candidate fits into {largest:,} parameters: {refusal}")
    return trials


def _refine(trial: Trial, networks: Networks, batches: Batches, recipe: Recipe, bar: tqdm) -> None:
    pair = (trial.candidate.target.name, trial.candidate.source.name)
    bar.set_description(" -> ".join(pair))
    held_out = batches.mixed("choose")
    trial.score = refine(
        trial.module,
        networks,
        batches.accelerator,
        pair,
        batches.mixed("fit", shuffle=True),
        lambda module: -_held_out_loss(module, networks, pair, held_out),
        recipe,
        torch.Generator().manual_seed(batches.seed),
        bar.update,
    )


def _with_gate(trial: Trial, networks: Networks, batches: Batches, budget: float | None) -> Learned:
    """Gates for this target and for any, each fitted on what it will see, with offsets calibrated on their own part."""
    module, point, cut = trial.module.eval().requires_grad_(False), trial.candidate.target, trial.candidate.source

    def through_target(images: Tensor) -> tuple[Tensor, ...]:
        logits, read = networks.target(images, [point.name])
        return (logits, *module(read[point.name]))

    def through_prefix(images: Tensor) -> tuple[Tensor, ...]:
        features = module.tail(networks.teach(images, [cut.name]).features[cut.name])
        logits = module.head(features)
        return networks.target(images)[0], logits[:, :-1], logits[:, -1], features

    def fitted(read: Callable[[Tensor], tuple[Tensor, ...]], universal: bool) -> Gate:
        fit, choose, calibrate = (
            [
                gather(read, batches.loader([getattr(split, part)])) if split else None
                for split in (batches.cloned, batches.target)
            ]
            for part in ("fit", "choose", "calibrate")
        )
        gate = gates.fit(*fit, choose, universal)
        gate.offset.fill_(gates.best_offset(gate, *calibrate, budget))
        return gate

    return Learned(
        module, fitted(through_target, False), fitted(through_prefix, True), point, cut, trial.candidate.match
    )


def _reject_row(networks: Networks, batches: Batches) -> tuple[Tensor, Tensor] | None:
    """The energy of the source's other classes as one more linear row of its head; None where there are none."""
    if not len(networks.others):
        return None

    def rows(images: Tensor) -> tuple[Tensor, Tensor]:
        lesson = networks.teach(images)
        return lesson.penultimate, lesson.rejected[:, None]

    moments = [
        stitch.fit_rows(batches.accelerator, batches.mixed(part, most=MAX_RIDGE_IMAGES), rows)
        for part in ("fit", "choose")
    ]
    weights = stitch.ridge(*moments).float()
    return weights[:-1, 0], weights[-1, 0]


def _local_set(networks: Networks, batches: Batches, cut: str) -> Iterable[tuple[Tensor, Tensor, Tensor]]:
    """Batches of (source feature at the cut, class or reject row, proximity): images, neighbours, and the others' images."""
    _, height, width = networks.source.preprocess.input_size
    most = max(1, min(MAX_RIDGE_IMAGES, LOCAL_PIXELS // (height * width)))
    generator = torch.Generator().manual_seed(batches.seed)
    for images, labels in batches.loader([batches.cloned.fit], most=most):
        changed, near = localize.neighbours(images, generator)
        for batch, weight in ((images, torch.ones_like(near)), (changed, near)):
            yield networks.teach(batch, [cut]).features[cut], labels, weight
    if batches.target is not None:
        for images, labels in batches.loader([batches.target.fit], most=most):
            reject = torch.full_like(labels, len(networks.classes))
            yield networks.teach(images, [cut]).features[cut], reject, torch.ones(len(labels), device=networks.device)


@torch.no_grad()
def _held_out_loss(module: CloneModule, networks: Networks, pair: tuple[str, str], held_out: Iterable) -> float:
    """The distillation loss over all held-out images together, so that both sides weigh the same."""
    rows = []
    for images, labels in held_out:
        _, read = networks.target(images, [pair[0]])
        lesson = networks.teach(images)
        rows.append((*module(read[pair[0]]), lesson.cloned, lesson.rejected, lesson.penultimate, labels))
    *output, cloned, rejected, penultimate, labels = (torch.cat(column) for column in zip(*rows, strict=True))
    lesson = Lesson(cloned, rejected, penultimate, {})
    return float(distillation_loss(tuple(output), lesson, labels, torch.ones(len(labels), device=labels.device)))
