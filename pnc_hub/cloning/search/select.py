"""The choice of insertion point and cut: a curve of closed-form candidates, short trials of the best, refinement of one."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import Tensor, nn
from tqdm.auto import tqdm

from pnc_hub.cloning.fitting import ridge, stitch
from pnc_hub.cloning.fitting.refine import Recipe
from pnc_hub.cloning.fitting.stitch import Candidate, Stitches
from pnc_hub.cloning.images.batches import Batches
from pnc_hub.cloning.networks import Networks, SourceAndTarget
from pnc_hub.cloning.search.curve import Judged, Pair, insertion_curve
from pnc_hub.cloning.search.learned import Learned, with_gates
from pnc_hub.cloning.search.phases import begin
from pnc_hub.cloning.search.trials import Size, promising, refined
from pnc_hub.errors import InsertionPointError
from pnc_hub.models.insertion import INPUT
from pnc_hub.module import CloneModule

MAX_RIDGE_IMAGES = 500  # in each part


def best_clone(
    networks: Networks,
    batches: Batches,
    fixed: tuple[str | None, str | None],
    size: Size,
    recipe: Recipe,
    locality_budget: float | None,
    bar: tqdm[Any],
) -> tuple[Learned, list[Judged]]:
    """The candidate that does best on held-out images, refined, with its gates; and the curve it was chosen from.

    ``fixed`` is (insertion point, cut) where the caller chose them, ``recipe`` that of the full refinement.

    Raises:
        InsertionPointError: no pair is admissible.
        SourceError: none can be made small enough.
    """
    pairs = search_pairs(networks, fixed)
    curve, head = _judged_places(networks, batches, pairs, bar)
    trials = promising(networks, batches, curve, head, size, not recipe.epochs, bar)
    best = refined(trials, networks, batches, recipe, bar)
    learned = with_gates(best.module, best.stitched, networks, batches, locality_budget, recipe.universal)
    learned.stages = best.stages()
    return learned, curve


def _judged_places(
    networks: Networks, batches: Batches, pairs: list[Pair], bar: tqdm[Any]
) -> tuple[list[Judged], nn.Linear]:
    """The curve over ``pairs``, and the head's rows. Rows of regressions and whole tails are let go of at the end."""
    begin(bar, "read images")
    stitches = Stitches(networks, batches, pairs, MAX_RIDGE_IMAGES // 2)
    for total in stitches.read():
        bar.total = total
        bar.update()
    head = networks.head_rows(reject_rows(networks, batches))
    begin(bar, "judge places")
    tail = cache(networks.tail)

    def whole(candidate: Candidate) -> CloneModule:
        return CloneModule(candidate.adapter, tail(candidate.cut.name), head)

    curve = insertion_curve(networks, batches, stitches, whole, lambda judged: bar.set_postfix_str(_promise(judged)))
    return curve, head


def _promise(judged: Judged) -> str:
    """A first answer, long before the clone is there."""
    place = f"{judged.candidate.insertion.name} -> {judged.candidate.cut.name}"
    return f"{place} promises {judged.tar:.0%} of the cloned classes, {judged.macs / 1e6:,.0f} million MACs"


def search_pairs(networks: SourceAndTarget, fixed: tuple[str | None, str | None]) -> list[Pair]:
    """The pairs to search, or ``InsertionPointError``; ``fixed`` is (insertion point, cut) where the caller chose them."""
    points, cuts = networks.target.skeleton.points, networks.cuts()
    choices = (points, "insertion point of the target"), (cuts, "cut of the source")
    for name, (names, what) in zip(fixed, choices, strict=True):
        if name is not None and name not in names:
            raise InsertionPointError(f"{name!r} is no {what}; there are {', '.join(names)}")
    if fixed[0] == INPUT:
        raise InsertionPointError(
            "an adapter reads an interior point; every clone made with universal=True fits the input"
        )
    pairs = stitch.admissible_pairs(points, cuts, *fixed)
    if not pairs:
        raise InsertionPointError(
            f"no pair of an insertion point ({fixed[0] or 'any'}) and a cut ({fixed[1] or 'any'}) fits: maps may grow at most"
            " twofold, and a vector cannot become a map"
        )
    return pairs


def reject_rows(networks: Networks, batches: Batches) -> tuple[Tensor, Tensor]:
    """What the source knows beside the cloned classes, as one more row of its head: (weight [1, C], bias [1]).

    It is fitted to the energy of the other classes; zeros where there are none.
    """
    if not len(networks.others):
        return networks.head.weight.new_zeros(1, networks.width), networks.head.bias.new_zeros(1)

    def rows(images: Tensor) -> tuple[Tensor, Tensor]:
        lesson = networks.teach(images)
        return lesson.penultimate, lesson.rejected[:, None]

    shown = (batches.mixed(part, each=MAX_RIDGE_IMAGES // 2) for part in ("fit", "choose"))
    fit, held_out = (ridge.fit_rows(batches.accelerator, images, rows) for images in shown)
    weights = ridge.ridge(fit, held_out).float()
    return weights[:-1].T, weights[-1]
