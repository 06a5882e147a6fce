"""Repair of a pruned tail in closed form: what was removed is made up for by what stayed.

Three least-squares fits on features at the cut, without labels: each removed channel is predicted from those that stay, and
its weights are added to theirs; the statistics that BatchNorm sees are brought back to the original's; the head is fitted to
the original's logits.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from pnc_hub.cloning.fitting.ridge import Moments, solve, with_constant
from pnc_hub.cloning.pruning.units import Group, inputs_of, masked

# In this order.
STEPS = ("weights", "statistics", "head")
# Bounds: images looked at, positions of a map (or tokens) per image, and inputs of a layer (its moments are their square).
FOLD_IMAGES, STATISTICS_IMAGES, HEAD_IMAGES, POSITIONS, WIDEST = 128, 32, 2048, 64, 4096
# Penalties relative to the mean energy of the inputs.
FOLD_RIDGE = 1e-3
HEAD_RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)

Batches = Sequence[tuple[Tensor, Tensor, Tensor]]


def before(
    whole: nn.Module, groups: Sequence[Group], kept: Sequence[Tensor], batches: Batches, steps: Collection[str] = STEPS
) -> None:
    """What is repaired while all channels are there: weights that read pruned groups, then statistics of BatchNorm.

    ``whole`` is changed in place; ``kept`` says for each group which units stay.
    """
    feature = torch.cat([feature for feature, _, _ in spread(batches, STATISTICS_IMAGES)])
    expected = statistics(whole, feature)
    if "weights" in steps:
        fold(whole, groups, kept, batches)
    if "statistics" in steps:
        with masked(groups, [stays.float() for stays in kept]):
            match_statistics(whole, feature, expected)


@torch.no_grad()
def fold(whole: nn.Module, groups: Sequence[Group], kept: Sequence[Tensor], batches: Batches) -> None:
    """Add to the weights of inputs that stay those of inputs that will be removed, as far as the first predict the second.

    For linear layers and 1x1 convolutions this is the least-squares refit of their output to the original's; for larger
    kernels every tap is treated alike. Arguments are those of ``before``.
    """
    gone: dict[nn.Module, Tensor] = {}
    for group, stays in zip(groups, kept, strict=True):
        for layer, inputs, units in group.readers:
            removed = gone.setdefault(layer, torch.zeros(inputs_of(layer), dtype=torch.bool, device=inputs.device))
            removed[inputs] |= ~stays[units]
    layers = [
        layer
        for layer, removed in gone.items()
        if removed.any() and len(removed) <= WIDEST and getattr(layer, "groups", 1) == 1
    ]
    for layer, gram in _second_moments(whole, layers, batches).items():
        _fold(layer, gram, gone[layer])


@torch.no_grad()
def match_statistics(whole: nn.Module, feature: Tensor, expected: dict[nn.Module, tuple[Tensor, Tensor]]) -> None:
    """Change the running statistics of BatchNorm layers so that their outputs have the mean and deviation that they had.

    Where the running statistics are those of the same images this is re-estimation; where they are not (BatchNorm folded into
    weights, images unlike those of training), re-estimation would change the function of the network and this does not.

    One pass, so that each layer sees what the earlier ones have become; ``expected`` are the ``statistics`` as they were.
    """

    def change(layer: Any, args: tuple[Tensor]) -> None:
        mean, deviation = _moments(args[0])
        had_mean, had_deviation = expected[layer]
        ratio = torch.where(had_deviation > 0, deviation / had_deviation.clamp_min(1e-12), 1.0).clamp(0.1, 10.0)
        scale = (layer.running_var + layer.eps).sqrt() * ratio
        layer.running_mean.copy_(mean - (had_mean - layer.running_mean) * ratio)
        layer.running_var.copy_((scale**2 - layer.eps).clamp_min(0))

    _watch(whole, expected, change, [feature])


@torch.no_grad()
def statistics(whole: nn.Module, feature: Tensor) -> dict[nn.Module, tuple[Tensor, Tensor]]:
    """Mean and deviation [C] of what each BatchNorm layer of ``whole`` reads."""
    read: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def keep(layer: nn.Module, args: tuple[Tensor]) -> None:
        read[layer] = _moments(args[0])

    _watch(whole, [layer for layer in whole.modules() if _has_statistics(layer)], keep, [feature])
    return read


@torch.no_grad()
def refit_head(tail: nn.Module, head: nn.Linear, original: nn.Module, batches: Batches) -> None:
    """Fit ``head``, in place, to the logits of ``original`` by a ridge towards its present weights.

    The penalty is the one that does best on every fourth image.
    """
    rows = [(tail(feature), original(feature), weight) for feature, _, weight in spread(batches, HEAD_IMAGES)]
    x, y, weight = (torch.cat(column).double() for column in zip(*rows, strict=True))
    missing = y - (x @ head.weight.double().T + head.bias.double())
    is_held_out = torch.arange(len(x), device=x.device) % 4 == 3

    def moments(chosen: Tensor) -> Moments:
        seen = Moments()
        seen.add(x[chosen], missing[chosen], weight[chosen])
        return seen

    fit, held_out = moments(~is_held_out), moments(is_held_out)
    errors = {strength: held_out.error(fit.solve(strength, free_bias=False)) for strength in HEAD_RIDGES}
    best = min(errors, key=errors.__getitem__)
    if errors[best] < float(held_out.square.sum()):  # that of no change
        change = moments(torch.ones_like(is_held_out)).solve(best, free_bias=False).to(head.weight)
        head.weight += change[:-1].T
        head.bias.add_(change[-1])


def spread(batches: Batches, most: int) -> Batches:
    """``batches`` with about ``most`` images left, evenly from all of them."""
    step = max(1, round(sum(len(feature) for feature, _, _ in batches) / most))
    return [(feature[::step], labels[::step], weight[::step]) for feature, labels, weight in batches]


def _second_moments(whole: nn.Module, layers: Sequence[nn.Module], batches: Batches) -> dict[nn.Module, Tensor]:
    """Second moments [C + 1, C + 1] of the inputs of ``layers`` and a constant, summed in float64."""
    moments: dict[nn.Module, Tensor] = {}

    def watch(layer: nn.Module, args: tuple[Tensor]) -> None:
        x = with_constant(_rows(layer, args[0]))
        gram = (x.T @ x).double()
        moments[layer] = moments[layer] + gram if layer in moments else gram

    _watch(whole, layers, watch, [feature for feature, _, _ in spread(batches, FOLD_IMAGES)])
    return moments


def _watch(whole: nn.Module, layers: Iterable[nn.Module], hook: Callable[..., Any], features: Iterable[Tensor]) -> None:
    with ExitStack() as handles:
        for layer in layers:
            handles.enter_context(layer.register_forward_pre_hook(hook))
        for feature in features:
            whole(feature)


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    axes = [axis for axis in range(x.ndim) if axis != 1]
    return x.mean(axes), x.var(axes, unbiased=False).sqrt()


def _rows(layer: nn.Module, x: Tensor) -> Tensor:
    """Inputs [N, C] of a layer: some positions of a map, or tokens."""
    if isinstance(layer, nn.Conv2d):
        x = x.flatten(2).transpose(1, 2)
    if x.ndim == 2:
        return x
    x = x.flatten(1, -2)
    return x[:, :: max(1, x.shape[1] // POSITIONS)].flatten(0, 1)


def _fold(layer: Any, gram: Tensor, gone: Tensor) -> None:
    left, right = (~gone).nonzero().flatten(), gone.nonzero().flatten()
    constant = layer.bias is not None
    stays = torch.cat([left, left.new_tensor([len(gone)])]) if constant else left
    map_ = solve(gram[stays][:, stays], gram[stays][:, right], FOLD_RIDGE, constant).to(layer.weight)
    weight = layer.weight.data.transpose(0, 1)  # [inputs, outputs, ...]
    lost = weight[right].flatten(1)
    weight[left] += (map_[: len(left)] @ lost).view(len(left), *weight.shape[1:])
    if constant:
        layer.bias.data += (map_[-1] @ lost).view(layer.bias.shape[0], -1).sum(1)


def _has_statistics(layer: nn.Module) -> bool:
    return isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.running_mean is not None
