"""Insertion points and cuts of a timm model.

Both are the same thing seen from two sides: a module whose output *every* path from image to logits passes through. The
target's feature is read there (insertion point); a source is cut there, and what follows can be rebuilt from the
architecture's name alone. They are found in a shallow trace (``pnc_hub.models.trace``): no block has to be traceable itself,
and nothing but timm's own code is involved.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property

import torch
from torch import fx, nn

from pnc_hub.errors import InsertionPointError
from pnc_hub.models.cost import parameters
from pnc_hub.models.insertion import INPUT, InsertionPoint, describe
from pnc_hub.models.meta import meta_copy
from pnc_hub.models.paths import Paths
from pnc_hub.models.preprocess import input_size
from pnc_hub.models.tensors import tensors_of
from pnc_hub.models.trace import trace

FEW = 4  # points; a model with fewer is looked into more deeply


class Skeleton:
    """A model's structure on the meta device, traced: no weights, no hooks, no memory."""

    def __init__(self, model: nn.Module, size: tuple[int, int, int] | None = None, *, own: bool = False) -> None:
        """Copy ``model`` to the meta device; the model itself is only read.

        Args:
            model: any timm model.
            size: (C, H, W) in place of the images' recorded size.
            own: the model is on the meta device and nobody else's, so it need not be copied.
        """
        self.model = _in_float32(model.eval().requires_grad_(False)) if own else meta_copy(model)
        self.input_size = size or input_size(model)

    @property
    def graph(self) -> fx.Graph:
        """The shallow graph of one forward pass."""
        return self._paths.traced.graph

    @cached_property
    def points(self) -> dict[str, InsertionPoint]:
        """All points by name, in the order in which a forward pass reaches them.

        The model can be cut at each, unless there is no such place in it (two branches from the image to the logits); then
        the points are those where features of the image can be read.
        """
        paths = self._paths
        points = self._described(paths, paths.unavoidable) or self._described(paths, paths.readable)
        return {INPUT: self.point(INPUT), **points}

    def point(self, name: str) -> InsertionPoint:
        """The point called ``name``.

        Raises:
            InsertionPointError: there is none; the message lists those that exist.
        """
        if name == INPUT:
            channels, height, width = self.input_size
            return InsertionPoint(INPUT, channels, 1, "NCHW", (height, width))
        if name not in self.points:
            raise InsertionPointError(
                f"{name!r} is no insertion point of {type(self.model).__name__};"
                f" its insertion points are {', '.join(self.points)}."
            )
        return self.points[name]

    def trunk_names(self, name: str) -> list[str]:
        """Names of the modules, parameters and buffers that are used up to and including the point ``name``."""
        return [] if name == INPUT else self._paths.trunk(self._node(name))

    def trunk(self, model: nn.Module, name: str) -> fx.GraphModule:
        """The part of ``model`` from the image to the cut ``name``, sharing its modules."""
        end = self._node(name)
        return fx.GraphModule(model, self._paths.part(self._paths.image, "image", end))

    def tail(self, model: nn.Module, name: str) -> fx.GraphModule:
        """The part of ``model`` from the cut ``name`` to its output, sharing its modules.

        It takes features of any number of images, on the grid that ``model`` has at its own input size.

        Raises:
            InsertionPointError: no such point, or the output depends on more of the image than what passes there.
        """
        paths, start = self._paths, self._node(name)
        if name != INPUT and start not in paths.unavoidable:
            raise InsertionPointError(
                f"{type(self.model).__name__} cannot be cut at {name!r}: there is another way from its image to its output."
                " A clone can be inserted there, but none can be made of what follows."
            )
        return fx.GraphModule(model, paths.part(start, "feature", paths.output.args[0]))

    @cached_property
    def _paths(self) -> Paths:
        """Ways through the model at a depth at which there are places to cut."""
        paths, opened = self._traced(()), []
        while len(points := self._described(paths, paths.unavoidable)) < FEW:
            body = self._body(paths)
            if body is None:
                break
            opened.append(body)
            deeper = self._traced(opened)
            if len(self._described(deeper, deeper.unavoidable)) <= len(points):
                break
            paths = deeper
        return paths

    def _traced(self, opened: Collection[str]) -> Paths:
        try:
            return Paths(self.model, trace(self.model, self.input_size, opened))
        except Exception as error:  # whatever the traced code raises
            raise InsertionPointError(
                f"{type(self.model).__name__} has no interior insertion point: its forward pass cannot be traced"
                f" ({type(error).__name__}: {error}). A clone with a universal adapter attaches at its input."
            ) from error

    def _body(self, paths: Paths) -> str | None:
        """The module that holds most of the model, where one does: models that wrap another have few modules of their own."""
        names, half = (str(node.target) for node in paths.readable), parameters(self.model) / 2
        return next((name for name in names if parameters(self.model.get_submodule(name)) > half), None)

    def _described(self, paths: Paths, nodes: list[fx.Node]) -> dict[str, InsertionPoint]:
        size, values = self.input_size, paths.traced.values
        described = (describe(self.model, str(node.target), values[node], size) for node in nodes)
        return {point.name: point for point in described if point is not None}

    def _node(self, name: str) -> fx.Node:
        self.point(name)
        if name == INPUT:
            return self._paths.image
        return next(node for node in self._paths.readable if node.target == name)


def _in_float32(model: nn.Module) -> nn.Module:
    """``model.float()``, which goes through every layer for nothing where all numbers are of that dtype."""
    dtypes = {tensor.dtype for tensor in tensors_of(model).values() if tensor.is_floating_point()}
    return model.float() if dtypes - {torch.float32} else model


def insertion_points(model: nn.Module) -> tuple[InsertionPoint, ...]:
    """Every place of ``model`` where a clone can be inserted, from its input to its last feature.

    Args:
        model: a timm model, on any device; it is only read.

    Returns:
        The points in the order of a forward pass; the first is always ``"input"``.

    Raises:
        InsertionPointError: no model, or its forward pass cannot be traced.

    Example:
        >>> import timm
        >>> model = timm.create_model("resnet18")
        >>> [(p.name, p.channels, p.reduction, p.layout) for p in insertion_points(model)][-3:]
        [('layer4.0', 512, 32, 'NCHW'), ('layer4.1', 512, 32, 'NCHW'), ('global_pool', 512, 224, 'NC')]
    """
    if not isinstance(model, nn.Module):
        raise InsertionPointError(f"insertion points are those of a timm model, received a {type(model).__name__}")
    return tuple(Skeleton(model).points.values())
