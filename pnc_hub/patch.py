"""The hooks that join clones to a running model, and nothing else.

One ``Patch`` serves all clones of a model. At the start of a forward pass it takes a snapshot of the clones that take part
and of what they compute with, so that attaching or detaching meanwhile, from another thread, never mixes two states in one
answer. Features are copied when they appear, because a later layer may overwrite them in place, and turned into logits when
the pass ends, because gradient checkpointing repeats what happens in between. Nothing but hook tables and ``num_classes`` of
the model changes, so ``state_dict`` and the parameters are the model's alone.
"""

from __future__ import annotations

import threading
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pnc_hub import fusion
from pnc_hub.errors import ImageError, TargetError
from pnc_hub.points import INPUT

if TYPE_CHECKING:
    from pnc_hub.artifact import Clone
    from pnc_hub.attachment import Attachment
    from pnc_hub.config import AdapterConfig
    from pnc_hub.preprocess import Preprocess

_TABLES = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
)


class _Pass(threading.local):
    """One forward pass of one thread: ``members`` that take part, and the ``features`` that they read.

    Both are items of a dictionary, because torch.compile keeps a change to a dictionary and loses one to an attribute of
    a ``threading.local``.
    """

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}


class Branch:
    """The module and the gate of one attached clone, on the device and in the dtype of the features that come."""

    def __init__(
        self, clone: Clone, adapter: AdapterConfig, given: Preprocess, device: torch.device, dtype: torch.dtype
    ) -> None:
        """Builds for features on ``device`` in ``dtype``; others are followed as they come."""
        self.clone, self.adapter, self.given = clone, adapter, given
        self._parts = self._built(device, dtype)

    def __call__(self, feature: Tensor, target_logits: Tensor) -> Tensor:
        """Logits of the cloned classes [B, K], on the device and in the dtype of the target's [B, T]."""
        kind = feature.device.type
        autocast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
        dtype = torch.promote_types(feature.dtype, torch.float32) if autocast else feature.dtype
        parts = self._parts
        if parts[2:] != (feature.device, dtype):
            parts = self._parts = self._built(feature.device, dtype)
        module, gate = parts[:2]
        clone_logits, reject, features = module(feature)
        own = target_logits.to(feature.device)
        with torch.autocast(kind, enabled=False) if autocast else nullcontext():  # fusion needs its float32
            new = fusion.new_logits(own, clone_logits, gate(own, clone_logits, reject, features))
        return new.to(target_logits.device)

    # Built within someone's inference mode, the weights would be refused by autograd ever after.
    @torch.inference_mode(False)
    def _built(
        self, device: torch.device, dtype: torch.dtype
    ) -> tuple[nn.Module, nn.Module, torch.device, torch.dtype]:
        """From the clone's own tensors, so that no precision is lost on the way."""
        module, gate = self.clone.build(self.adapter, self.given)
        return module.to(device, dtype), gate.to(device), device, dtype


class Patch(nn.Module):
    """All clones of one model. Its bound methods are the hooks, so a copy of the model gets a copy of the clones."""

    def __init__(self, width: int, channels: int) -> None:
        """``width`` is the model's own number of classes (``shown`` what it says at present), ``channels`` its images'."""
        super().__init__()
        self.width, self.shown, self.channels = width, width, channels
        self.members: tuple[Attachment, ...] = ()
        self._pass = _Pass()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pass": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._pass = _Pass()

    @property
    def active(self) -> tuple[Attachment, ...]:
        """The members that are not disabled, in the order of their logits."""
        return tuple(member for member in self.members if member._enabled)

    def own_width(self, model: nn.Module) -> int:
        """How many classes the model has of its own; ``reset_classifier`` may have changed that since the clones came."""
        return self.width if model.num_classes == self.shown else int(model.num_classes)

    def show_width(self, model: nn.Module) -> None:
        """Let ``model.num_classes`` tell the width of what the model returns."""
        self.width = self.own_width(model)
        self.shown = model.num_classes = self.width + sum(len(member.labels) for member in self.active)

    def begin(self, model: nn.Module, args: tuple, kwargs: dict[str, Any] | None = None) -> None:
        """Root pre-hook: look at the images, take the snapshot.

        torch leaves ``kwargs`` out when the hook is registered or removed, by another thread, while the pass begins.
        """
        state = self._pass.state
        state.clear()
        images = args[0] if args else next(iter((kwargs or {}).values()), None)
        if images is None:
            return
        check_images(images, self.channels)
        members = [(member, member._branch) for member in self.active]
        state["members"] = [(member, branch) for member, branch in members if branch is not None]
        state["features"] = {}
        self.capture(INPUT, images)

    def capture(self, name: str, output: Any) -> None:
        """Called by the hook on the insertion point ``name``."""
        state = self._pass.state
        if any(member.insertion == name for member, _ in state.get("members", ())):
            state["features"][name] = output.clone()

    def end(self, model: nn.Module, args: tuple, output: Any) -> Any:
        """Root hook: the target's own logits, then those of each clone. Also called when the forward pass fails."""
        state = self._pass.state
        members, features = state.pop("members", ()), state.pop("features", {})
        if output is None or not members:
            return None
        if not isinstance(output, Tensor) or output.dim() != 2:
            raise TargetError(
                f"{type(model).__name__} returned {_shape(output)}, and a clone extends logits [B, classes]; detach the"
                " clone, or call the model so that it returns its logits (model.eval() for models with two heads)"
            )
        if output.shape[1] != self.width:  # the head was exchanged for one that is as wide as what the model returned
            self.width, self.shown = output.shape[1], model.num_classes
            self.show_width(model)
        columns = [output]
        for member, branch in members:
            if member.insertion in features:
                columns.append(branch(features[member.insertion], output))
                if not member.fired:
                    member.fired = True
            elif member in self.members:  # or else it was detached meanwhile
                raise TargetError(
                    f"{type(model).__name__} ran past {member.insertion!r} without its hooks, so {member!r} has no logits:"
                    " the module was replaced, or the model was compiled before the clone was attached. Attach the clone"
                    " again, or call torch.compiler.reset()"
                )
        return torch.cat(columns, 1)


class Capture(nn.Module):
    """The hook on one insertion point."""

    def __init__(self, patch: Patch, name: str) -> None:
        """Hands the outputs of module ``name`` to ``patch``."""
        super().__init__()
        self.__dict__["patch"] = patch  # not a submodule: the patch is not part of the hook
        self.name = name

    def hook(self, module: nn.Module, args: tuple, output: Any) -> None:
        """Forward hook."""
        self.patch.capture(self.name, output)


def patch_of(model: nn.Module) -> Patch | None:
    """The patch that serves ``model``, or None."""
    for hook in model._forward_pre_hooks.values():
        owner = getattr(hook, "__self__", None)
        if isinstance(owner, Patch):
            return owner
    return None


def install(model: nn.Module, patch: Patch, points: set[str]) -> None:
    """Register what is missing so that every point in ``points`` is read; passes under way do not notice."""
    if patch_of(model) is None:
        model.register_forward_hook(patch.end, always_call=True)
    modules = dict(model.named_modules())
    for name in sorted(points - {INPUT} - _captured(model)):
        modules[name].register_forward_hook(Capture(patch, name).hook)
    if patch_of(model) is None:
        model.register_forward_pre_hook(patch.begin, with_kwargs=True)


def uninstall(model: nn.Module, patch: Patch, keep: set[str]) -> None:
    """Remove the captures of points not in ``keep``, and everything when no clone is left; other hooks stay."""

    def is_ours(hook: Any) -> bool:
        owner = getattr(hook, "__self__", None)
        if isinstance(owner, Capture):
            return owner.patch is patch and owner.name not in keep
        return owner is patch and not patch.members

    for module in model.modules():
        for key in [key for key, hook in module._forward_pre_hooks.items() if is_ours(hook)]:
            _drop(module, key)
        for key in [key for key, hook in module._forward_hooks.items() if is_ours(hook)]:
            _drop(module, key)


def check_images(images: Any, channels: int) -> None:
    """Raise ``ImageError`` unless ``images`` is a float tensor [B, channels, H, W]; other inputs are the model's affair."""
    if not isinstance(images, Tensor):
        return
    found = f"found {_shape(images)} of {str(images.dtype).removeprefix('torch.')}"
    if not images.is_floating_point():
        raise ImageError(f"images must be normalised floats, {found}; apply the model's timm transform first")
    if images.dim() != 4 or images.shape[1] != channels:
        raise ImageError(
            f"images must be [B, {channels}, height, width], {found}; apply the model's timm transform first"
        )


def _captured(model: nn.Module) -> set[str]:
    owners = (getattr(hook, "__self__", None) for module in model.modules() for hook in module._forward_hooks.values())
    return {owner.name for owner in owners if isinstance(owner, Capture)}


def _drop(module: nn.Module, key: int) -> None:
    for table in _TABLES:
        getattr(module, table, {}).pop(key, None)


def _shape(value: Any) -> str:
    return str(list(value.shape)) if isinstance(value, Tensor) else f"a {type(value).__name__}"
