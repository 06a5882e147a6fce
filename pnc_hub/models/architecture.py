"""An architecture rebuilt from its name, on the meta device, and the two parts that a cut makes of it: trunk and tail."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import timm
import torch
from torch import Tensor, fx, nn

from pnc_hub.models.classifier import as_classifier, without_classifier
from pnc_hub.models.insertion import InsertionPoint
from pnc_hub.models.meta import ShapesOnly, at_most
from pnc_hub.models.skeleton import Skeleton
from pnc_hub.models.tensors import tensors_of

# torch operations to build an architecture without weights and to trace it: a second or so. The most that was counted for one
# of timm's as it is are 49,000 (mvitv2_huge_cls).
MAX_OPERATIONS = 55_000

_PLAIN = (bool, int, float, str, type(None))
_TABLES = ("_parameters", "_buffers", "_modules")


class Part(nn.Module):
    """A part of an architecture: what comes before a cut (``"trunk"``), or after it (``"tail"``).

    ``fx.GraphModule`` makes a new class and new code for every instance; graphs that torch.compile has made of one would not
    serve the next. All instances of one part of one architecture run the same function.
    """

    def __init__(self, architecture: Architecture, side: str, cut: str) -> None:
        """Its modules are those of ``architecture.skeleton``, on the meta device."""
        super().__init__()
        self._origin = (architecture, side, cut)
        graph: fx.GraphModule = getattr(architecture.skeleton, side)(architecture.skeleton.model, cut)
        self._function: Callable[[nn.Module, Tensor], Tensor] = type(graph).forward
        for table in ("_parameters", "_buffers", "_modules"):
            getattr(self, table).update(getattr(graph, table))

    def forward(self, value: Tensor) -> Tensor:
        """Images -> feature at the cut, or feature at the cut -> penultimate feature."""
        return self._function(self, value)

    def __getstate__(self) -> dict[str, Any]:
        """Code does not pickle; it is made again from the architecture's name."""
        return {name: value for name, value in self.__dict__.items() if name != "_function"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        nn.Module.__setstate__(self, state)
        architecture, side, cut = self._origin
        self._function = architecture.part(side, cut)._function


class Architecture:
    """An architecture that timm knows, rebuilt on the meta device with its classifier taken out."""

    def __init__(self, name: str, model_args: dict[str, Any], size: tuple[int, int, int]) -> None:
        """Build ``name`` with ``model_args`` for images of ``size``; all have been checked by the caller."""
        self._key = (name, model_args, size)
        with at_most(MAX_OPERATIONS):
            with ShapesOnly(), torch.device("meta"):
                model = timm.create_model(name, pretrained=False, **model_args)
            self.skeleton = Skeleton(model, size, own=True)
            _ = self.skeleton.graph  # traced now, while operations are counted
        self.num_classes = as_classifier(model).num_classes
        self.model, self.features = without_classifier(self.skeleton.model)
        self._parts: dict[tuple[str, str], Part] = {}
        self.passed: set[bytes] = set()  # digests of what ran on the meta device

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles hold the name alone."""
        return Architecture.of, self._key

    def __deepcopy__(self, memo: dict[int, Any]) -> Architecture:
        return self

    def trunk(self, cut: str) -> Part:
        """What comes before ``cut``, on the meta device, to be changed at will: only tensors are shared with other calls."""
        return _copied(self.part("trunk", cut))

    def tail(self, cut: str) -> Part:
        """What comes after ``cut``, on the meta device, to be changed at will: only tensors are shared with other calls."""
        return _copied(self.part("tail", cut))

    def point(self, cut: str) -> InsertionPoint:
        """What the feature at ``cut`` looks like; an ``InsertionPointError`` where there is no such place."""
        return self.skeleton.point(cut)

    def part(self, side: str, cut: str) -> Part:
        """The one that ``trunk`` and ``tail`` copy."""
        key = (side, cut)
        return self._parts.get(key) or self._parts.setdefault(key, Part(self, side, cut))

    @classmethod
    def of(cls, name: str, model_args: dict[str, Any], size: tuple[int, int, int]) -> Architecture:
        """The same, remembered: an artifact is often attached more than once in a process."""
        arguments = tuple(sorted(model_args.items()))
        return _remembered(name, arguments, size, repr(arguments))


@lru_cache(maxsize=32)
def _remembered(name: str, model_args: tuple[Any, ...], size: tuple[int, int, int], _written: str) -> Architecture:
    """``_written`` tells True from 1, which are equal and mean different things to timm's constructors."""
    return Architecture(name, dict(model_args), size)


def _copied(part: Part) -> Part:
    """A deep copy but for tensors, which are without numbers and are replaced, not changed.

    ``deepcopy`` looks at each of the thirty attributes of a layer, most of which are numbers or tables of hooks. Here it is
    left what remains.
    """
    twins = {id(layer): type(layer).__new__(type(layer)) for layer in part.modules()}
    memo: dict[int, Any] = {**twins, **{id(tensor): tensor for tensor in tensors_of(part).values()}}
    for layer in part.modules():
        copied = vars(twins[id(layer)])
        for name, value in vars(layer).items():
            if type(value) in _PLAIN:
                copied[name] = value
            elif name in _TABLES or (not value and type(value) is OrderedDict):
                copied[name] = type(value)((key, memo.get(id(item), item)) for key, item in value.items())
            else:
                copied[name] = copy.deepcopy(value, memo)
    twin = twins[id(part)]
    assert isinstance(twin, Part)
    return twin
