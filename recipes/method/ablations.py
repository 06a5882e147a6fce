"""What each part of the default is worth: the clone without it.

A part is exchanged in the package for the time of one clone, so that the product carries no switches for experiments. The
search goes on with what is left and may end at another place, which the row names.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any
from unittest.mock import patch

import torch

from pnc_hub.cloning.fitting import gate as gates
from pnc_hub.cloning.fitting import stitch
from pnc_hub.cloning.fitting.gate import Evidence
from pnc_hub.cloning.fitting.refine import Recipe
from pnc_hub.cloning.networks import Networks
from pnc_hub.cloning.pruning import localize
from pnc_hub.cloning.search import select, trials
from pnc_hub.module import Gate
from recipes.frame.task import REGIMES, Result, Task
from recipes.method import criteria, ours

Without = Callable[[], AbstractContextManager]


def no_gate() -> AbstractContextManager:
    """Both networks' logits side by side, and nothing calibrated."""

    def fit(cloned: Evidence, *_: object) -> Gate:
        return gates.side_by_side(cloned.features.shape[1])

    return patch.multiple(gates, fit=fit, best_offset=lambda *_: 0.0)


def no_offset() -> AbstractContextManager:
    """A gate, and nothing calibrated."""
    return patch.object(gates, "best_offset", lambda *_: 0.0)


def no_reject() -> AbstractContextManager:
    """A gate that does not see the reject logit, learned or not."""
    return _blind("reject", odds=0.0)


def no_features() -> AbstractContextManager:
    """A learned gate on the five scalars alone."""
    return _blind("features")


def random_adapter() -> AbstractContextManager:
    """Adapters with random weights in place of the closed form."""
    closed = stitch.Stitches.candidate

    def candidate(*arguments: Any) -> stitch.Candidate:
        made = closed(*arguments)
        for layer in made.adapter.modules():
            if hasattr(layer, "reset_parameters"):
                layer.reset_parameters()
        return made

    return patch.object(stitch.Stitches, "candidate", candidate)


def random_units() -> AbstractContextManager:
    """Any units stay."""
    return _pruning(importance=criteria.random)


def no_repair() -> AbstractContextManager:
    """Units are removed, and nothing makes up for them."""
    return _pruning(repairs=())


def no_trials() -> AbstractContextManager:
    """The place that does best pruned and stitched is refined, without what the rounds of trials would have taught it."""
    return patch.object(trials, "ROUNDS", ((1, 1.0, 0),))


def anchored() -> AbstractContextManager:
    """Refinement keeps the level of the source's logits in every regime."""
    closed = select.best_clone

    def best_clone(*arguments: Any) -> Any:
        recipe = next(one for one in arguments if isinstance(one, Recipe))
        return closed(*(replace(one, anchored=True) if one is recipe else one for one in arguments))

    return patch("pnc_hub.cloning.learn.best_clone", best_clone)


def no_augmentation() -> AbstractContextManager:
    """Refinement on the images as they are."""
    return patch("pnc_hub.cloning.images.copies.Copies.of", lambda _, image, *__: image)


def last_place(task: Task) -> dict[str, str]:
    """The last map of the target and the last cut of the source: hardly anything is added."""
    return _place(task, -1)


def random_place(task: Task) -> dict[str, str]:
    """Any pair that is admissible."""
    return _place(task, None)


def _place(task: Task, number: int | None) -> dict[str, str]:
    networks = Networks(task.source, task.target, task.rows, torch.device("cpu"))
    pairs = stitch.admissible_pairs(networks.target.skeleton.points, networks.cuts(), None, None)
    pairs = [pair for pair in pairs if pair[0].layout != "NC"]
    if number is None:
        number = int(torch.randint(len(pairs), (), generator=torch.Generator().manual_seed(task.seed)))
    return {"insertion": pairs[number][0].name, "cut": pairs[number][1].name}


def _blind(column: str, **options: Any) -> AbstractContextManager:
    """Gates are fitted with ``options``, and as if ``column`` of the evidence were always 0, so that its weight stays 0."""
    closed = gates.fit

    def hidden(part: Evidence | None) -> Evidence | None:
        return part and replace(part, **{column: torch.zeros_like(getattr(part, column))})

    def fit(
        cloned: Evidence, target: Evidence | None, held_out: tuple, universal: bool, covered: bool, odds: float
    ) -> Gate:
        given = {"odds": odds, **options}
        return closed(hidden(cloned), hidden(target), tuple(map(hidden, held_out)), universal, covered, **given)

    return patch.object(gates, "fit", fit)


def _pruning(**options: Any) -> AbstractContextManager:
    return patch.object(localize, "prune", partial(localize.prune, **options))


def _ablated(
    task: Task, without: Without = nullcontext, place: Callable[[Task], dict] | None = None, **options: Any
) -> Result:
    with without():
        return ours.clone(task, **options, **(place(task) if place else {}))


EITHER: dict[str, dict[str, Any]] = {
    "no_gate": {"without": no_gate},
    "no_reject": {"without": no_reject},
    "random_units": {"without": random_units},
    "unpruned": {"keep": 1.0},
}
CLOSED: dict[str, dict[str, Any]] = {
    **EITHER,
    "no_offset": {"without": no_offset},
    "no_features": {"without": no_features},
    "no_repair": {"without": no_repair},
    "random_place": {"place": random_place},
    "last_place": {"place": last_place},
}
TRAINED: dict[str, dict[str, Any]] = {
    **EITHER,
    "random_adapter": {"without": random_adapter},
    "no_trials": {"without": no_trials},
    "no_augmentation": {"without": no_augmentation},
    "anchored": {"without": anchored},
    "frozen_tail": {"tune": False},
    "one_pass": {"epochs": 1},
    "small": {"keep": 0.15},
}
# without images of the target no gate is learned and no offset chosen: the default has none of these parts there
WITH_TARGET = {"no_gate", "no_offset", "no_reject", "no_features", "anchored"}
METHODS = {
    f"{kind}_{name}": (
        partial(_ablated, **fixed, **options),
        tuple(regime for regime in REGIMES if name not in WITH_TARGET or regime in ("R3", "R4")),
    )
    for kind, parts, fixed in (("closed", CLOSED, {"epochs": 0}), ("clone", TRAINED, {}))
    for name, options in parts.items()
}
