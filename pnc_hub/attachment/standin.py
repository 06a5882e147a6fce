"""What is called in place of a method of a model while clones are attached."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from types import CodeType, MethodType
from typing import Any

from torch import nn

ATTRIBUTE = "_pnc_hook"  # of a model: what its stand-ins hand their calls to


class StandIn:
    """What is called in place of one method of a model.

    It is no bound method, because pickles of those are looked up on the class, and yet can be taken apart like one:
    accelerate does so, and copies of the model then get their own clones. torch.compile guards on the methods that an
    instance overrides, so a graph compiled before the clones came is not used while they are there, and again afterwards.
    """

    def __init__(self, owner: Any, method: str) -> None:
        """For ``method`` of ``owner.model``, to be answered by ``owner.call``."""
        self.owner, self.method = owner, method

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the method returns, with the clones taking part."""
        return self.owner.call(self.method, args, kwargs)

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        """What it stands for."""
        replaced: Callable[..., Any] | None = self.owner.replaced.get(self.method)
        return replaced or MethodType(getattr(type(self.owner.model), self.method), self.owner.model)

    @property
    def __code__(self) -> CodeType:
        """What torch.export names its graph by."""
        code: CodeType = inspect.unwrap(self).__code__
        return code

    @property
    def __globals__(self) -> dict[str, Any]:
        """Not there: torch.jit.script asks for it, and would go on to compile what this stands for, without the clones."""
        raise AttributeError(
            "a model with a clone attached cannot be scripted; trace or export it, or detach the clone"
        )

    @property
    def __func__(self) -> Callable[..., Any]:
        """The same as a function of the model and its arguments."""
        function = partial(_unbound, self.method, self.owner.number, self.owner.replaced.get(self.method))
        function.__name__ = self.method  # type: ignore[attr-defined]
        return function


def _unbound(
    method: str, number: int, replaced: Callable[..., Any] | None, model: nn.Module, *args: Any, **kwargs: Any
) -> Any:
    owner: Any = vars(model).get(ATTRIBUTE)
    if getattr(owner, "number", None) == number:
        return owner.call(method, args, kwargs)
    return replaced(*args, **kwargs) if replaced else getattr(type(model), method)(model, *args, **kwargs)
