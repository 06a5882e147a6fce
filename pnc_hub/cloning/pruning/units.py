"""Units: what can be removed from a tail on its own, and what goes with it.

A unit is a channel together with everything that produces and reads it (Torch-Pruning's dependency groups), or a head of
attention. What a removed unit gave its readers is missing from their sums, so multiplying their inputs by a mask does exactly
what removal will do: units are judged, and repaired for, on the whole network, and cut out of it once.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from pnc_hub.models.cost import parameters

# Projections of attention, whose channels are bound to heads in ways that the dependency graph does not know.
PROJECTIONS = (".qkv", ".q", ".k", ".v", ".kv", ".proj")


@dataclass
class Group:
    """Units of one kind, of which any may be removed."""

    count: int  # how many units there are
    readers: list[tuple[nn.Module, Tensor, Tensor]]  # (layer, its inputs, the unit that each of these belongs to)
    shares: list[tuple[Tensor, int, float]]  # (tensor, dimension, share of the dimension that goes with each unit)
    remove: Callable[[list[int]], None]  # cuts units out, given their positions
    dependency: Any = None  # Torch-Pruning's group, where it is one

    @property
    def simple(self) -> bool:
        """Whether one layer writes it and one reads it, as the hidden layer of an MLP or heads of attention."""
        writers = sum(dimension == 0 and tensor.ndim > 1 for tensor, dimension, _ in self.shares)
        return writers == len(self.readers) == 1

    @property
    def exact(self) -> bool:
        """Whether its masks do exactly what removal does: nothing in it takes a mean or a maximum over channels."""
        names = [dep.target.name.replace("BatchNorm", "") for dep, _ in self.dependency or ()]
        return not any(mixing in name for name in names for mixing in ("Norm", "Softmax"))


@dataclass
class Units:
    """All groups of a network, and how its size follows from what is kept."""

    groups: list[Group]
    size: int  # parameters of the whole network
    tensors: dict[int, tuple[int, dict[int, list[tuple[int, float]]]]] = field(init=False)

    def __post_init__(self) -> None:
        self.tensors = {}
        for position, group in enumerate(self.groups):
            for tensor, dimension, share in group.shares:
                _, shrinks = self.tensors.setdefault(id(tensor), (tensor.numel(), defaultdict(list)))
                shrinks[dimension].append((position, share))

    def parameters(self, kept: Sequence[int]) -> int:
        """Number of parameters with ``kept`` units in each group."""
        lost = [group.count - count for group, count in zip(self.groups, kept, strict=True)]
        size = float(self.size)
        for numel, shrinks in self.tensors.values():
            left = 1.0
            for parts in shrinks.values():
                left *= 1 - sum(lost[position] * share for position, share in parts)
            size -= numel * (1 - left)
        return round(size)

    def costs(self) -> list[float]:
        """Parameters that a unit of each group takes, while nothing else is removed."""
        return [sum(t.numel() * share for t, _, share in group.shares) for group in self.groups]


def units_of(whole: nn.Sequential, example: Tensor) -> Units:
    """Units of ``whole`` = (stand-in of the adapter, tail, head), which runs on ``example``; its parameters need gradients.

    Nothing coupled to the stand-in's or the head's outputs is among them.
    """
    return Units([*_heads(whole[1]), *_channels(whole, example)], parameters(whole[1:]))


@contextmanager
def masked(groups: Sequence[Group], masks: Sequence[Tensor]) -> Iterator[None]:
    """While it lasts, what the units give is multiplied by ``masks``: for each group [units], or [B, units] by image."""
    reads: dict[nn.Module, list[tuple[Tensor, Tensor, Tensor]]] = defaultdict(list)
    for group, mask in zip(groups, masks, strict=True):
        for layer, inputs, units in group.readers:
            reads[layer].append((inputs, units, mask))
    with ExitStack() as handles:
        for layer, parts in reads.items():
            handles.enter_context(layer.register_forward_pre_hook(_multiplied(parts)))
        yield


def _multiplied(parts: list[tuple[Tensor, Tensor, Tensor]]) -> Callable[..., Any]:
    def hook(layer: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        (x,) = args
        axis = 1 if isinstance(layer, nn.Conv2d) else x.ndim - 1
        rows = max(len(mask) if mask.ndim == 2 else 1 for _, _, mask in parts)
        gate = x.new_ones(rows, x.shape[axis])
        for inputs, units, mask in parts:
            gate = gate.index_copy(1, inputs, mask.expand(rows, -1)[:, units])
        if rows > 1 and rows != len(x):  # windows of an image come one after another
            gate = gate.repeat_interleave(len(x) // rows, 0)
        shape = [1] * x.ndim
        shape[0], shape[axis] = len(gate), x.shape[axis]
        return (x * gate.view(shape),)

    return hook


def _channels(whole: nn.Sequential, example: Tensor) -> Iterator[Group]:
    """Groups of channels by Torch-Pruning's dependency graph."""
    import torch_pruning

    projections = [layer for name, layer in whole.named_modules() if name.endswith(PROJECTIONS)]
    with warnings.catch_warnings():
        # parameters outside of layers are pruned with what they scale
        warnings.filterwarnings("ignore", "Unwrapped parameters", UserWarning)
        graph = torch_pruning.DependencyGraph().build_dependency(whole, example_inputs=example)
    for dependency in graph.get_all_groups(ignored_layers=[whole[0], whole[2], *projections]):
        group = _group(dependency, graph)
        if group is not None:
            yield group


def _group(dependency: Any, graph: Any) -> Group | None:
    """Torch-Pruning's group as ours, or None where it does not say which input is whose."""
    coupled = max(_coupled(dep.target.module) for dep, _ in dependency)
    count = len(dependency[0].idxs) // coupled
    readers, shares = [], []
    for item in dependency:
        layer, roots = item.dep.target.module, item.root_idxs
        if len(roots) != len(item.idxs) or None in roots:
            return None
        device = next(graph.model.parameters()).device
        if _reads(item.dep, graph):
            units = torch.tensor([root % count for root in roots], device=device)
            readers.append((layer, torch.tensor(item.idxs, device=device), units))
            # a grouped convolution's weight has the inputs of one group
            shares.append((layer.weight, 1, len(roots) / inputs_of(layer) / count))
        elif isinstance(layer, nn.Parameter):
            dimension = item.dep.target.pruning_dim % layer.ndim
            shares.append((layer, dimension, len(roots) / layer.shape[dimension] / count))
        elif isinstance(layer, nn.Module):
            tensors = [p for p in layer._parameters.values() if p is not None and p.ndim and len(p) > 1]
            shares += [(tensor, 0, len(roots) / len(tensor) / count) for tensor in tensors]

    def remove(units: list[int]) -> None:
        dependency.prune([unit + part * count for part in range(coupled) for unit in units])

    return Group(count, readers, shares, remove, dependency) if readers and count > 1 else None


def _reads(dep: Any, graph: Any) -> bool:
    layer = dep.target.module
    if not isinstance(layer, (nn.Conv2d, nn.Linear)) or _depthwise(layer):
        return False
    return graph.is_in_channel_pruning_fn(dep.handler) and not graph.is_out_channel_pruning_fn(dep.handler)


def inputs_of(layer: nn.Module) -> int:
    """How many channels or features a convolution or linear layer reads."""
    return layer.in_channels if isinstance(layer, nn.Conv2d) else cast(nn.Linear, layer).in_features


def _depthwise(layer: Any) -> bool:
    return isinstance(layer, nn.Conv2d) and layer.groups == layer.out_channels > 1


def _coupled(layer: Any) -> int:
    """In how many equal parts a layer takes its channels, of which each must lose the same."""
    if isinstance(layer, nn.Conv2d):
        return 1 if _depthwise(layer) else layer.groups
    return layer.num_groups if isinstance(layer, nn.GroupNorm) else 1


def _heads(tail: nn.Module) -> Iterator[Group]:
    """Heads of attention layers of the form that most of timm's have: one ``qkv`` for all heads, and ``proj``."""
    for layer in tail.modules():
        qkv, proj, heads = (getattr(layer, name, None) for name in ("qkv", "proj", "num_heads"))
        if not (isinstance(qkv, nn.Linear) and isinstance(proj, nn.Linear) and isinstance(heads, int) and heads > 1):
            continue
        width = proj.in_features
        by_head = [(name, p) for name, p in layer._parameters.items() if p is not None]
        norms = [p for name, p in layer.named_parameters() if name.startswith(("q_norm.", "k_norm."))]
        understood = [*qkv.parameters(), *proj.parameters(), *norms, *(p for _, p in by_head)]
        if (
            qkv.out_features != 3 * width
            or width % heads
            or any(name != "relative_position_bias_table" or p.shape[-1] != heads for name, p in by_head)
            or any(p.shape != (width // heads,) for p in norms)
            or len(understood) != len(list(layer.parameters()))
        ):
            continue
        inputs = torch.arange(width, device=proj.weight.device)
        shares: list[tuple[Tensor, int, float]] = [(p, 0, 1 / heads) for p in qkv.parameters()]
        shares += [(proj.weight, 1, 1 / heads), *((p, p.ndim - 1, 1 / heads) for _, p in by_head)]
        yield Group(heads, [(proj, inputs, inputs // (width // heads))], shares, _remover(layer, heads))


def _remover(layer: Any, heads: int) -> Callable[[list[int]], None]:
    def remove(units: list[int]) -> None:
        kept = torch.tensor([head for head in range(heads) if head not in set(units)], device=layer.qkv.weight.device)
        width = layer.proj.in_features
        inputs = torch.arange(width, device=kept.device).view(heads, -1)[kept].flatten()
        rows = torch.arange(3 * width, device=kept.device).view(3, heads, -1)[:, kept].flatten()
        for name in [name for name, p in layer.qkv.named_parameters()]:
            _take(layer.qkv, name, 0, rows)
        _take(layer.proj, "weight", 1, inputs)
        for name in [name for name, p in layer._parameters.items() if p is not None]:
            _take(layer, name, -1, kept)
        layer.num_heads, layer.qkv.out_features, layer.proj.in_features = len(kept), len(rows), len(inputs)
        if getattr(layer, "attn_dim", None) == width:
            layer.attn_dim = len(inputs)

    return remove


def _take(layer: nn.Module, name: str, dimension: int, kept: Tensor) -> None:
    setattr(layer, name, nn.Parameter(getattr(layer, name).detach().index_select(dimension, kept)))
