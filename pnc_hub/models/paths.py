"""Which ways lead through a traced model, and what lies between two places on them."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable
from functools import cached_property
from typing import Any

from torch import Tensor, fx, nn

from pnc_hub.errors import InsertionPointError
from pnc_hub.models.classifier import heads
from pnc_hub.models.trace import BATCH, Trace, has_tensor


class Paths:
    """The ways from the image to the output of one traced model."""

    def __init__(self, model: nn.Module, traced: Trace) -> None:
        self.model, self.traced = model, traced
        nodes: list[fx.Node] = list(traced.graph.nodes)
        self.image, self.output = nodes[0], nodes[-1]

    @cached_property
    def path(self) -> list[fx.Node]:
        """The image and all nodes that carry something of it to the output; sizes of tensors do not count."""
        values, depends = self.traced.values, {self.image}
        used = ancestors(self.output, lambda node: node is self.output or has_tensor(values[node]))
        path = [self.image]
        for node in self.traced.graph.nodes:
            if node in used and node is not self.output and not depends.isdisjoint(node.all_input_nodes):
                depends.add(node)
                path.append(node)
        return path

    @cached_property
    def readable(self) -> list[fx.Node]:
        """Module calls on the path, each module called just once, before there are logits."""
        calls = Counter(node.target for node in self.traced.graph.nodes if node.op == "call_module")
        heads, readable = _head_names(self.model), []
        logits: set[fx.Node] = set()
        for node in self.path:
            module = node.op == "call_module"
            if not logits.isdisjoint(node.all_input_nodes) or (module and _touches(str(node.target), heads)):
                logits.add(node)
            elif module and calls[node.target] == 1:
                readable.append(node)
        return readable

    @cached_property
    def unavoidable(self) -> list[fx.Node]:
        """Those readable ones that every way from the image to the output passes through."""
        position = {node: index for index, node in enumerate(self.path)}
        readable, unavoidable, furthest = set(self.readable), [], 0
        for index, node in enumerate(self.path):
            if furthest <= index and node in readable:
                unavoidable.append(node)
            furthest = max([furthest, *(position[user] for user in node.users if user in position)])
        return unavoidable

    def trunk(self, end: fx.Node) -> list[str]:
        """Names of the modules, parameters and buffers that are used up to and including ``end``."""
        used = ancestors(end)
        named = (node for node in self.traced.graph.nodes if node.op in ("call_module", "get_attr"))
        return [str(node.target) for node in named if node in used]

    def part(self, start: fx.Node, start_name: str, end: Any) -> fx.Graph:
        """The nodes that lead from ``start``, which becomes a placeholder, to ``end``, for any number of images.

        Sizes that were taken before ``start`` are constants in it: a feature's grid says nothing of the image's size.

        Raises:
            InsertionPointError: ``end`` depends on something before ``start`` that ``start`` does not tell.
        """
        graph = fx.Graph()
        copied: dict[fx.Node, Any] = {start: graph.placeholder(start_name)}
        after = {start}
        for node in self.traced.graph.nodes:
            if not after.isdisjoint(node.all_input_nodes):
                after.add(node)
        values = self.traced.values
        needed = ancestors(end, lambda node: node is not start and (node in after or has_tensor(values[node])))
        for node in self.traced.graph.nodes:
            if node in needed:
                for given in node.all_input_nodes:
                    if given not in copied:
                        copied[given] = _constant(self.traced, given, graph, copied[start])
                copied[node] = graph.node_copy(node, copied.__getitem__)
        graph.output(copied[end])
        return graph


def ancestors(end: fx.Node, through: Callable[[fx.Node], bool] = lambda node: True) -> set[fx.Node]:
    """``end`` and every node that it depends on, by way of nodes that satisfy ``through``."""
    seen: set[fx.Node] = set()
    todo = [end]
    while todo:
        node = todo.pop()
        if node not in seen and through(node):
            seen.add(node)
            todo.extend(node.all_input_nodes)
    return seen


def _constant(traced: Trace, node: fx.Node, graph: fx.Graph, feature: fx.Node) -> Any:
    """What stands for ``node`` where only ``feature`` is given: its value, or what can be computed from the feature."""

    def without_batch(value: Any) -> Any:
        if isinstance(value, (tuple, list)):
            return (list if isinstance(value, list) else tuple)(map(without_batch, value))
        if type(value) is not int or not value or value % BATCH:
            return value
        images = graph.call_method("size", (feature, 0))
        return images if value == BATCH else graph.call_function(operator.mul, (images, value // BATCH))

    value = without_batch(traced.values[node])
    if node not in traced.varying or isinstance(value, fx.Node):
        return value
    if node.target is getattr and isinstance(traced.values[node.all_input_nodes[0]], Tensor):
        return graph.call_function(getattr, (feature, node.args[1]))
    raise InsertionPointError(f"what follows a cut depends on {node.format_node()}, which cannot be known there")


def _head_names(model: nn.Module) -> list[str]:
    layers = heads(model)
    return [name for name, module in model.named_modules() if any(module is head for head in layers)]


def _touches(name: str, others: list[str]) -> bool:
    """Whether module ``name`` is, contains or is contained in one of ``others``."""
    return any(f"{name}.".startswith(f"{other}.") or other.startswith(f"{name}.") for other in others)
