"""Adapters in closed form, and the search for the insertion point.

Source and target are frozen, so one forward pass of each gives the features at every point. For each admissible pair
(target point, source cut) the moments X'X and X'Y are accumulated in float64 and the adapter is the solution of a ridge
regression. How well a pair does is judged by what comes out at the end (``pnc_hub.cloning.search.curve``), not by how
similar two layers look.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from pnc_hub.cloning.fitting.ridge import RIDGES, Moments, ridge
from pnc_hub.cloning.networks import SourceAndTarget
from pnc_hub.models.insertion import INPUT, InsertionPoint, to_maps
from pnc_hub.models.preprocess import resize
from pnc_hub.module import Adapter

POSITIONS = 64
PER_STAGE = 2


@dataclass
class Candidate:
    """A way to stitch the source's tail to the target."""

    insertion: InsertionPoint  # where the target is read
    cut: InsertionPoint  # where the source is cut
    adapter: Adapter  # the closed-form adapter between them


# by insertion point and the cut's grid: the cuts whose maps are fitted side by side
Stages = dict[tuple[InsertionPoint, tuple[int, int]], list[InsertionPoint]]


def admissible_pairs(
    points: dict[str, InsertionPoint], cuts: dict[str, InsertionPoint], insertion: str | None, cut: str | None
) -> list[tuple[InsertionPoint, InsertionPoint]]:
    """Pairs worth trying: a few points per stage, and no map is interpolated to more than twice its size.

    ``insertion`` and ``cut`` restrict the search to one point of the target or the source.
    """
    tried_points = [points[insertion]] if insertion else _per_stage(p for p in points.values() if p.name != INPUT)
    tried_cuts = [cuts[cut]] if cut else _per_stage(cuts.values())

    def fits(at: InsertionPoint, after: InsertionPoint) -> bool:
        if at.layout == "NC":
            return after.grid == (1, 1)
        return 2 * at.grid[0] >= after.grid[0] and 2 * at.grid[1] >= after.grid[1]

    return [(at, after) for at in tried_points for after in tried_cuts if fits(at, after)]


def search(
    networks: SourceAndTarget,
    accelerator: Accelerator,
    fit: Iterable[Any],
    held_out: Iterable[Any],
    pairs: list[tuple[InsertionPoint, InsertionPoint]],
    seed: int,
) -> list[Candidate]:
    """Every pair with its closed-form adapter, fitted on batches of (images, whatever), the penalty chosen on others.

    Positions of large maps are sampled by ``seed``.
    """
    stages: Stages = {}
    for insertion, cut in pairs:
        stages.setdefault((insertion, cut.grid), []).append(cut)
    fitted, held = (_collect(networks, accelerator, batches, stages, seed) for batches in (fit, held_out))
    candidates = []
    for (insertion, grid), cuts in stages.items():
        solutions = [fitted[insertion, grid].solve(strength) for strength in RIDGES]
        for cut, end in zip(cuts, accumulate(cut.channels for cut in cuts), strict=True):
            columns = slice(end - cut.channels, end)
            best = min(solutions, key=lambda weights: held[insertion, grid].error(weights, columns))
            adapter = Adapter(insertion, cut, device=networks.device).requires_grad_(False)
            _set(adapter.map, best[:, columns])
            if adapter.prefix is not None:
                _set(adapter.prefix, ridge(fitted[insertion, cut], held[insertion, cut]))
            candidates.append(Candidate(insertion, cut, adapter))
    return candidates


@torch.no_grad()
def _collect(
    networks: SourceAndTarget, accelerator: Accelerator, batches: Iterable[Any], stages: Stages, seed: int
) -> dict[Any, Moments]:
    """Moments of the maps by (insertion point, grid), of all cuts of that grid side by side; of class tokens by pair."""
    moments: dict[Any, Moments] = {stage: Moments() for stage in stages}
    for (insertion, _), cuts in stages.items():
        moments |= {(insertion, cut): Moments() for cut in cuts if cut.prefix_tokens}
    names = {cut.name for cuts in stages.values() for cut in cuts}
    # the same positions in every image, so that it does not matter which process reads which
    positions = {}
    for _, grid in stages:
        order = torch.randperm(math.prod(grid), generator=torch.Generator().manual_seed(seed))
        positions[grid] = order[:POSITIONS].to(networks.device)
    for images, _ in batches:
        _, features = networks.target(images, {insertion.name for insertion, _ in stages})
        taught = networks.teach(images, names).features
        for (insertion, grid), cuts in stages.items():
            maps = resize(to_maps(features[insertion.name], insertion), grid)
            goals = [_rows(to_maps(taught[cut.name], cut), positions[grid]) for cut in cuts]
            moments[insertion, grid].add(_rows(maps, positions[grid]), torch.cat(goals, 1))
            for cut in cuts:
                if cut.prefix_tokens:
                    tokens = taught[cut.name][:, : cut.prefix_tokens].flatten(1)
                    moments[insertion, cut].add(maps.mean((2, 3)), tokens)
    return {key: value.reduced(accelerator) for key, value in moments.items()}


def _per_stage(points: Iterable[InsertionPoint]) -> list[InsertionPoint]:
    """At most ``PER_STAGE`` of the points that have the same shape, evenly spread, the last among them."""
    stages: dict[tuple[Any, ...], list[InsertionPoint]] = {}
    for point in points:
        stages.setdefault((point.channels, point.grid, point.layout), []).append(point)
    chosen = []
    for stage in stages.values():
        count = min(PER_STAGE, len(stage))
        chosen += [stage[len(stage) * (turn + 1) // count - 1] for turn in range(count)]
    return chosen


def _rows(maps: Tensor, positions: Tensor) -> Tensor:
    return maps.flatten(2)[:, :, positions].transpose(1, 2).flatten(0, 1)


def _set(layer: nn.Linear, weights: Tensor) -> None:
    layer.weight.data.copy_(weights[:-1].T)
    layer.bias.data.copy_(weights[-1])
