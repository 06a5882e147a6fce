"""The shallow graph of a model's forward pass, with the value that every node has for images of one size.

``torch.fx`` alone stops where a model looks at a value: ``B, N, C = x.shape``, ``for feature in features``, ``if size %
window``. Here every node is computed on the meta device as soon as it is recorded, so such questions get the answer of a
real pass. What would make the graph wrong for another batch, device or dtype is refused.
"""

from __future__ import annotations

import inspect
import operator
import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import Attribute, TraceError
from torch.utils import _pytree as pytree

from pnc_hub.models.meta import ShapesOnly

# Prime, and larger than any height, width or number of tokens: a size is a multiple of it only if it counts images.
BATCH = 7919

# While fx traces, it replaces methods of nn.Module for the whole process; two traces at once would restore each other's.
_LOCK = threading.Lock()


@dataclass(frozen=True)
class Trace:
    """What one forward pass does.

    Attributes:
        graph: its nodes; modules that return one tensor are single nodes, all others are looked into.
        values: what each node but the output evaluates to, with tensors on the meta device.
        varying: nodes that are no tensors and yet differ from pass to pass: numbers of images, devices, dtypes.
    """

    graph: fx.Graph
    values: dict[fx.Node, Any]
    varying: set[fx.Node]


def trace(model: nn.Module, size: tuple[int, int, int], opened: Collection[str] = ()) -> Trace:
    """Trace ``model``, which is on the meta device, for images of ``size``; modules named in ``opened`` are looked into.

    Arguments of its ``forward`` other than the image keep their defaults. Raises whatever the traced code raises.
    """
    tracer = _Tracer(size, opened)
    with _LOCK, torch.no_grad(), ShapesOnly():
        graph = tracer.trace(model)
    return Trace(graph, tracer.values, tracer.varying)


def has_tensor(value: Any) -> bool:
    """Whether ``value`` is or contains a tensor; what does not is a size, a device or the like, and carries no features."""
    if isinstance(value, dict):
        return any(map(has_tensor, value.values()))
    return any(map(has_tensor, value)) if isinstance(value, (tuple, list)) else isinstance(value, Tensor)


def _functions_of_one_tensor() -> tuple[Callable[..., Any], ...]:
    """Functions that timm asks not to trace, but for those that may return None, for which no proxy can stand."""
    from timm.layers import get_notrace_functions

    tensor_or_unsaid = (Tensor, inspect.Signature.empty)
    return tuple(f for f in get_notrace_functions() if inspect.signature(f).return_annotation in tensor_or_unsaid)


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True  # or else what is computed from a buffer becomes a constant without a value

    def __init__(self, size: tuple[int, int, int], opened: Collection[str]) -> None:
        super().__init__(autowrap_functions=_functions_of_one_tensor())
        self.size, self.opened = size, opened
        self.values: dict[fx.Node, Any] = {}
        self.varying: set[fx.Node] = set()
        self._thread, self._evaluating = threading.get_ident(), False

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """The image alone is an argument of the graph, so that the others have their defaults, as in ``model(image)``."""
        return root_fn, [self.root, self.create_proxy("placeholder", "image", (), {})]

    def create_node(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **more: Any) -> fx.Node:
        node = super().create_node(kind, target, args, kwargs, *rest, **more)
        if kind != "output":
            evaluating, self._evaluating = self._evaluating, True
            try:
                self.values[node] = self._evaluate(node)
            finally:
                self._evaluating = evaluating
            if not has_tensor(self.values[node]) and self._varies(node):
                self.varying.add(node)
        return node

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **more: Any) -> Any:
        """A proxy that knows its value; None and containers are themselves, so that ``is None`` and ``isinstance`` hold."""
        proxy: Any = super().create_proxy(kind, target, args, kwargs, *rest, **more)
        value = proxy.value
        if type(value) in (tuple, list):
            return type(value)(proxy[index] for index in range(len(value)))
        if type(value) is dict:
            return {key: proxy[key] for key in value}
        return None if value is None else proxy

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_arg(self, a: Any) -> Any:
        """What stands for ``a`` in the graph. Proxies come first: they say that they are tensors."""
        return a.node if isinstance(a, fx.Proxy) else super().create_arg(a)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """A node for modules that return one tensor; the others are looked into, because hooks need one tensor."""
        if self._computes_in_earnest:
            return forward(*args, **kwargs)
        name = self.path_of_module(m)
        recorded, whole = len(self.graph.nodes), None
        if not isinstance(m, nn.Sequential) and name not in self.opened:
            whole = self.create_node("call_module", name, self.create_arg(args), self.create_arg(kwargs))
            if isinstance(self.values[whole], Tensor):
                return self.proxy(whole)
        try:
            result = forward(*args, **kwargs)
        except Exception:  # whatever the module's code raises; the module as a whole can still be recorded
            self._forget(recorded)
            return self.create_proxy("call_module", name, args, kwargs)
        if whole is not None:
            self.graph.erase_node(whole)
        return result

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        """A proxy for a parameter or buffer, unless a value is being computed."""
        if self._computes_in_earnest:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    @property
    def _computes_in_earnest(self) -> bool:
        """Whether the code that runs is no part of the trace: it computes a node, or it belongs to another thread."""
        return self._evaluating or threading.get_ident() != self._thread

    def fixed(self, proxy: _Proxy) -> Any:
        """The value of ``proxy``, which from here on is a constant of the graph."""
        if proxy.node in self.varying:
            raise TraceError(
                f"what it computes depends on a number of images, a device or a dtype ({proxy.node.format_node()})"
            )
        return proxy.value

    def _forget(self, recorded: int) -> None:
        """Remove all nodes but the first ``recorded``, and but parameters, which are remembered and used again."""
        for node in reversed(list(self.graph.nodes)[recorded:]):
            if node.op != "get_attr":
                self.graph.erase_node(node)

    def _evaluate(self, node: fx.Node) -> Any:
        target: Any = node.target
        if node.op == "placeholder":
            return torch.empty(BATCH, *self.size, device="meta")
        if node.op == "get_attr":
            owner, _, name = target.rpartition(".")
            return getattr(self.root.get_submodule(owner), name)
        args, kwargs = self._values_in(node.args), self._values_in(node.kwargs)
        if node.op == "call_module":
            return self.root.get_submodule(target)(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        return target(*args, **kwargs)

    def _values_in(self, argument: Any) -> Any:
        """``argument`` with values for nodes; in lists of its own, since a module may change a list that it is given."""
        if isinstance(argument, fx.Node):
            value = self.values[argument]
            return list(value) if isinstance(value, list) else value
        if isinstance(argument, dict):
            return {key: self._values_in(value) for key, value in argument.items()}
        if isinstance(argument, slice):
            return slice(*map(self._values_in, (argument.start, argument.stop, argument.step)))
        if isinstance(argument, (tuple, list)):
            values = [self._values_in(value) for value in argument]
            if isinstance(argument, list):
                return values
            return type(argument)(*values) if hasattr(argument, "_fields") else tuple(values)
        return argument

    def _varies(self, node: fx.Node) -> bool:
        value = self.values[node]
        if isinstance(value, (tuple, list, dict)):
            return False  # as a whole; its items are judged when they are taken out
        if isinstance(value, int) and value and value % BATCH == 0:
            return True
        if node.target is getattr and isinstance(self.values.get(node.all_input_nodes[0]), Tensor):
            return bool(node.args[1] != "ndim")
        return not self.varying.isdisjoint(node.all_input_nodes)


class _Proxy(fx.Proxy):
    """Stands for a node, and answers with its value where a plain proxy cannot answer at all."""

    tracer: _Tracer

    if TYPE_CHECKING:  # torch gives all proxies their operators when it is imported

        def __getitem__(self, index: Any) -> Any: ...

    @classmethod
    def __torch_function__(cls, orig_method: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """A node for a function of torch. fx lists all methods of tensors to see that it is none: 7 ms in every process."""
        if getattr(torch, getattr(orig_method, "__name__", ""), None) is not orig_method:
            return super().__torch_function__(orig_method, types, args, kwargs)
        proxy = next(value for value in pytree.tree_leaves((args, kwargs)) if type(value) is cls)
        return proxy.tracer.create_proxy("call_function", orig_method, args, kwargs or {})

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self.value)  # for isinstance, which looks at both

    @property
    def value(self) -> Any:
        return self.tracer.values[self.node]

    def __getattr__(self, name: str) -> Any:
        if callable(getattr(self.value, name)):
            return Attribute(self, name)  # recorded as one node when it is called
        return self.tracer.create_proxy("call_function", getattr, (self, name), {})

    def __iter__(self) -> Iterator[fx.Proxy]:
        return iter([self[index] for index in range(len(self))])

    def __len__(self) -> int:
        return int(self.shape[0]) if isinstance(self.value, Tensor) else len(self.value)

    def __bool__(self) -> bool:
        return bool(self.tracer.fixed(self))

    def __index__(self) -> int:
        return operator.index(self.tracer.fixed(self))

    def __int__(self) -> int:
        return int(self.tracer.fixed(self))

    def __float__(self) -> float:
        return float(self.tracer.fixed(self))
