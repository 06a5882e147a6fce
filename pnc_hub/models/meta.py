"""Quicker passes on the meta device.

torch answers some of the most frequent operations there in Python and slowly, which makes a pass through a network
without weights as slow as one with them, and rebuilding an architecture slower still. What such an operation returns
follows from its arguments' shapes.
"""

from __future__ import annotations

import copy
import inspect
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class ShapesOnly(TorchFunctionMode):
    """Within it, the operations below are not computed for meta tensors that fit together; all others are as ever.

    What does not fit is left to torch, which raises what it raises.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        _ALLOWED.left -= 1
        if _ALLOWED.left < 0:
            raise OverflowError("it takes more operations than are allowed")
        rule = _RULES.get(func)
        kwargs = kwargs or {}
        if rule is not None and _is_meta(args[0] if args else kwargs.get("tensor")):  # torch.nn.init gives all by name
            result = rule(*args, **kwargs)
            if result is not None:
                return result
        return func(*args, **kwargs)


class IndicesInRange(TorchFunctionMode):
    """Within it, indices with numbers that tensors without numbers are read at must be in their range: else ``IndexError``.

    Without it torch does not look at them: what they would index has a shape and nothing else.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__getitem__ and args[0].is_meta:
            tensor, index = args
            parts = index if isinstance(index, tuple) else (index,)
            _check_range(tensor, parts)
            args = tensor, tuple(part.to("meta") if isinstance(part, Tensor) else part for part in parts)
        return func(*args, **(kwargs or {}))


def _check_range(tensor: Tensor, parts: tuple[Any, ...]) -> None:
    """Raise ``IndexError`` if a part of an index of ``tensor`` is a tensor of integers beyond the axis that it is for."""
    axes = [part.dim() if _is_mask(part) else int(part is not None and part is not Ellipsis) for part in parts]
    axis = 0
    for part, taken in zip(parts, axes, strict=True):
        if isinstance(part, Tensor) and not part.is_meta and not _is_mask(part) and part.numel():
            low, high, size = int(part.min()), int(part.max()), tensor.shape[axis]
            if low < -size or high >= size:
                raise IndexError(f"{low} to {high} do not index an axis of {size}")
        axis += tensor.dim() - sum(axes) if part is Ellipsis else taken


def _is_mask(part: Any) -> bool:
    return isinstance(part, Tensor) and part.dtype == torch.bool


@contextmanager
def at_most(operations: int) -> Iterator[None]:
    """Within it, this thread may run no more than so many operations under ``ShapesOnly``: the next is an ``OverflowError``.

    Sizes cost nothing without weights, loops do, and what an architecture loops over is for an artifact to choose.
    """
    before, _ALLOWED.left = _ALLOWED.left, operations
    try:
        yield
    finally:
        _ALLOWED.left = before


class _Allowed(threading.local):
    left: float = math.inf


_ALLOWED = _Allowed()


def _is_meta(*values: Any) -> bool:
    """Whether all are tensors on the meta device; proxies of ``torch.fx`` may say so and are none."""
    return all(type(value) in (Tensor, nn.Parameter) and value.is_meta for value in values)


def _fits(parameter: Any, shape: tuple[int, ...]) -> bool:
    return parameter is None or (_is_meta(parameter) and tuple(parameter.shape) == shape)


def _initialise(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor | None:
    """Filling or scaling a tensor in place; with another tensor, shapes would have to be looked at."""
    return None if any(isinstance(value, Tensor) for value in (*args, *kwargs.values())) else tensor


def _initialise_matrix(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor | None:
    """The same where the numbers depend on the tensor's shape, which must be that of a matrix or of a convolution."""
    return _initialise(tensor, *args, **kwargs) if tensor.dim() > 1 else None


def _like(tensor: Tensor) -> Tensor:
    """``torch.empty_like``, which is slow on the meta device."""
    return tensor.new_empty(tensor.shape) if tensor.is_contiguous() else torch.empty_like(tensor)


def _combine(tensor: Tensor, other: Any, **more: Any) -> Tensor | None:
    """A sum or a product of numbers, one from each; sizes of ``other`` may be 1."""
    fitting = not more and _is_meta(other) and tensor.dtype == other.dtype and tensor.dim() == other.dim()
    fitting = fitting and all(size in (1, whole) for size, whole in zip(other.shape, tensor.shape, strict=True))
    return tensor.new_empty(tensor.shape) if fitting and tensor.is_contiguous() and other.is_contiguous() else None


def _mean(tensor: Tensor, dim: Any = None, keepdim: bool = False, **more: Any) -> Tensor | None:
    axes = dim if isinstance(dim, (tuple, list)) else (dim,)
    dims = tensor.dim()
    fitting = not more and tensor.is_floating_point() and tensor.is_contiguous()
    if not fitting or not axes or not all(type(axis) is int and -dims <= axis < dims for axis in axes):
        return None
    left = {axis % dims for axis in axes}
    if len(left) < len(axes):
        return None
    sizes = [1 if axis in left else size for axis, size in enumerate(tensor.shape) if keepdim or axis not in left]
    return tensor.new_empty(sizes)


def _activate(tensor: Tensor, inplace: bool = False) -> Tensor:
    return tensor if inplace else _like(tensor)


def _gelu(tensor: Tensor, *, approximate: str = "none") -> Tensor:
    return _like(tensor)


def _conv2d(
    tensor: Tensor,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor | None:
    pairs = [value if isinstance(value, tuple) else (value, value) for value in (stride, padding, dilation)]
    fitting = (
        _is_meta(weight) and tensor.dim() == weight.dim() == 4 and tensor.is_contiguous() and weight.is_contiguous()
    )
    fitting = fitting and all(type(number) is int and len(pair) == 2 for pair in pairs for number in pair)
    fitting = fitting and min(*pairs[0], *pairs[2]) > 0 and min(pairs[1]) >= 0
    if not fitting or not _groups_fit(tensor, weight, groups) or not _fits(bias, tuple(weight.shape[:1])):
        return None
    sides = zip(tensor.shape[2:], weight.shape[2:], *pairs, strict=True)
    size = [(side + 2 * pad - apart * (kernel - 1) - 1) // step + 1 for side, kernel, step, pad, apart in sides]
    return tensor.new_empty((tensor.shape[0], weight.shape[0], *size)) if min(size) > 0 else None


def _groups_fit(tensor: Tensor, weight: Tensor, groups: int) -> bool:
    # of no channels at all torch says what it says
    return groups > 0 and 0 < tensor.shape[1] == weight.shape[1] * groups and weight.shape[0] % groups == 0


def _batch_norm(
    tensor: Tensor,
    mean: Any,
    variance: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    *_: Any,
    **__: Any,
) -> Tensor | None:
    fitting = not training and all(_fits(value, tensor.shape[1:2]) for value in (mean, variance, weight, bias))
    return _like(tensor) if fitting and mean is not None else None


def _layer_norm(tensor: Tensor, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Tensor | None:
    shape = tuple(shape)
    fitting = tuple(tensor.shape[tensor.dim() - len(shape) :]) == shape and _fits(weight, shape) and _fits(bias, shape)
    return tensor.new_empty(tensor.shape) if fitting else None


def _linear(tensor: Tensor, weight: Any, bias: Any = None) -> Tensor | None:
    fitting = _is_meta(weight) and weight.dim() == 2 and tensor.dim() > 1 and tensor.shape[-1] == weight.shape[1]
    fitting = fitting and _fits(bias, tuple(weight.shape[:1]))
    return tensor.new_empty((*tensor.shape[:-1], weight.shape[0])) if fitting else None


def _attend(
    query: Tensor, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0, **more: Any
) -> Tensor | None:
    fitting = _is_meta(key, value) and query.shape == key.shape == value.shape and query.dim() == 4
    return _like(query) if fitting and attn_mask is None and not more.get("enable_gqa") else None


_RULES: dict[Any, Callable[..., Tensor | None]] = {
    F.batch_norm: _batch_norm,
    F.layer_norm: _layer_norm,
    F.linear: _linear,
    F.gelu: _gelu,
    F.scaled_dot_product_attention: _attend,
    torch.conv2d: _conv2d,
    Tensor.mean: _mean,
    **dict.fromkeys((F.silu, F.hardswish, F.hardsigmoid, F.relu6), _activate),
    **dict.fromkeys((Tensor.uniform_, Tensor.normal_, Tensor.erfinv_, Tensor.clamp_), _initialise),
    **dict.fromkeys((Tensor.add, Tensor.mul), _combine),
    **dict.fromkeys((nn.init.uniform_, nn.init.normal_, nn.init.constant_), _initialise),
    **dict.fromkeys((nn.init.kaiming_uniform_, nn.init.kaiming_normal_), _initialise_matrix),
    **dict.fromkeys((Tensor.fill_, Tensor.zero_, Tensor.mul_, Tensor.add_), _initialise),
}


_HOOKS = ("_hf_hook", "_pnc_hook")  # attributes that hold what hooks into a module: accelerate's, and that of clones


def meta_copy(model: nn.Module) -> nn.Module:
    """A copy in eval mode and float32, on the meta device, without hooks and without what stands in for a method.

    A stand-in says by ``__wrapped__`` what it stands for: those of clones do, and accelerate's, which moves weights in before
    ``forward`` and out after it.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        _prepare(module, memo)
    twin = copy.deepcopy(model, memo)
    for module, copied in zip(model.modules(), twin.modules(), strict=True):
        for name, value in vars(module).items():
            inner = inspect.unwrap(value) if callable(value) else value
            if name in _HOOKS or _is_method(module, inner, name):
                del vars(copied)[name]
            elif inner is not value:
                vars(copied)[name] = copy.deepcopy(inner, memo)
    return twin.eval().float()


def _prepare(module: nn.Module, memo: dict[int, Any]) -> None:
    """Say what ``deepcopy`` is to put in place of weights and hooks."""
    for parameter in module._parameters.values():
        if parameter is not None:
            memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), False)
    for tensor in _tensors_on(module):
        memo.setdefault(id(tensor), torch.empty_like(tensor, device="meta", requires_grad=False))
    for name, value in vars(module).items():
        if "_hook" in name and isinstance(value, dict):
            memo[id(value)] = type(value)()
        elif name in _HOOKS or hasattr(value, "__wrapped__"):
            memo[id(value)] = name  # not copied: it may hold whole networks


def _is_method(module: nn.Module, value: Any, attribute: str) -> bool:
    """Whether ``value`` is the method of its class that an instance has without this attribute, or its ``forward``."""
    function = getattr(value, "__func__", value)
    name = getattr(function, "__name__", None)
    return name in (attribute, "forward") and function is getattr(type(module), name, None)


def _tensors_on(module: nn.Module) -> Iterator[Tensor]:
    """Buffers, and what else a module keeps: some hold results of their last pass, which cannot be copied otherwise."""
    for value in vars(module).values():
        items = value.values() if isinstance(value, dict) else (value,)
        yield from (item for item in items if isinstance(item, Tensor))
