"""What a module costs: its parameters and its multiply-accumulates."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def parameters(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def macs(predict: Callable[[torch.Tensor], object], example: torch.Tensor) -> int:
    """Multiply-accumulates of ``predict``, a module or a function, for ``example``; both may be on the meta device."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        predict(example)
    return int(counter.get_total_flops()) // 2
