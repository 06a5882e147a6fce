"""Insertion points and cuts of a timm model.

Both are the same thing seen from two sides: a module whose output *every* path from image to logits passes through. The
target's feature is read there (insertion point); a source is cut there, and what follows can be rebuilt from the
architecture's name alone. They are found by shallow ``torch.fx`` tracing: every module but the root and ``nn.Sequential``
is a leaf, so that no block has to be traceable itself, and nothing but timm's own code is involved.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import fx, nn

from pnc_hub.errors import InsertionPointError
from pnc_hub.preprocess import input_size

INPUT = "input"
LAYOUTS = ("NCHW", "NHWC", "NLC", "NC")


@dataclass(frozen=True)
class InsertionPoint:
    """A place where features can be read, or where a source can be cut.

    Attributes:
        name: the module's path, as in ``model.get_submodule(name)``; ``"input"`` is the image itself.
        index: which call of that module; always 0 at present, modules called more than once are no candidates.
        channels: size of the channel axis.
        reduction: input height divided by the height of the feature map (the whole input height for ``"NC"``).
        layout: ``"NCHW"``, ``"NHWC"``, ``"NLC"`` (tokens, class tokens first) or ``"NC"`` (a vector per image).
        grid: (height, width) of the map at the model's own input size; (1, 1) for ``"NC"``.
        prefix_tokens: number of class or register tokens before the map (``"NLC"`` only).
    """

    name: str
    index: int
    channels: int
    reduction: int
    layout: str
    grid: tuple[int, int]
    prefix_tokens: int = 0


class Skeleton:
    """A model's structure on the meta device, traced: no weights, no hooks, no memory."""

    def __init__(self, model: nn.Module, size: tuple[int, int, int] | None = None) -> None:
        """Copy ``model`` to the meta device; the model itself is only read. ``size`` replaces the images' recorded size."""
        self.model = meta_copy(model)
        self.input_size = size or input_size(model)

    @cached_property
    def graph(self) -> fx.Graph:
        """The shallow graph of one forward pass."""
        try:
            return _ShallowTracer().trace(self.model)
        except Exception as error:  # fx raises whatever the traced code raises
            raise InsertionPointError(
                f"{type(self.model).__name__} has no interior insertion point: its forward pass can not be traced"
                f" ({type(error).__name__}: {error}). A clone with a universal adapter attaches at its input."
            ) from error

    @cached_property
    def classifier(self) -> str:
        """Path of the one layer that turns features into logits, or "" where there is no such layer."""
        return classifier_name(self.model)

    @cached_property
    def points(self) -> dict[str, InsertionPoint]:
        """All points by name, in the order in which a forward pass reaches them."""
        shapes = _Shapes(fx.GraphModule(self.model, copy.deepcopy(self.graph)))
        image = torch.empty(1, *self.input_size, device="meta")
        shapes.run(image)
        channels, height, width = self.input_size
        found = {INPUT: InsertionPoint(INPUT, 0, channels, 1, "NCHW", (height, width))}
        head = self.classifier.split(".")
        for node in self._unavoidable:
            if str(node.target).split(".") == head[: str(node.target).count(".") + 1]:
                break  # from here on there are logits, not features
            point = _describe(self.model, str(node.target), shapes.of.get(node.name), self.input_size)
            if point is not None:
                found[point.name] = point
        return found

    def point(self, name: str) -> InsertionPoint:
        """The point called ``name``.

        Raises:
            InsertionPointError: there is none; the message lists those that exist.
        """
        if name == INPUT:
            channels, height, width = self.input_size
            return InsertionPoint(INPUT, 0, channels, 1, "NCHW", (height, width))
        if name not in self.points:
            raise InsertionPointError(
                f"{name!r} is no insertion point of {type(self.model).__name__};"
                f" its insertion points are {', '.join(self.points)}."
            )
        return self.points[name]

    def trunk(self, name: str) -> list[str]:
        """Names of the modules and parameters that are used up to and including the point ``name``."""
        if name == INPUT:
            return []
        used = _ancestors(self._node(name))
        return [
            str(node.target) for node in self.graph.nodes if node in used and node.op in ("call_module", "get_attr")
        ]

    def prefix(self, model: nn.Module, name: str) -> fx.GraphModule:
        """The part of ``model`` from the image to the cut ``name``, sharing its modules."""
        image = self._image
        if name == INPUT:
            graph = fx.Graph()
            graph.output(graph.placeholder("image"))
            return fx.GraphModule(model, graph)
        return self._part(model, image, "image", self._node(name))

    def tail(self, model: nn.Module, name: str) -> fx.GraphModule:
        """The part of ``model`` from the cut ``name`` to its output, sharing its modules."""
        start = self._image if name == INPUT else self._node(name)
        output = next(node for node in self.graph.nodes if node.op == "output")
        return self._part(model, start, "feature", output.args[0])

    @cached_property
    def _image(self) -> fx.Node:
        return next(node for node in self.graph.nodes if node.op == "placeholder")

    @cached_property
    def _unavoidable(self) -> list[fx.Node]:
        """Module calls that every path from the image to the output passes through, each module called just once."""
        output = next(node for node in self.graph.nodes if node.op == "output")
        used = _ancestors(output)
        depends = {self._image}
        path = [self._image]
        for node in self.graph.nodes:
            if node in used and node not in depends and depends.intersection(node.all_input_nodes):
                depends.add(node)
                path.append(node)
        position = {node: place for place, node in enumerate(path)}
        calls = [node.target for node in self.graph.nodes if node.op == "call_module"]
        unavoidable, furthest = [], 0
        for place, node in enumerate(path):
            if furthest <= place and node.op == "call_module" and calls.count(node.target) == 1:
                unavoidable.append(node)
            furthest = max([furthest, *(position[user] for user in node.users if user in position)])
        return unavoidable

    def _node(self, name: str) -> fx.Node:
        self.point(name)
        return next(node for node in self._unavoidable if node.target == name)

    def _part(self, model: nn.Module, start: fx.Node, start_name: str, end: Any) -> fx.GraphModule:
        """The nodes between ``start`` (replaced by a placeholder) and ``end``, as a module."""
        graph = fx.Graph()
        copied: dict[fx.Node, Any] = {start: graph.placeholder(start_name)}
        for node in self.graph.nodes:
            if node.op == "placeholder" and node not in copied:
                copied[node] = node.args[0] if node.args else None
        wanted = _ancestors(end, stop=start)
        for node in self.graph.nodes:
            if node in wanted and node not in copied:
                copied[node] = graph.node_copy(node, copied.__getitem__)
        graph.output(copied[end])
        return fx.GraphModule(model, graph)


def insertion_points(model: nn.Module) -> tuple[InsertionPoint, ...]:
    """Every place of ``model`` where a clone can be inserted, from its input to its last feature.

    Args:
        model: a timm model, on any device; it is only read.

    Returns:
        The points in the order of a forward pass; the first is always ``"input"``.

    Raises:
        InsertionPointError: the model's forward pass can not be traced.

    Example:
        >>> import timm
        >>> model = timm.create_model("resnet18")
        >>> [(p.name, p.channels, p.reduction, p.layout) for p in insertion_points(model)][-3:]
        [('layer4.0', 512, 32, 'NCHW'), ('layer4.1', 512, 32, 'NCHW'), ('global_pool', 512, 224, 'NC')]
    """
    return tuple(Skeleton(model).points.values())


def classifier_name(model: nn.Module) -> str:
    """Path of the module that ``model.get_classifier()`` returns, or "" where it is no single module of the model."""
    classifier = model.get_classifier() if hasattr(model, "get_classifier") else None
    return next((name for name, module in model.named_modules() if module is classifier), "")


def meta_copy(model: nn.Module) -> nn.Module:
    """A copy in eval mode and float32, whose tensors are on the meta device and which carries no hooks."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), False)
        for buffer in module._buffers.values():
            if buffer is not None:
                memo[id(buffer)] = torch.empty_like(buffer, device="meta")
        for name, table in vars(module).items():
            if "_hooks" in name and isinstance(table, dict):
                memo[id(table)] = type(table)()
    return copy.deepcopy(model, memo).eval().float()


class _ShallowTracer(fx.Tracer):
    def __init__(self) -> None:
        from timm.layers import get_notrace_functions

        super().__init__(autowrap_functions=tuple(get_notrace_functions()))

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not isinstance(m, nn.Sequential)


class _Shapes(fx.Interpreter):
    """Runs a graph once and notes the shape of every tensor by the name of its node."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.of: dict[str, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, torch.Tensor):
            self.of[n.name] = tuple(result.shape)
        return result


def _ancestors(end: Any, stop: fx.Node | None = None) -> set[fx.Node]:
    """``end`` and every node that it depends on, not looking past ``stop``."""
    found: set[fx.Node] = set()
    todo = [end]
    while todo:
        node = todo.pop()
        if node not in found:
            found.add(node)
            if node is not stop:
                todo.extend(node.all_input_nodes)
    return found


def _describe(
    model: nn.Module, name: str, shape: tuple[int, ...] | None, image: tuple[int, int, int]
) -> InsertionPoint | None:
    """What the feature [1, ...] behind module ``name`` looks like; None where it is neither map, tokens nor vector."""
    height = image[1]
    if shape is None or 0 in shape:
        return None
    if len(shape) == 2:
        return InsertionPoint(name, 0, shape[1], height, "NC", (1, 1))
    if len(shape) == 3:
        return _describe_tokens(name, shape, image, getattr(model, "num_prefix_tokens", 0))
    if len(shape) != 4:
        return None
    first, last = shape[1:3], shape[2:4]
    last_is_channels = _is_grid(first, image) and (
        not _is_grid(last, image) or getattr(model, "output_fmt", "NCHW") == "NHWC"
    )
    channels, grid, layout = (shape[3], first, "NHWC") if last_is_channels else (shape[1], last, "NCHW")
    if not _is_grid(grid, image):
        return None
    return InsertionPoint(name, 0, channels, max(1, round(height / grid[0])), layout, (grid[0], grid[1]))


def _describe_tokens(
    name: str, shape: tuple[int, ...], image: tuple[int, int, int], prefix_tokens: int
) -> InsertionPoint | None:
    _, height, width = image
    for prefix in dict.fromkeys((prefix_tokens, 0)):
        tokens = shape[1] - prefix
        rows = round((tokens * height / width) ** 0.5) if tokens > 0 else 0
        if rows and tokens % rows == 0 and _is_grid((rows, tokens // rows), image):
            grid = (rows, tokens // rows)
            return InsertionPoint(name, 0, shape[2], max(1, round(height / rows)), "NLC", grid, prefix)
    return None


def _is_grid(size: tuple[int, ...], image: tuple[int, int, int]) -> bool:
    """Whether (height, width) has about the proportions of the image, within one row or column."""
    _, height, width = image
    return abs(size[0] * width - size[1] * height) <= max(height, width) and size[0] <= height
