"""What each part of the default is worth: the clone without it, everything else alike.

A part is exchanged in the package for the time of one clone, so that the product carries no switches for experiments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any
from unittest.mock import patch

import criteria
import ours
import torch
from task import REGIMES, Result, Task

from pnc_hub.cloning import gate as gates
from pnc_hub.cloning import localize, select, stitch
from pnc_hub.cloning.gate import Evidence
from pnc_hub.cloning.networks import Networks
from pnc_hub.module import Gate

Without = Callable[[], AbstractContextManager]


def no_gate() -> AbstractContextManager:
    """Both networks' logits side by side, and nothing calibrated."""

    def fit(cloned: Evidence, *_: object) -> Gate:
        return gates.side_by_side(cloned.features.shape[1])

    return patch.multiple(select.gates, fit=fit, best_offset=lambda *_: 0.0)


def no_offset() -> AbstractContextManager:
    """A gate, and nothing calibrated."""
    return patch.object(select.gates, "best_offset", lambda *_: 0.0)


def no_reject() -> AbstractContextManager:
    """A gate that does not see the reject logit."""
    return _blind("reject")


def no_features() -> AbstractContextManager:
    """A gate on the five scalars alone."""
    return _blind("features")


def random_adapter() -> AbstractContextManager:
    """Adapters with random weights in place of the closed form."""
    closed = stitch.search

    def search(*arguments: Any) -> list[stitch.Candidate]:
        found = closed(*arguments)
        for candidate in found:
            for layer in candidate.adapter.modules():
                if hasattr(layer, "reset_parameters"):
                    layer.reset_parameters()
        return found

    return patch.object(select.stitch, "search", search)


def random_units() -> AbstractContextManager:
    """Any units stay."""
    return _pruning(importance=criteria.random)


def no_repair() -> AbstractContextManager:
    """Units are removed, and nothing makes up for them."""
    return _pruning(repairs=())


def no_neighbours() -> AbstractContextManager:
    """The local set is the images themselves."""
    return patch.object(select.localize, "neighbours", lambda images, _: (images, torch.ones(len(images)).to(images)))


def no_trials() -> AbstractContextManager:
    """The first place of the insertion curve is taken at its word."""
    return patch.object(select, "ROUNDS", ((1, 1.0, 0),))


def anchored() -> AbstractContextManager:
    """Refinement keeps the level of the source's logits in every regime."""
    closed = select.best_clone

    def best_clone(*arguments: Any) -> Any:
        recipe = next(one for one in arguments if hasattr(one, "anchored"))
        return closed(*(replace(one, anchored=True) if one is recipe else one for one in arguments))

    return patch("pnc_hub.cloning.learn.best_clone", best_clone)


def no_shifts() -> AbstractContextManager:
    """Refinement on the images as they are."""
    return patch("pnc_hub.cloning.refine.augmented", lambda images, *_: images)


def last_place(task: Task) -> dict[str, str]:
    """The target's last map and the source's cut of that depth: hardly anything is added."""
    return _place(task, -1)


def random_place(task: Task) -> dict[str, str]:
    """Any pair that is admissible."""
    return _place(task, None)


def _place(task: Task, number: int | None) -> dict[str, str]:
    networks = Networks(task.source, task.target, task.rows, torch.device("cpu"))
    pairs = stitch.admissible_pairs(networks.points(), networks.cuts(), None, None)
    pairs = [pair for pair in pairs if pair[0].layout != "NC"]
    if number is None:
        number = int(torch.randint(len(pairs), (), generator=torch.Generator().manual_seed(task.seed)))
    return {"insertion": pairs[number][0].name, "cut": pairs[number][1].name}


def _blind(column: str) -> AbstractContextManager:
    """Gates are fitted as if ``column`` of the evidence were always 0, which leaves its weight 0."""
    closed = gates.fit

    def hidden(part: Evidence | None) -> Evidence | None:
        return part and replace(part, **{column: torch.zeros_like(getattr(part, column))})

    def fit(cloned: Evidence, target: Evidence | None, held_out: tuple, *rest: Any) -> Gate:
        return closed(hidden(cloned), hidden(target), tuple(map(hidden, held_out)), *rest)

    return patch.object(select.gates, "fit", fit)


def _pruning(**options: Any) -> AbstractContextManager:
    return patch.object(select.localize, "prune", partial(localize.prune, **options))


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def _ablated(
    task: Task, without: Without = _nothing, place: Callable[[Task], dict] | None = None, **options: Any
) -> Result:
    with without():
        return ours.clone(task, **options, **(place(task) if place else {}))


CLOSED: dict[str, dict[str, Any]] = {
    "no_gate": {"without": no_gate},
    "no_offset": {"without": no_offset},
    "no_reject": {"without": no_reject},
    "no_features": {"without": no_features},
    "random_units": {"without": random_units},
    "no_repair": {"without": no_repair},
    "no_neighbours": {"without": no_neighbours},
    "random_place": {"place": random_place},
    "last_place": {"place": last_place},
    "unpruned": {"keep": 1.0},
}
TRAINED: dict[str, dict[str, Any]] = {
    "no_gate": {"without": no_gate},
    "no_reject": {"without": no_reject},
    "random_adapter": {"without": random_adapter},
    "random_units": {"without": random_units},
    "no_trials": {"without": no_trials},
    "no_shifts": {"without": no_shifts},
    "anchored": {"without": anchored},
    "frozen_tail": {"tune": False},
    "one_pass": {"epochs": 1},
    "unpruned": {"keep": 1.0},
    "small": {"keep": 0.15},
}
METHODS = {
    **{f"closed_{name}": (partial(_ablated, epochs=0, **options), REGIMES) for name, options in CLOSED.items()},
    **{f"clone_{name}": (partial(_ablated, **options), REGIMES) for name, options in TRAINED.items()},
}
