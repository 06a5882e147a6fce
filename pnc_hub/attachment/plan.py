"""What is settled before a clone touches a model: can it take one, by which adapter, under which names. Only looks."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from pnc_hub.artifact.config import AdapterConfig
from pnc_hub.attachment import probing
from pnc_hub.attachment.hooks import hooks_of
from pnc_hub.errors import (
    ClassCollisionError,
    FingerprintMismatchError,
    InsertionPointError,
    NoClassifierError,
    TargetError,
)
from pnc_hub.hub.clone import Clone
from pnc_hub.models.classifier import as_classifier, pretrained_cfg
from pnc_hub.models.fingerprint import matches
from pnc_hub.models.insertion import INPUT, InsertionPoint, is_grid
from pnc_hub.models.labels import class_names, same_label
from pnc_hub.models.preprocess import Preprocess, input_size
from pnc_hub.models.skeleton import Skeleton

if TYPE_CHECKING:
    from pnc_hub.attachment import Attachment


_NAMED = 5  # targets that a message names


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
            f"the parameters of this {kind} are sharded over several processes, so its weights can not be compared;"
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


def choose_adapter(
    model: nn.Module,
    clone: Clone,
    on_mismatch: str,
    among: Sequence[AdapterConfig] | None = None,
    digests: dict[str, bytes] | None = None,
) -> AdapterConfig:
    """The adapter made for the weights of ``model``; else, as asked, one made for others, or the universal one.

    Args:
        model: the target.
        clone: the clone.
        on_mismatch: ``"error"``, or ``"warn"`` to take one that was made for other weights.
        among: which of the clone's adapters; all by default.
        digests: digests of weights of ``model`` as ``fingerprint.matches`` keeps them; they are added to.

    Raises:
        FingerprintMismatchError: there is none for this model, and none that is universal.
        InsertionPointError: asked for one made for others, and the model has no such place.
    """
    names = {name for name, _ in model.named_modules()}
    architecture = pretrained_cfg(model).get("architecture")
    width = _own_width(model)
    among = clone.config.adapters if among is None else among
    digests = {} if digests is None else digests
    for adapter in among:
        target, insertion = adapter.target, adapter.insertion
        if target is None:
            continue
        at_input = insertion.name == INPUT
        if at_input and (architecture, width) == (target.architecture, target.num_classes):
            return adapter
        if insertion.name in names and matches(model, target.trunk, target.fingerprint, digests):
            _check_tokens(model, insertion)
            return adapter
    universal = next((adapter for adapter in among if adapter.target is None), None)
    made_for = [adapter for adapter in among if adapter.target is not None]
    relatives = [a for a in made_for if a.target and architecture in (None, a.target.architecture)]
    if on_mismatch == "warn" and (relatives or universal is None):
        return _forced_adapter(model, clone, relatives or made_for, architecture)
    if universal is None:
        raise FingerprintMismatchError(_mismatch(model, made_for, architecture))
    warnings.warn(
        f"{clone!r} has no adapter for this {type(model).__name__}: it is attached at the input, where it shares no"
        " computation and its gate was not calibrated for this model (no locality budget holds)",
        stacklevel=3,
    )
    return universal


def _check_tokens(model: nn.Module, insertion: InsertionPoint) -> None:
    """Tokens do not tell how they are arranged; taken for a map of other proportions they would give a wrong answer."""
    size = input_size(model)
    if insertion.layout == "NLC" and not is_grid(insertion.grid, size):
        raise InsertionPointError(
            f"the clone reads tokens at {insertion.name!r} as a map of {insertion.grid}, and the images of this"
            f" {type(model).__name__} are {size[1]} high and {size[2]} wide; have an adapter made for this model"
        )


def _forced_adapter(
    model: nn.Module, clone: Clone, made_for: list[AdapterConfig], architecture: str | None
) -> AdapterConfig:
    points = Skeleton(model).points
    for adapter in made_for:
        if points.get(adapter.insertion.name) == adapter.insertion:
            warnings.warn(
                f"{_mismatch(model, [adapter], architecture)} {_how_far_off(model, clone, adapter)} It is attached all the"
                " same, as asked: measure it first.",
                stacklevel=4,
            )
            return adapter
    wanted = ", ".join(f"{a.insertion.name} ({a.insertion.channels} channels)" for a in made_for)
    raise InsertionPointError(
        f"the clone reads {wanted or 'the input'}, and {type(model).__name__} has no such insertion point;"
        f" its insertion points are {', '.join(points)}"
    )


def _how_far_off(model: nn.Module, clone: Clone, adapter: AdapterConfig) -> str:
    tensors = [*model.parameters(), *model.buffers()]
    if any(module.training for module in model.modules()) or any(tensor.is_meta for tensor in tensors):
        return (
            "Its feature on the probe was not looked at (that needs a model in eval mode, with its weights in place)."
        )
    error = probing.feature_error(model, clone, adapter, Preprocess.of(model).input_size)
    return f"Its feature on the probe misses the expected one by {error:.2g} times that one's norm."


def _mismatch(model: nn.Module, made_for: list[AdapterConfig], architecture: str | None) -> str:
    places = (f"{a.target.hub_id or a.target.architecture} (at {a.insertion.name})" for a in made_for if a.target)
    names = list(dict.fromkeys(places))
    targets = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
    return (
        f"the clone was made for {targets or 'no target'}, and the weights of this"
        f" {architecture or type(model).__name__} up to the insertion point are others. Load the weights it was made for,"
        " or have an adapter made for this model."
    )


def check_labels(model: nn.Module, clone: Clone, present_clones: Iterable[Attachment]) -> None:
    """Raise ``ClassCollisionError`` if a cloned class has the name of one that the model or another clone has."""
    for label, owner in collisions(model, clone, present_clones):
        raise ClassCollisionError(
            f"the clone adds class {label!r}, which {owner} already has; attach it with on_collision='allow' to have both"
        )


def collisions(model: nn.Module, clone: Clone, present_clones: Iterable[Attachment]) -> Iterator[tuple[str, str]]:
    """Those of the cloned classes whose names are there already, and what has them: the model or another clone."""
    present = {same_label(name): "the model" for names in class_names(model, _own_width(model)) or () for name in names}
    for attachment in present_clones:
        present.update((same_label(label), repr(attachment)) for label in attachment.labels)
    return ((label, present[same_label(label)]) for label in clone.labels if same_label(label) in present)


def reference(model: nn.Module, adapter: AdapterConfig) -> torch.Tensor:
    """A weight near the insertion point: where, and in which dtype, features of ``model`` are to be expected."""
    near = model.get_submodule("" if adapter.insertion.name == INPUT else adapter.insertion.name)
    return next(near.parameters(), next(model.parameters(), torch.zeros(())))


def _own_width(model: nn.Module) -> int:
    joined = hooks_of(model)
    return joined.width.own(model) if joined else int(as_classifier(model).num_classes)
