"""How a clone would be joined to a model, as a value: ``attach`` applies a ``Plan``, ``check`` reports it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from pnc_hub.artifact.config import AdapterConfig
from pnc_hub.artifact.contents import Contents
from pnc_hub.artifact.probe import enlarge
from pnc_hub.attachment.hooks import hooks_of
from pnc_hub.errors import (
    ClassCollisionError,
    FingerprintMismatchError,
    InsertionPointError,
    NoClassifierError,
    PncHubError,
    TargetError,
)
from pnc_hub.models.classifier import as_classifier, pretrained_cfg
from pnc_hub.models.features import read
from pnc_hub.models.fingerprint import matches
from pnc_hub.models.insertion import INPUT, is_grid
from pnc_hub.models.labels import class_names, same_label
from pnc_hub.models.preprocess import Preprocess
from pnc_hub.models.skeleton import Skeleton

_NAMED = 5  # targets that a message names


@dataclass(frozen=True)
class Plan:
    """How a clone would be joined to a model. Nothing has been done to the model.

    Attributes:
        model: the target, inside of what wraps it.
        adapter: the one of the clone's adapters that is used.
        given: the target's image convention.
        device: where features at the insertion point are to be expected.
        dtype: of these features.
        collisions: the cloned classes whose names are there already, and what has them: the model or another clone.
        warnings: what the user is to be told.
    """

    model: nn.Module
    adapter: AdapterConfig
    given: Preprocess
    device: torch.device
    dtype: torch.dtype
    collisions: dict[str, str]
    warnings: tuple[str, ...]

    def refuse_collisions(self) -> None:
        """Raise ``ClassCollisionError`` if there is one."""
        for label, owner in self.collisions.items():
            raise ClassCollisionError(
                f"the clone adds class {label!r}, which {owner} already has; attach it with on_collision='allow' to have"
                " both"
            )


class Target:
    """A model that clones are to be joined to. It is only looked at, and none of its weights is hashed twice."""

    def __init__(self, model: nn.Module) -> None:
        """For ``model``, plain or in what calls it as it is.

        Raises:
            TargetError: it cannot take a clone.
            NoClassifierError: it has no logits to extend.
        """
        self.model = unwrapped(model)
        check_target(self.model)
        self.given = Preprocess.of(self.model)
        self.names = {name for name, _ in self.model.named_modules()}
        self.architecture = pretrained_cfg(self.model).get("architecture")
        self.hooks = hooks_of(self.model)
        self.width = self.hooks.width.alone(self.model) if self.hooks else int(as_classifier(self.model).num_classes)
        self._digests: dict[str, bytes] = {}

    def plan(self, contents: Contents, *, on_mismatch: str = "error") -> Plan:
        """Settle how ``contents`` would be joined to the model; ``on_mismatch`` is as for ``attach``.

        Raises:
            FingerprintMismatchError: there is no adapter for this model, and none that is universal.
            InsertionPointError: the model has no module of the recorded name and shape.
        """
        adapter, warning = self._choose(contents, contents.config.adapters, on_mismatch)
        near = self.model.get_submodule("" if adapter.insertion.name == INPUT else adapter.insertion.name)
        weight = next(near.parameters(), next(self.model.parameters(), torch.zeros(())))
        warnings, collisions = (warning,) if warning else (), self._collisions(contents.labels)
        return Plan(self.model, adapter, self.given, weight.device, weight.dtype, collisions, warnings)

    def reasons(self, contents: Contents) -> dict[str, str]:
        """By the name of each adapter, why it does not fit by itself, or that it would."""
        said = {}
        for adapter in contents.config.adapters:
            try:
                self._choose(contents, [adapter], "error")
                said[adapter.name] = "it would fit too; the one that is used comes first"
            except PncHubError as error:
                said[adapter.name] = str(error)
        return said

    def _choose(
        self, contents: Contents, among: Sequence[AdapterConfig], on_mismatch: str
    ) -> tuple[AdapterConfig, str | None]:
        """The adapter made for these weights; else, as asked, one made for others, or the universal one; and a warning."""
        made_for = [adapter for adapter in among if adapter.target is not None]
        for adapter in made_for:
            if self._fits(adapter):
                return adapter, None
        universal = next((adapter for adapter in among if adapter.target is None), None)
        relatives = [a for a in made_for if a.target and self.architecture in (None, a.target.architecture)]
        if on_mismatch == "warn" and (relatives or universal is None):
            return self._forced(contents, relatives or made_for)
        if universal is None:
            raise FingerprintMismatchError(self._mismatch(made_for))
        return universal, (
            f"{contents!r} has no adapter for this {type(self.model).__name__}: it is attached at the input, where it shares"
            " no computation and its gate was not calibrated for this model (no locality budget holds)"
        )

    def _collisions(self, labels: Sequence[str]) -> dict[str, str]:
        """Those of ``labels`` that are there already, and what has them."""
        known = class_names(self.model, self.width) or ()
        present = {same_label(name): "the model" for names in known for name in names}
        for member in self.hooks.members if self.hooks else ():
            present.update((same_label(label), repr(member)) for label in member.labels)
        return {label: present[same_label(label)] for label in labels if same_label(label) in present}

    def _fits(self, adapter: AdapterConfig) -> bool:
        target, insertion = adapter.target, adapter.insertion
        if target is None:
            return False
        if insertion.name == INPUT and (self.architecture, self.width) == (target.architecture, target.num_classes):
            return True
        if insertion.name not in self.names or not matches(self.model, target.trunk, target.fingerprint, self._digests):
            return False
        # tokens do not tell how they are arranged; as a map of other proportions they would give a wrong answer
        size = self.given.input_size
        if insertion.layout == "NLC" and not is_grid(insertion.grid, size):
            raise InsertionPointError(
                f"the clone reads tokens at {insertion.name!r} as a map of {insertion.grid}, and the images of this"
                f" {type(self.model).__name__} are {size[1]} high and {size[2]} wide; have an adapter made for this model"
            )
        return True

    def _forced(self, contents: Contents, made_for: list[AdapterConfig]) -> tuple[AdapterConfig, str]:
        points = Skeleton(self.model).points
        for adapter in made_for:
            if points.get(adapter.insertion.name) == adapter.insertion:
                return adapter, (
                    f"{self._mismatch([adapter])} {self._how_far_off(contents, adapter)} It is attached all the same, as"
                    " asked: measure it first."
                )
        wanted = ", ".join(f"{a.insertion.name} ({a.insertion.channels} channels)" for a in made_for)
        raise InsertionPointError(
            f"the clone reads {wanted or 'the input'}, and {type(self.model).__name__} has no such insertion point;"
            f" its insertion points are {', '.join(points)}"
        )

    def _how_far_off(self, contents: Contents, adapter: AdapterConfig) -> str:
        tensors = [*self.model.parameters(), *self.model.buffers()]
        if any(module.training for module in self.model.modules()) or any(tensor.is_meta for tensor in tensors):
            return "Its feature on the probe was not looked at (that needs a model in eval mode, with its weights in place)."
        error = feature_error(self.model, contents, adapter, self.given.input_size)
        return f"Its feature on the probe misses the expected one by {error:.2g} times that one's norm."

    def _mismatch(self, made_for: list[AdapterConfig]) -> str:
        targets = (f"{a.target.hub_id or a.target.architecture} (at {a.insertion.name})" for a in made_for if a.target)
        names = list(dict.fromkeys(targets))
        named = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
        return (
            f"the clone was made for {named or 'no target'}, and the weights of this"
            f" {self.architecture or type(self.model).__name__} up to the insertion point are others. Load the weights it was"
            " made for, or have an adapter made for this model."
        )


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
            f"the parameters of this {kind} are sharded over several processes, so its weights cannot be compared;"
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


@torch.inference_mode()
def feature_error(model: nn.Module, contents: Contents, adapter: AdapterConfig, size: tuple[int, ...]) -> float:
    """Relative error of the target's feature on the probe; 0 for an adapter at the input, which reads no feature.

    ``model`` is the target in eval mode, ``size`` (C, H, W) that of its images; ``adapter`` is one of the clone's.
    """
    if adapter.insertion.name == INPUT:
        return 0.0
    shipped, name = contents.probe(adapter), adapter.insertion.name
    if shipped["image"].shape[1] != size[0]:
        return float("inf")
    image = enlarge(shipped["image"], size).to(next(model.parameters(), torch.zeros(())))
    with torch.compiler.set_stance("force_eager"):  # a compiled graph would not see the hook
        _, features = read(model, image, [name], stop=True)
    found, wanted = features.get(name), shipped["feature"]
    if found is None or found.shape != wanted.shape:
        return float("inf")
    return float((found.float().cpu() - wanted).norm() / wanted.norm().clamp_min(1e-12))
