"""Cutting channels out of a tail by what somebody says they are worth, with nothing repaired afterwards."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from pnc_hub.cloning.pruning.localize import _stand_in
from pnc_hub.cloning.pruning.units import Units, units_of
from pnc_hub.errors import SourceError
from pnc_hub.models.cost import parameters
from pnc_hub.models.insertion import InsertionPoint, empty

LEAST = 0.1  # share of its channels that every layer keeps
Worth = Callable[[nn.Sequential, Units], list[Tensor]]


def narrowed(
    tail: nn.Module, head: nn.Linear, cut: InsertionPoint, largest: int, worth: Worth
) -> tuple[nn.Module, nn.Linear]:
    """Copies of ``tail`` and ``head`` without the units that are worth least, until ``largest`` parameters are left.

    Args:
        tail: feature at the cut -> penultimate feature.
        head: penultimate feature -> logits.
        cut: describes the feature that the tail takes; it keeps its channels.
        largest: parameters that may stay.
        worth: (whole network, its units) -> a value for each unit of each group.

    Raises:
        SourceError: it cannot be made that small.
    """
    whole = nn.Sequential(_stand_in(cut, head.weight.device), copy.deepcopy(tail), copy.deepcopy(head)).eval()
    if parameters(whole[1:]) <= largest:
        return whole[1], whole[2]
    with torch.enable_grad():
        units = units_of(whole.requires_grad_(True), empty(cut, batch=2, device=head.weight.device))
    values = [value.detach().double() for value in worth(whole, units)]
    for value in values:
        value[value.topk(max(1, round(LEAST * len(value)))).indices] = torch.inf
    order = torch.cat(values).sort().values
    low, high = 0, int(order.isfinite().sum())
    while low < high:  # the fewest removals that are enough
        middle = (low + high) // 2
        kept = [int((value > order[middle - 1]).sum()) if middle else len(value) for value in values]
        low, high = (low, middle) if units.parameters(kept) <= largest else (middle + 1, high)
    for group, value in zip(units.groups, values, strict=True):
        gone = (value <= order[low - 1]).nonzero().flatten().tolist() if low else []
        if gone:
            group.remove(gone)
    if parameters(whole[1:]) > largest:
        raise SourceError(f"the source after {cut.name!r} cannot be narrowed to {largest:,} parameters")
    return whole[1].requires_grad_(False), whole[2].requires_grad_(False)
