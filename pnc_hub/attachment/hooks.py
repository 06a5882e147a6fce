"""How clones hear a running model: stand-ins for three of its methods, and a hook on each module that is read.

A pass of the model is a call of the stand-in for ``forward``. It begins with a snapshot of the clones that take part, so that
attaching or detaching meanwhile, from another thread, never mixes two states in one answer; however it ends, ``finally`` says
so. Features are copied when they appear, because a later layer may overwrite them in place, and turned into logits when the
pass ends, because gradient checkpointing repeats what happens in between.

A model that is run in its two steps, ``forward_head(forward_features(x))``, hears its clones as well. ``forward`` of every
classifier in timm calls both, and within a pass they are a part of it. So they also answer where somebody puts ``forward``
back to what it was before the clones came, as accelerate does when it takes its own stand-in away.
"""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Callable
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakTensorKeyDictionary

from pnc_hub.attachment.images import check_images, check_proportions, shape
from pnc_hub.attachment.passes import Member, Members, Pass, ThisThread
from pnc_hub.attachment.standin import ATTRIBUTE, StandIn
from pnc_hub.attachment.width import Width
from pnc_hub.errors import TargetError
from pnc_hub.models.insertion import INPUT

# In the order in which they are replaced: a call under way that has passed the last has no use for those before it.
METHODS = ("forward_head", "forward_features", "forward")
_CALL = nn.Module._call_impl.__code__
_LOCK = threading.RLock()
_NUMBERS = count()


class Hooks:
    """All that hears one model. It is an attribute of the model, so a copy of that gets a copy of the clones."""

    def __init__(self, model: nn.Module, size: tuple[int, int, int]) -> None:
        """For ``model``, whose images are of ``size`` (C, H, W). Nothing is changed yet: ``add`` does that."""
        self.model, self.size, self.width = model, size, Width(model)
        self.members: Members = ()
        self.muted: Members = ()  # those that are disabled, as often as they are
        self.number = next(_NUMBERS)  # the same in copies
        self._captures: dict[str, RemovableHandle] = {}
        self.replaced: dict[str, Callable[..., Any]] = {}  # what somebody had put on the instance
        self._image_names = {method: _first_argument(model, method) for method in METHODS}
        self._thread, self._between = ThisThread(), WeakTensorKeyDictionary()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_thread": None, "_between": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _thread=ThisThread(), _between=WeakTensorKeyDictionary())

    @property
    def active(self) -> Members:
        """The members that are not muted, in the order of their logits."""
        return tuple(member for member in self.members if member not in self.muted)

    def columns(self, member: Member) -> slice | None:
        """Where the logits of ``member`` are in what the model returns; None where it is not active."""
        start = self.width.own(self.model)
        for other in self.active:
            if other is member:
                return slice(start, start + len(member.labels))
            start += len(other.labels)
        return None

    def add(self, member: Member) -> None:
        """Let ``member`` hear the model from its next pass on: whole or not at all."""
        with _LOCK:
            try:
                self._capture(member.insertion.name)
                self.members = (*self.members, member)
                if hooks_of(self.model) is not self:
                    self._install()
                self._show_width()
            except BaseException:
                self.remove(member)
                raise

    def remove(self, member: Member) -> None:
        """Take ``member`` out; with the last one the model is what it was."""
        with _LOCK:
            self.members = tuple(other for other in self.members if other is not member)
            for features, before in list(self._between.items()):
                if member in before.members:
                    self._between.pop(features, None)
            for name in self._captures.keys() - {other.insertion.name for other in self.members}:
                self._captures.pop(name).remove()
            if not self.members:
                self._uninstall()
            self._show_width()

    def mute(self, member: Member) -> None:
        """Leave ``member`` out of the passes that begin now."""
        with _LOCK:
            self.muted = (*self.muted, member)
            self._show_width()

    def unmute(self, member: Member) -> None:
        """Take back one ``mute``."""
        with _LOCK:
            at = self.muted.index(member)
            self.muted = (*self.muted[:at], *self.muted[at + 1 :])
            if self.members:
                self._show_width()

    def _show_width(self) -> None:
        """Let ``model.num_classes`` tell how many columns the model returns now."""
        self.width.show(self.model, sum(len(member.labels) for member in self.active) if self.members else None)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own logits [B, T], then those of each clone: [B, T + K]."""
        now = Pass(self.active)
        return self._extended(self._run_in(now, "forward", args, kwargs), now)

    def forward_features(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own; what the clones have read is kept for ``forward_head`` while its result lives."""
        around = self._around
        if around is not None:
            return self._run_in_step(around, "forward_features", args, kwargs)
        now = Pass(self.active, in_step=True)
        output = self._run_in(now, "forward_features", args, kwargs)
        tensor = _first_tensor(output)
        if now.members and tensor is not None:
            self._between[tensor] = now
        return output

    def forward_head(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own logits, then those of the clones that heard ``forward_features``."""
        around = self._around
        if around is not None:
            return self._run_in_step(around, "forward_head", args, kwargs)
        tensor = _first_tensor(args[0] if args else kwargs.get(self._image_names["forward_head"]))
        before = self._between.get(tensor) if tensor is not None else None
        now = Pass(before.members if before else (), in_step=True)
        now.features.update(before.features if before else {})
        output = self._run_in(now, "forward_head", args, kwargs)
        members = self.active
        if not members or kwargs.get("pre_logits") or (len(args) > 1 and args[1]):
            return output
        if before is None and self._is_within_forward():  # of a call that began before there were clones
            return output
        if now.members != members:
            raise TargetError(
                f"forward_head of this {type(self.model).__name__} got features that its forward_features did not return"
                " with the clones that are attached now, so there is something missing to read: run forward_features"
                " again and give it the very tensor that it returns, or call the model itself"
            )
        return self._extended(output, now)

    def hear(self, name: str, output: Any) -> None:
        """Called with what passes the insertion point ``name``."""
        now = self._thread.now["pass"]
        if now is not None and any(member.insertion.name == name for member in now.members):
            if not isinstance(output, Tensor):
                raise TargetError(f"{name!r} gives {shape(output)}, and a clone reads a tensor; detach the clone")
            now.features[name] = output.clone()

    def _run(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The model's own method. No bound method is made of it: torch.compile does not trace that."""
        if method in self.replaced:
            return self.replaced[method](*args, **kwargs)
        return getattr(type(self.model), method)(self.model, *args, **kwargs)

    def _run_in(self, now: Pass, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The same as the pass ``now``. However it ends, the thread is in the pass that it was in before."""
        outer, self._thread.now["pass"] = self._thread.now["pass"], now
        try:
            if now.members and method != "forward_head":
                self._look(args[0] if args else kwargs.get(self._image_names[method]), now)
            return self._run(method, args, kwargs)
        finally:
            self._thread.now["pass"] = outer

    @property
    def _around(self) -> Pass | None:
        """The pass that a step which is called now is a part of."""
        now = self._thread.now["pass"]
        return None if now is None or now.in_step else now

    def _run_in_step(self, around: Pass, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The same as a step of the pass ``around``."""
        around.in_step = True
        try:
            return self._run(method, args, kwargs)
        finally:
            around.in_step = False

    def _look(self, images: Any, now: Pass) -> None:
        """Check the images, and let the clones at the input hear them."""
        if isinstance(images, Tensor):
            check_images(images, self.size[0])
            for member in now.members:
                check_proportions(images, member.insertion, self.size)
        if images is not None:
            self.hear(INPUT, images)

    def _extended(self, output: Any, now: Pass) -> Any:
        """``output`` [B, T] of the model with the logits of each clone behind: [B, T + K]."""
        kind = type(self.model).__name__
        members = [member for member in now.members if member.insertion.name in now.features or member in self.members]
        if not members or not self.members:  # gone meanwhile
            return output
        if not isinstance(output, Tensor) or output.dim() != 2:
            raise TargetError(
                f"{kind} returned {shape(output)}, and a clone extends logits [B, classes]; detach the clone, or call the"
                " model so that it returns its logits (model.eval() for models with two heads)"
            )
        self.width.follow(self.model, output.shape[1], sum(len(member.labels) for member in self.active))
        columns = [output]
        for member in members:
            name = member.insertion.name
            if name not in now.features:
                raise TargetError(
                    f"{kind} ran past {name!r} without its hooks, so {member!r} has no logits: the module was replaced, or"
                    " it was compiled before the clone was attached. Attach the clone again, or call"
                    " torch.compiler.reset()"
                )
            columns.append(member(now.features[name], output))
        return torch.cat(columns, 1)

    def _is_within_forward(self) -> bool:
        """Whether the caller is the model's own ``forward``, and not somebody who runs its steps."""
        frame = None if torch.compiler.is_compiling() else sys._getframe(1)
        while frame is not None and frame.f_code is not _CALL:
            if frame.f_code.co_name == "forward" and frame.f_locals.get("self") is self.model:
                return True
            frame = frame.f_back
        return False

    def _capture(self, name: str) -> None:
        if name != INPUT and name not in self._captures:
            hook = _Capture(self, name).hook
            self._captures[name] = self.model.get_submodule(name).register_forward_hook(hook)

    def _install(self) -> None:
        own = vars(self.model)
        own[ATTRIBUTE] = self
        steps = all(callable(getattr(self.model, step, None)) for step in METHODS[:2])
        for method in METHODS if steps else METHODS[2:]:
            if method in own:
                self.replaced[method] = own[method]
            own[method] = StandIn(self, method)

    def _uninstall(self) -> None:
        """Where somebody has put his own over a stand-in since, it stays below and passes everything on."""
        own = vars(self.model)
        for name, value in list(own.items()):
            if isinstance(value, StandIn) and value.owner is self:
                own[name] = value.__wrapped__
                if name == value.method and name not in self.replaced:
                    del own[name]
        if own.get(ATTRIBUTE) is self:
            del own[ATTRIBUTE]


class _Capture:
    """Its method is the hook on one insertion point."""

    def __init__(self, hooks: Hooks, name: str) -> None:
        self.hooks, self.name = hooks, name

    def hook(self, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        """Forward hook."""
        self.hooks.hear(self.name, output)


def hooks_of(model: nn.Module) -> Hooks | None:
    """What hears ``model``, or None."""
    hooks = vars(model).get(ATTRIBUTE)
    return hooks if isinstance(hooks, Hooks) else None


def add(model: nn.Module, member: Member, size: tuple[int, int, int]) -> None:
    """Let ``member`` hear ``model``, whose images are of ``size`` (C, H, W)."""
    with _LOCK:
        (hooks_of(model) or Hooks(model, size)).add(member)


def _first_argument(model: nn.Module, method: str) -> str:
    """What the images are called when they are passed by name."""
    names = list(inspect.signature(getattr(type(model), method, type(model).forward)).parameters)
    return names[1] if len(names) > 1 else ""


def _first_tensor(value: Any) -> Tensor | None:
    """``value``, or the first tensor in it: some models hand several from one step to the other."""
    if isinstance(value, (tuple, list)):
        return next((item for item in map(_first_tensor, value) if item is not None), None)
    return value if isinstance(value, Tensor) else None
