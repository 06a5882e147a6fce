"""Which models a clone can be attached to."""

from __future__ import annotations

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from pnc_hub.errors import NoClassifierError, TargetError


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside of what calls it as it is: ``torch.compile``, ``DistributedDataParallel``."""
    if not isinstance(model, nn.Module):
        raise TargetError(f"a clone attaches to a timm model (an nn.Module), received a {type(model).__name__}")
    while True:
        inner = model.module if isinstance(model, DistributedDataParallel) else getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def check_target(model: nn.Module) -> None:
    """Raise ``TargetError`` unless hooks on ``model`` reach its logits, ``NoClassifierError`` unless it has any."""
    kind = type(model).__name__
    if isinstance(model, (torch.jit.ScriptModule, nn.DataParallel)):
        raise TargetError(
            f"hooks do not reach through a {kind}; attach to the plain model, which can then be traced, exported, compiled"
            " or put into DistributedDataParallel"
        )
    if _is_sharded(model):
        raise TargetError(
            f"the parameters of this {kind} are sharded over several processes, so its weights cannot be compared;"
            " attach to the plain model, then shard it"
        )
    width = vars(model).get("num_classes")  # not a property or an attribute of the class: it is set and set back
    if isinstance(width, int) and width <= 0:
        raise NoClassifierError(
            f"{kind} has no classifier head (num_classes={width}), so there are no logits to extend; build it with its"
            " classes, as in timm.create_model(name, pretrained=True)"
        )
    if not isinstance(width, int):
        raise NoClassifierError(f"{kind} does not say how many classes it has; set its attribute num_classes first")


def _is_sharded(model: nn.Module) -> bool:
    if not (distributed.is_available() and distributed.is_initialized()):
        return False
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.tensor import DTensor

    sharded = any(isinstance(module, FullyShardedDataParallel) for module in model.modules())
    return sharded or any(isinstance(parameter, DTensor) for parameter in model.parameters())
