"""Criteria by which channels are pruned, beside the product's own: what each unit of each group is worth."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch_pruning
from torch import Tensor, nn
from torch.nn import functional as F

from pnc_hub.cloning.pruning import localize
from pnc_hub.cloning.pruning.localize import Batches, Importance, Loss
from pnc_hub.cloning.pruning.units import Group, Units, masked

# Of learning masks.
RATE, STEPS, BATCH = 0.05, 60, 32


def random(_whole: nn.Module, units: Units, *_: object) -> list[Tensor]:
    """Any order."""
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(group.count, generator=generator) for group in units.groups]


def magnitude(_whole: nn.Module, units: Units, *_: object) -> list[Tensor]:
    """Squared weights of all layers in the group (Torch-Pruning)."""
    return [
        _by_unit(group, torch_pruning.importance.GroupMagnitudeImportance(normalizer=None)) for group in units.groups
    ]


@torch.no_grad()
def activation(whole: nn.Module, units: Units, batches: Batches, loss: Loss, masks: Sequence[Tensor]) -> list[Tensor]:
    """Mean square of what the group's first reader gets of each unit."""
    squares = [torch.zeros(group.count) for group in units.groups]

    def watch(position: int) -> Callable:
        _, inputs, own = units.groups[position].readers[0]

        def hook(_layer: nn.Module, args: tuple[Tensor]) -> None:
            maps = args[0].flatten(2) if args[0].ndim > 2 else args[0][:, :, None]
            squares[position].index_add_(0, own, (maps**2).mean(2).sum(0)[inputs])

        return hook

    watched = [group.readers[0][0].register_forward_pre_hook(watch(i)) for i, group in enumerate(units.groups)]
    for feature, _, _ in batches:
        whole(feature)
    for handle in watched:
        handle.remove()
    return squares


def taylor(whole: nn.Module, units: Units, batches: Batches, loss: Loss, masks: Sequence[Tensor]) -> list[Tensor]:
    """Group Taylor importance (Torch-Pruning)."""
    whole.zero_grad()
    with masked(units.groups, masks):
        for feature, label, weight in batches:
            (loss(whole(feature), label) * weight).sum().backward()
    return [_by_unit(group, torch_pruning.importance.GroupTaylorImportance(normalizer=None)) for group in units.groups]


def hessian(whole: nn.Module, units: Units, batches: Batches, loss: Loss, masks: Sequence[Tensor]) -> list[Tensor]:
    """Group Hessian importance (Torch-Pruning): squared gradients image by image."""
    squares = {parameter: torch.zeros_like(parameter) for parameter in whole.parameters()}
    with masked(units.groups, masks):
        for feature, label, weight in batches:
            for value in loss(whole(feature), label) * weight.sqrt():
                whole.zero_grad()
                value.backward(retain_graph=True)
                for parameter, total in squares.items():
                    total += parameter.grad**2
    for parameter, total in squares.items():
        parameter.grad = total
    return [_by_unit(group, torch_pruning.importance.GroupHessianImportance(normalizer=None)) for group in units.groups]


def fisher(whole: nn.Module, units: Units, batches: Batches, loss: Loss, masks: list[Tensor]) -> list[Tensor]:
    """The product's, before it is divided by the parameters."""
    worth = localize.fisher(whole, units, batches, loss, masks)
    return [values * cost for values, cost in zip(worth, units.costs(), strict=True)]


CRITERIA: dict[str, Callable[..., list[Tensor]]] = {
    "random": random,
    "magnitude": magnitude,
    "activation": activation,
    "group Taylor": taylor,
    "group Hessian": hessian,
    "mask Fisher": fisher,
}
LEARNED = "learned masks"


def normalised(criterion: Callable[..., list[Tensor]], per: str) -> Importance:
    """``criterion`` as the product wants it: comparable across groups by their mean, or by the parameters of a unit."""

    def importance(whole: nn.Module, units: Units, *rest: object) -> list[Tensor]:
        scores = criterion(whole, units, *rest)
        by = [float(score.mean()) for score in scores] if per == "group" else units.costs()
        return [score / max(scale, 1e-30) for score, scale in zip(scores, by, strict=True)]

    return importance


def learned(largest: int, per: str) -> Importance:
    """Masks learned by straight-through estimation, from Fisher's order on: forward 0 or 1 within the size, backward all.

    The loss is the divergence from the network without masks, as in the paper.
    """
    final: list[Tensor] = []

    def importance(whole: nn.Module, units: Units, batches: Batches, loss: Loss, masks: list[Tensor]) -> list[Tensor]:
        if not final:
            start = normalised(fisher, per)(whole, units, batches, loss, masks)
            final.extend(_learn(whole, units, start, batches, largest))
        return final

    return importance


def _learn(whole: nn.Module, units: Units, start: list[Tensor], batches: Batches, largest: int) -> list[Tensor]:
    places = torch.cat(start).argsort().argsort() / sum(map(len, start))
    logits = [part.clone().requires_grad_() for part in places.split([len(part) for part in start])]
    optimizer = torch.optim.Adam(logits, RATE)
    generator = torch.Generator().manual_seed(0)
    feature, _, weight = (torch.cat(column) for column in zip(*batches, strict=True))
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = RATE * (1 - step / STEPS)
        rows = torch.randperm(len(feature), generator=generator)[:BATCH]
        hard = localize.keep_best(units, [logit.detach() for logit in logits], largest)
        masks = [mask.float() + logit - logit.detach() for mask, logit in zip(hard, logits, strict=True)]
        with torch.no_grad():
            taught = whole(feature[rows]).softmax(1)
        with masked(units.groups, masks):
            lost = F.cross_entropy(whole(feature[rows]), taught, reduction="none")
        gradients = torch.autograd.grad((lost * weight[rows]).mean(), logits)
        for logit, gradient in zip(logits, gradients, strict=True):
            logit.grad = gradient
        optimizer.step()
    return [logit.detach() for logit in logits]


def remembered(importance: Importance, order: list[list[Tensor]]) -> Importance:
    """The same, but what ``order`` has of an earlier run is not computed again."""
    known = iter(list(order))

    def judged(*arguments: object, **named: object) -> list[Tensor]:
        worth = next(known, None)
        if worth is None:
            worth = importance(*arguments, **named)
            order.append(worth)
        return worth

    return judged


def _by_unit(group: Group, importance: Callable) -> Tensor:
    return importance(group.dependency).view(-1, group.count).mean(0)
