"""The hooks that join clones to a running model, and nothing else.

One ``Patch`` serves all clones of a model. At the start of a forward pass it takes a snapshot of the clones that take part
and of what they compute with, so that attaching or detaching meanwhile, from another thread, never mixes two states in one
answer. Features are copied when they appear, because a later layer may overwrite them in place, and turned into logits when
the pass ends, because gradient checkpointing repeats what happens in between. Nothing but hook tables, ``num_classes`` and the
two detours of ``pnc_hub.attachment.detour`` changes in the model, so ``state_dict`` and the parameters are the model's alone.
"""

from __future__ import annotations

import inspect
import threading
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pnc_hub.attachment import calls, detour
from pnc_hub.errors import ImageError, NoClassifierError, TargetError
from pnc_hub.models.classifier import as_classifier, heads
from pnc_hub.models.insertion import INPUT

if TYPE_CHECKING:
    from pnc_hub.attachment import Attachment
    from pnc_hub.attachment.branch import Branch

Members = tuple[tuple["Attachment", "Branch"], ...]

_TABLES = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
)


class _Pass(threading.local):
    """One forward pass of one thread: its ``key``, the ``members`` that take part, the ``features`` read, the ``outer`` pass.

    They are items of a dictionary, because torch.compile keeps a change to a dictionary and loses one to an attribute of
    a ``threading.local``.
    """

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}


class Patch(nn.Module):
    """All clones of one model. Its bound methods are the hooks, so a copy of the model gets a copy of the clones."""

    def __init__(self, model: nn.Module, channels: int) -> None:
        """For ``model``, whose images have ``channels``; nothing is changed yet: ``install`` does that."""
        super().__init__()
        self.channels = channels
        self.own = self.width = self.shown = int(as_classifier(model).num_classes)
        self._head = heads(model)
        self.image_names = {step: _first_argument(model, step) for step in ("forward", *detour.STEPS)}
        self.members: tuple[Attachment, ...] = ()
        self.captures: tuple[Capture, ...] = ()
        self._pass = _Pass()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pass": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        nn.Module.__setstate__(self, state)
        self._pass = _Pass()

    @property
    def active(self) -> tuple[Attachment, ...]:
        """The members that are not disabled, in the order of their logits."""
        return tuple(member for member in self.members if member.enabled)

    def own_width(self, model: nn.Module) -> int:
        """How many classes the model has of its own; somebody may have changed that since the clones came."""
        if model.num_classes != self.shown:
            return int(as_classifier(model).num_classes)
        found = heads(model)
        if found == self._head:
            return self.width
        widths = (getattr(head, "out_features", getattr(head, "out_channels", None)) for head in found)
        return next((width for width in widths if isinstance(width, int)), self.width)

    def show_width(self, model: nn.Module) -> None:
        """Let ``model.num_classes`` tell the width of what the model returns, and without clones what it told before."""
        width, found = self.own_width(model), heads(model)
        if model.num_classes != self.shown or found != self._head:  # somebody exchanged the head
            self.own = width
        self.width, self._head = width, found
        self.shown = width + sum(len(member.labels) for member in self.active)
        as_classifier(model).num_classes = self.shown if self.members else self.own

    def begin(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
        """Root pre-hook: take the snapshot, and look at the images.

        torch leaves ``kwargs`` out when the hook is registered or removed, by another thread, while the pass begins.
        """
        self.start(key=calls.under_way(model))
        if not detour.is_installed(model):
            self.look("forward", args, kwargs or {})

    def start(
        self, members: Members | None = None, features: dict[str, Tensor] | None = None, key: int | None = None
    ) -> int | None:
        """Begin a pass, or go on with one that has read ``features``; returns what identifies it to ``finish``.

        The one before is kept for afterwards if it is under way: a hook may call the model.
        """
        state = self._pass.state
        outer = dict(state) if state and calls.lasts(state["key"]) and state["key"] != key else {}
        if members is None:
            snapshot = tuple((member, member._branch) for member in self.active)
            members = tuple((member, branch) for member, branch in snapshot if branch is not None)
        state.clear()
        state.update(members=members, features=dict(features or {}), key=key, outer=outer)
        return key

    def is_passing(self, model: nn.Module) -> bool:
        """Whether a call of the model itself, begun under the hooks of the root, is under way."""
        state = self._pass.state
        if not state or torch.compiler.is_compiling():
            return bool(state)
        return state["key"] is not None and state["key"] == calls.under_way(model)

    def look(self, step: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Check and capture the images that the model's method ``step`` is given."""
        images = args[0] if args else kwargs.get(self.image_names[step])
        if images is None:
            return
        if isinstance(images, Tensor):
            check_images(images, self.channels)
            for _, branch in self._pass.state.get("members", ()):
                branch.check_aspect(images)
        self.capture(INPUT, images)

    def capture(self, name: str, output: Any) -> None:
        """Called by the hook on the insertion point ``name``."""
        state = self._pass.state
        if any(member.insertion == name for member, _ in state.get("members", ())):
            if not isinstance(output, Tensor):
                raise TargetError(f"{name!r} gives {_shape(output)}, and a clone reads a tensor; detach the clone")
            state["features"][name] = output.clone()

    def finish(self, key: int | None) -> tuple[Members, dict[str, Tensor]]:
        """Who took part in the pass, and what was read; this thread keeps nothing of either. Nothing if it never began."""
        state = self._pass.state
        if not state or (None not in (state["key"], key) and state["key"] != key):
            return (), {}
        members, features, outer = state["members"], state["features"], state["outer"]
        state.clear()
        state.update(outer)
        return members, features

    def end(self, model: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Root hook: the target's own logits, then those of each clone. Also called when the forward pass fails."""
        members, features = self.finish(calls.under_way(model))
        return None if output is None or not members else self.extended(model, output, members, features)

    def forget_interrupted(self) -> None:
        """Let go of what an interrupt has left behind in this thread."""
        state = self._pass.state
        if state and not calls.lasts(state["key"]):
            state.clear()

    def extended(self, model: nn.Module, output: Any, members: Members, features: dict[str, Tensor]) -> Tensor:
        """``output`` [B, T] of the model with the logits of each clone behind: [B, T + K]."""
        if not isinstance(output, Tensor) or output.dim() != 2:
            raise TargetError(
                f"{type(model).__name__} returned {_shape(output)}, and a clone extends logits [B, classes]; detach the"
                " clone, or call the model so that it returns its logits (model.eval() for models with two heads)"
            )
        if model.num_classes != self.shown or output.shape[1] != self.width:  # somebody exchanged the head
            self._follow(model, output.shape[1])
        columns = [output]
        for member, branch in members:
            if member.insertion in features:
                columns.append(branch(features[member.insertion], output))
                member.fired = True  # not looked at first: torch.compile would guard on it
            elif member in self.members:  # or else it was detached meanwhile
                raise TargetError(
                    f"{type(model).__name__} ran past {member.insertion!r} without its hooks, so {member!r} has no logits:"
                    " the module was replaced, or it was compiled before the clone was attached. Attach the clone again,"
                    " or call torch.compiler.reset()"
                )
        return torch.cat(columns, 1)

    def _follow(self, model: nn.Module, width: int) -> None:
        """The head was exchanged for one that is as wide as what the model returned."""
        if self.own_width(model) <= 0:
            raise NoClassifierError(
                f"{type(model).__name__} was left without a classifier (num_classes={model.num_classes}) while a clone was"
                " attached, so there are no logits to extend; detach the clone, or reset the classifier to some classes"
            )
        self.show_width(model)
        self.width = width
        self.shown = as_classifier(model).num_classes = width + sum(len(member.labels) for member in self.active)


class Capture(nn.Module):
    """The hook on one insertion point."""

    patch: Patch
    module: nn.Module

    def __init__(self, patch: Patch, name: str, module: nn.Module) -> None:
        """Hands the outputs of ``module``, which is called ``name``, to ``patch``."""
        super().__init__()
        self.__dict__.update(patch=patch, module=module)  # no submodules: neither is part of the hook
        self.name = name

    def hook(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
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
    for name in sorted(points - {INPUT} - {capture.name for capture in patch.captures}):
        capture = Capture(patch, name, modules[name])
        patch.captures = (*patch.captures, capture)
        modules[name].register_forward_hook(capture.hook)
    if patch_of(model) is None:
        model.register_forward_pre_hook(patch.begin, with_kwargs=True)
        detour.install(model, patch)


def uninstall(model: nn.Module, patch: Patch, keep: set[str]) -> None:
    """Remove the captures of points not in ``keep``, and everything when no clone is left; other hooks stay."""
    for capture in patch.captures:
        if capture.name not in keep:
            _drop(capture.module, capture)
    patch.captures = tuple(capture for capture in patch.captures if capture.name in keep)
    if not patch.members:
        detour.uninstall(model, patch)
        _drop(model, patch)


def check_images(images: Tensor, channels: int) -> None:
    """Raise ``ImageError`` unless ``images`` are floats [B, channels, H, W]."""
    if not images.is_floating_point():
        raise ImageError(f"images must be normalised floats, {_found(images)}")
    if images.dim() != 4 or images.shape[1] != channels:
        raise ImageError(f"images must be [B, {channels}, height, width], {_found(images)}")


def _found(images: Tensor) -> str:
    kind = str(images.dtype).removeprefix("torch.")
    return f"found {_shape(images)} of {kind}; apply the model's timm transform first"


def _first_argument(model: nn.Module, step: str) -> str:
    """What the images are called when they are passed by name."""
    names = list(inspect.signature(getattr(type(model), step, type(model).forward)).parameters)
    return names[1] if len(names) > 1 else ""


def _drop(module: nn.Module, owner: nn.Module) -> None:
    """Remove the hooks on ``module`` that are methods of ``owner``."""
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        for key in [key for key, hook in hooks.items() if getattr(hook, "__self__", None) is owner]:
            for table in _TABLES:
                getattr(module, table, {}).pop(key, None)


def _shape(value: Any) -> str:
    return str(list(value.shape)) if isinstance(value, Tensor) else f"a {type(value).__name__}"
