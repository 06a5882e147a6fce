"""The hooks that join clones to a running model, and nothing else.

One ``Patch`` serves all clones of a model. At the start of a forward pass it takes a snapshot of the clones that take part,
so that attaching or detaching meanwhile, from another thread, never mixes two states in one answer. Features are turned
into clone logits at the moment they appear: a later layer may overwrite them in place. Nothing but hook tables and
``num_classes`` of the model changes, so ``state_dict`` and the parameters are the model's alone.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pnc_hub.errors import ImageError, TargetError
from pnc_hub.points import INPUT

if TYPE_CHECKING:
    from pnc_hub.attachment import Attachment

_TABLES = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
)


class _Pass(threading.local):
    """One forward pass of one thread: ``members`` that take part, and the ``outputs`` of those that have run.

    Both are items of a dictionary, because torch.compile keeps a change to a dictionary and loses one to an attribute of
    a ``threading.local``.
    """

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}


class Patch(nn.Module):
    """All clones of one model. Its bound methods are the hooks, so a copy of the model gets a copy of the clones."""

    def __init__(self, width: int, channels: int) -> None:
        """``width`` is the model's own number of classes, ``channels`` that of its images."""
        super().__init__()
        self.width, self.channels = width, channels
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

    def begin(self, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Root pre-hook: look at the images, take the snapshot, run the clones that read the input."""
        images = args[0] if args else next(iter(kwargs.values()), None)
        check_images(images, self.channels)
        state = self._pass.state
        state["members"], state["outputs"] = self.active, {}
        self._compute(INPUT, images)

    def capture(self, name: str, output: Any) -> None:
        """Called by the hook on the insertion point ``name``."""
        if "members" in self._pass.state:
            self._compute(name, output)

    def end(self, model: nn.Module, args: tuple, output: Any) -> Any:
        """Root hook: the target's own logits, then those of each clone. Also called when the forward pass fails."""
        state = self._pass.state
        members, outputs = state.pop("members", ()), state.pop("outputs", None)
        if output is None or not outputs:
            return None
        if not isinstance(output, Tensor) or output.dim() != 2:
            raise TargetError(
                f"{type(model).__name__} returned {_shape(output)}, and a clone extends logits [B, classes]; detach the"
                " clone, or call the model so that it returns its logits (model.eval() for models with two heads)"
            )
        columns = [output]
        for position, member in enumerate(members):
            if position in outputs:
                columns.append(member._logits(output, outputs[position]))
        return torch.cat(columns, 1)

    def _compute(self, name: str, feature: Any) -> None:
        state = self._pass.state
        for position, member in enumerate(state["members"]):
            if member._point == name:
                state["outputs"][position] = member._run(feature)


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
