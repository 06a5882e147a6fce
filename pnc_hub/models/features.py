"""A forward pass with features read on the way: the one place that reads a model which no clone is attached to."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Any

from torch import Tensor, nn

from pnc_hub.models.insertion import INPUT


def read(
    model: nn.Module, images: Tensor, points: Collection[str], *, stop: bool = False
) -> tuple[Any, dict[str, Tensor]]:
    """What ``model`` answers to ``images`` and what passes the ``points`` on the way.

    Args:
        model: any model; its hooks are as before when this returns or raises.
        images: [B, C, H, W].
        points: names of insertion points; ``"input"`` stands for the images themselves.
        stop: end the pass as soon as every point was passed; there is no output then.

    Returns:
        (output, or None where the pass was ended; feature [B, ...] by point, a copy, since a later layer may work in place).

    Example:
        >>> import timm, torch
        >>> model = timm.create_model("resnet18").eval()
        >>> read(model, torch.zeros(1, 3, 64, 64), ["layer1"], stop=True)[1]["layer1"].shape
        torch.Size([1, 64, 16, 16])
    """
    features = {INPUT: images} if INPUT in points else {}
    wanted = set(points)

    def keep(name: str, _module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> None:
        features[name] = output.clone()
        if stop and features.keys() == wanted:
            raise _Reached

    modules = {name: model.get_submodule(name) for name in sorted(wanted - {INPUT})}
    handles = [module.register_forward_hook(partial(keep, name)) for name, module in modules.items()]
    try:
        return (None if stop and not handles else model(images)), features
    except _Reached:
        return None, features
    finally:
        for handle in handles:
            handle.remove()


class _Reached(Exception):
    """Every feature that was asked for is there; the rest of the forward pass is not needed."""
