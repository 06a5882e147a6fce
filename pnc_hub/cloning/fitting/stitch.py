"""Adapters in closed form, and the pairs that they are for.

Source and target are frozen, so one forward pass of each gives the features at every point. For each pair (target point,
source cut) that is asked for, the adapter is the solution of a ridge regression on what was kept of that pass. How well a pair
does is judged by what comes out at the end (``pnc_hub.cloning.search.curve``), not by how similar two layers look.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from pnc_hub.cloning.fitting.ridge import Moments, ridge, summed, with_constant
from pnc_hub.cloning.images.batches import Batches
from pnc_hub.cloning.images.shown import Shown
from pnc_hub.cloning.networks import SourceAndTarget
from pnc_hub.models.insertion import INPUT, InsertionPoint, to_maps
from pnc_hub.models.preprocess import resize
from pnc_hub.module import Adapter

POSITIONS = 32  # of a map that are looked at
PER_STAGE = 2
PARTS = ("fit", "choose")


@dataclass
class Candidate:
    """A way to stitch the source's tail to the target."""

    insertion: InsertionPoint  # where the target is read
    cut: InsertionPoint  # where the source is cut
    adapter: Adapter  # the closed-form adapter between them


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


class Stitches:
    """Adapters in closed form, each solved when it is first asked for.

    One pass of both networks gives every feature (``read``); the rows of a regression are drawn from what is kept of it.
    """

    def __init__(
        self, networks: SourceAndTarget, batches: Batches, pairs: list[tuple[InsertionPoint, InsertionPoint]], each: int
    ) -> None:
        """For ``pairs``, on at most ``each`` images of each side; the penalty is chosen on images that are held out."""
        self.pairs, self._networks, self._batches, self._each = pairs, networks, batches, each
        self._rows: dict[Any, list[Tensor]] = {}
        self._grams: dict[Any, list[Tensor | None]] = {}
        self._positions: dict[tuple[int, int], Tensor] = {}

    def read(self) -> Iterator[int]:
        """Let both networks look at the images, batch by batch; gives how many batches there are, at each."""
        points, cuts = {insertion.name for insertion, _ in self.pairs}, {cut.name for _, cut in self.pairs}
        loaders = [self._batches.mixed(part, each=self._each) for part in PARTS]
        total = sum(map(len, loaders))
        for images, _ in chain.from_iterable(loaders):
            self._networks.target(images, points)
            self._networks.teach(images, cuts)
            yield total

    def candidate(self, insertion: InsertionPoint, cut: InsertionPoint) -> Candidate:
        """One of ``pairs`` with its adapter."""
        adapter = Adapter(insertion, cut, device=self._networks.device).requires_grad_(False)
        at = (insertion, cut.grid)
        _set(adapter.map, self._solved(at, self._given(*at), self._maps(cut)))
        if adapter.prefix is not None:
            _set(adapter.prefix, self._solved((*at, "mean"), self._means(*at), self._tokens(cut)))
        return Candidate(insertion, cut, adapter)

    def _solved(self, key: Any, given: list[Tensor], wanted: list[Tensor]) -> Tensor:
        """Weights [C + 1, D] of the regression of ``wanted`` on ``given``, both by part; ``key`` is that of ``given``."""
        if key not in self._grams:
            self._grams[key] = [summed(x, with_constant(x)) if len(x) else None for x in given]
        moments = map(Moments.of, given, wanted, self._grams[key])
        return ridge(*(part.reduced(self._batches.accelerator) for part in moments))

    def _given(self, insertion: InsertionPoint, grid: tuple[int, int]) -> list[Tensor]:
        """[N * positions, C] in each part: the target's map at that resolution."""
        return self._drawn((insertion, grid), lambda images: self._sampled(self._target(images, insertion, grid)))

    def _means(self, insertion: InsertionPoint, grid: tuple[int, int]) -> list[Tensor]:
        """[N, C] in each part: its mean over the map."""
        return self._drawn((insertion, grid, "mean"), lambda images: self._target(images, insertion, grid).mean((2, 3)))

    def _maps(self, cut: InsertionPoint) -> list[Tensor]:
        """[N * positions, C] in each part: the source's map."""
        return self._drawn(cut, lambda images: self._sampled(to_maps(self._source(images, cut), cut)))

    def _tokens(self, cut: InsertionPoint) -> list[Tensor]:
        """[N, tokens * C] in each part: the source's class tokens."""
        return self._drawn((cut, "tokens"), lambda images: self._source(images, cut)[:, : cut.prefix_tokens].flatten(1))

    def _target(self, images: Shown, insertion: InsertionPoint, grid: tuple[int, int]) -> Tensor:
        return resize(to_maps(self._networks.target.feature(images, insertion.name), insertion), grid)

    def _source(self, images: Shown, cut: InsertionPoint) -> Tensor:
        return self._networks.teach(images, [cut.name]).features[cut.name]

    def _drawn(self, key: Any, rows: Callable[[Shown], Tensor]) -> list[Tensor]:
        """``rows`` of all images of this process, by part; drawn once."""
        if key not in self._rows:
            loaders = (self._batches.mixed(part, each=self._each) for part in PARTS)
            self._rows[key] = [
                torch.cat([rows(images) for images, _ in loader] or [torch.empty(0)]) for loader in loaders
            ]
        return self._rows[key]

    def _sampled(self, maps: Tensor) -> Tensor:
        """[B * positions, C]: the same positions in every image, so that it does not matter which process reads which."""
        grid = (maps.shape[2], maps.shape[3])
        if grid not in self._positions:
            order = torch.randperm(math.prod(grid), generator=torch.Generator().manual_seed(self._batches.seed))
            self._positions[grid] = order[:POSITIONS].to(maps.device)
        return maps.flatten(2)[:, :, self._positions[grid]].transpose(1, 2).flatten(0, 1)


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


def _set(layer: nn.Linear, weights: Tensor) -> None:
    layer.weight.data.copy_(weights[:-1].T)
    layer.bias.data.copy_(weights[-1])
