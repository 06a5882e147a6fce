"""Localisation: which channels and attention heads of the source's tail the cloned classes need.

Structured pruning, judged on the *local set* (``pnc_hub.cloning.pruning.local_set``). The tail's input is fixed, since every
target's adapter produces it; everything that does not touch it may shrink, the penultimate feature too. What was chosen is
removed once, and repaired in closed form.
"""

from __future__ import annotations

import copy
import logging
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pnc_hub.cloning.pruning import repair
from pnc_hub.cloning.pruning.repair import Batches
from pnc_hub.cloning.pruning.units import Units, masked, units_of
from pnc_hub.errors import SourceError
from pnc_hub.models.cost import parameters
from pnc_hub.models.insertion import InsertionPoint, empty
from pnc_hub.models.tensors import attributes_of, tensors_of

logger = logging.getLogger(__name__)

Loss = Callable[[Tensor, Tensor], Tensor]
# (network, units, local set, loss [B] of (logits, label), masks so far) -> for each group, the worth of its units per parameter
Importance = Callable[[nn.Sequential, Units, Batches, Loss, list[Tensor]], list[Tensor]]

# No group loses more than this share of its units.
LARGEST_CUT = 0.95
# Units are judged anew so many times on the way down, each time on about so many images.
ROUNDS, SCORED = 3, 96


def prune(
    tail: nn.Module,
    head: nn.Linear,
    cut: InsertionPoint,
    local_set: Iterable[tuple[Tensor, Tensor, Tensor]],
    largest: int,
    *,
    classes: int | None = None,
    importance: Importance | None = None,
    repairs: Collection[str] = repair.STEPS,
) -> tuple[nn.Module, nn.Linear]:
    """Remove the least important units of ``tail`` until tail and head have at most ``largest`` parameters.

    Args:
        tail: feature at the cut -> penultimate feature; not changed.
        head: penultimate feature -> logits of the cloned classes and, below them, of rejection; not changed.
        cut: describes the feature that the tail takes.
        local_set: batches of (feature at the cut, class or any number above the last one for rejection, weight).
        largest: parameters that may stay.
        classes: how many rows of ``head`` are cloned classes; all but one by default. The other rows reject together.
        importance: tells what units are worth; ``fisher`` by default.
        repairs: steps of ``pnc_hub.cloning.pruning.repair`` that make up for what was removed; all of them by default.

    Returns:
        The pruned (tail, head); the same architecture with fewer channels and heads.

    Raises:
        SourceError: it cannot be made that small.
    """
    classes = head.out_features - 1 if classes is None else classes
    size = parameters(tail) + parameters(head)
    if size <= largest:
        return copy.deepcopy(tail), copy.deepcopy(head)
    original, batches = copy.deepcopy(nn.Sequential(tail, head)).eval().requires_grad_(False), list(local_set)
    failure: Exception | None = None
    for simple in (False, True):
        whole = nn.Sequential(_stand_in(cut, head.weight.device), *copy.deepcopy(original))
        try:
            units = units_of(whole.requires_grad_(True), empty(cut, batch=2, device=head.weight.device))
            if simple:  # widths of MLPs and heads alone
                units = Units([group for group in units.groups if group.simple], units.size)
            judge = partial(importance or fisher, whole, units, repair.spread(batches, SCORED), local_loss(classes))
            kept = _chosen(units, judge, largest)
            repair.before(whole, units.groups, kept, batches, repairs)
            _remove(whole, units, kept, cut)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # the dependency graph fails in its own ways on architectures it does not know
            logger.info("pruning after %s failed: %s: %s", cut.name, type(error).__name__, error)
            failure = error
            continue
        pruned, rows = whole[1], cast(nn.Linear, whole[2])
        if "head" in repairs:
            repair.refit_head(pruned, rows, original, batches)
        return pruned, rows
    raise SourceError(
        f"the source after {cut.name!r} cannot be pruned to {largest:,} parameters (it has {size:,}); allow more with keep=,"
        " or cut later"
    ) from failure


def changes(pruned: nn.Module, original: nn.Module) -> tuple[dict[str, list[int]], dict[str, dict[str, int]]]:
    """(shapes, attributes) by which ``pruned`` differs from ``original``, as ``config.json`` records them."""
    full = {name: tensor.shape for name, tensor in tensors_of(original).items()}
    shapes = {name: list(tensor.shape) for name, tensor in tensors_of(pruned).items() if tensor.shape != full[name]}
    widths, attributes = attributes_of(original), {}
    for name, values in attributes_of(pruned).items():
        changed = {attribute: value for attribute, value in values.items() if value != widths[name][attribute]}
        if changed:
            attributes[name] = changed
    return shapes, attributes


def fisher(whole: nn.Sequential, units: Units, batches: Batches, loss: Loss, masks: list[Tensor]) -> list[Tensor]:
    """Squared gradient of the local loss with respect to each unit's mask, over images, per parameter that it takes.

    The diagonal of the masks' Fisher information: to second order what the loss rises by when the unit goes (Theis et al.,
    arXiv:1801.05787; Molchanov et al., CVPR 2019). The loss is cross-entropy with the labels: that of imitating the source
    has no gradient before anything is pruned.
    """
    worth = [torch.zeros_like(mask, dtype=torch.float64) for mask in masks]  # squares of small gradients are no float32
    for feature, label, weight in batches:
        gates = [mask.expand(len(feature), -1).clone().requires_grad_() for mask in masks]
        with masked(units.groups, gates):
            gradients = torch.autograd.grad(loss(whole(feature), label).sum(), gates)
        for total, gradient in zip(worth, gradients, strict=True):
            total += weight.double() @ gradient.double() ** 2
    return [total / cost for total, cost in zip(worth, units.costs(), strict=True)]


def keep_best(units: Units, worth: Sequence[Tensor], largest: int) -> list[Tensor]:
    """For each group, which units stay so that ``largest`` parameters are left.

    The units that are worth least go first, and a few of each group stay.

    Raises:
        ValueError: these few are too many.
    """
    safe = [torch.empty(0)]
    for group, values in zip(units.groups, worth, strict=True):
        floor = max(1, round(group.count * (1 - LARGEST_CUT)))
        safe.append(values.double().index_fill(0, values.topk(floor).indices, torch.inf).cpu())
    every = torch.cat(safe)
    ranks = every.argsort(stable=True).argsort().split([len(values) for values in safe])[1:]  # no two are equal

    def left(removed: int) -> list[Tensor]:
        return [(rank >= removed).to(values.device) for rank, values in zip(ranks, worth, strict=True)]

    def fits(removed: int) -> bool:
        return units.parameters([int(kept.sum()) for kept in left(removed)]) <= largest

    most = int((every < torch.inf).sum())
    removed = bisect_left(range(most + 1), True, key=fits)
    if removed > most:
        raise ValueError(f"more than {largest} parameters stay")
    return left(removed)


def local_loss(classes: int) -> Loss:
    """Cross-entropy [B] where all rows of the logits from ``classes`` on are one answer, that of rejection."""

    def loss(logits: Tensor, label: Tensor) -> Tensor:
        rejects = logits[:, classes:].logsumexp(1, keepdim=True) if logits.shape[1] > classes else logits[:, :0]
        return F.cross_entropy(torch.cat([logits[:, :classes], rejects], 1), label.clamp(max=classes), reduction="none")

    return loss


def _chosen(units: Units, judge: Callable[[list[Tensor]], list[Tensor]], largest: int) -> list[Tensor]:
    """For each group, which of its units stay: fewer from round to round, judged anew without those that are gone."""
    masks = [torch.ones(group.count, device=group.readers[0][1].device) for group in units.groups]
    for done in range(1, ROUNDS + 1):
        worth = judge(masks)
        worth = [torch.where(mask > 0, values, -torch.inf) for values, mask in zip(worth, masks, strict=True)]
        kept = keep_best(units, worth, round(units.size * (largest / units.size) ** (done / ROUNDS)))
        masks = [mask.float() for mask in kept]
    return kept


@torch.no_grad()
def _remove(whole: nn.Sequential, units: Units, kept: Sequence[Tensor], cut: InsertionPoint) -> None:
    """Cut units out of ``whole``, and see that it has the size that it should have, runs, and says what masks make it say.

    On an architecture that the dependency graph misunderstands, other channels than those chosen may go without an error.
    """
    example = torch.randn_like(empty(cut, batch=2, device=whole[2].weight.device))
    with masked(units.groups, [stays.float() for stays in kept]):
        expected = whole(example)
    for group, stays in zip(units.groups, kept, strict=True):
        gone = (~stays).nonzero().flatten().tolist()
        if gone:
            group.remove(gone)
    left, planned = parameters(whole[1:]), units.parameters([int(stays.sum()) for stays in kept])
    if left != planned:
        raise RuntimeError(f"{left} parameters are left instead of {planned}")
    output = whole.requires_grad_(False)(example)
    comparable = all(group.exact or bool(stays.all()) for group, stays in zip(units.groups, kept, strict=True))
    if comparable and not torch.allclose(output, expected, rtol=0.01, atol=0.01 * float(expected.abs().max())):
        raise RuntimeError("other channels have gone than those chosen")


def _stand_in(cut: InsertionPoint, device: torch.device) -> nn.Module:
    """An identity layer in the adapter's place: what is coupled to its output may not be pruned."""
    if cut.layout == "NCHW":
        layer: nn.Conv2d | nn.Linear = nn.Conv2d(cut.channels, cut.channels, 1, device=device)
        nn.init.dirac_(layer.weight)
    else:
        layer = nn.Linear(cut.channels, cut.channels, device=device)
        nn.init.eye_(layer.weight)
    nn.init.zeros_(cast(Tensor, layer.bias))
    return layer
