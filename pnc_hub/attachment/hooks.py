"""How clones take part in a running model: stand-ins for three of its methods, and a hook on each module that clones read.

A pass of the model is a call of the stand-in for ``forward``. It begins with a snapshot of the clones that take part, so that
attaching or detaching meanwhile, from another thread, never mixes two states in one answer; however it ends, ``finally`` says
so. Features are copied when they appear, and turned into logits when the pass ends, because gradient checkpointing repeats
what happens in between.

A model that is run in its two steps, ``forward_head(forward_features(x))``, answers with its clones as well. ``forward`` of
every classifier in timm calls both, and within a pass they are a part of it. The stand-ins for the steps also answer when
somebody restores the model's own ``forward``, as accelerate does when it takes its own stand-in away.
"""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakTensorKeyDictionary

from pnc_hub.attachment.passes import Member, Members, Pass, Size, ThisThread, shape
from pnc_hub.attachment.standin import ATTRIBUTE, StandIn
from pnc_hub.attachment.width import Width
from pnc_hub.errors import TargetError
from pnc_hub.models.insertion import INPUT

# In the order in which they are replaced: a call under way that has passed the last has no use for those before it.
METHODS = ("forward_head", "forward_features", "forward")
_CALL = nn.Module._call_impl.__code__
_LOCK = threading.RLock()
_NUMBERS = count()

Args = tuple[Any, ...]
Kwargs = dict[str, Any]


def add(model: nn.Module, member: Member, size: Size) -> None:
    """Let ``member`` take part in ``model``, whose images are of ``size`` (C, H, W)."""
    with _LOCK:
        (hooks_of(model) or Hooks(model, size)).add(member)


def hooks_of(model: nn.Module) -> Hooks | None:
    """The hooks on ``model``, or None."""
    hooks = vars(model).get(ATTRIBUTE)
    return hooks if isinstance(hooks, Hooks) else None


class Hooks:
    """All hooks on one model. They are an attribute of the model, so a copy of that gets a copy of the clones."""

    def __init__(self, model: nn.Module, size: Size) -> None:
        """Nothing is changed yet: ``add`` does that."""
        self.model, self.size, self.width = model, size, Width(model)
        self.members: Members = ()
        self.muted: Members = ()  # those that are disabled, as often as they are
        self.number = next(_NUMBERS)  # the same in copies
        self.replaced: dict[str, Callable[..., Any]] = {}  # methods that somebody had put on the instance
        self._readers: dict[str, RemovableHandle] = {}  # by insertion point
        self._image_names = {method: _first_argument(model, method) for method in METHODS}
        # the pass that each thread is in, and those that wait between the two steps, by what the first returned
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
        start = self.width.alone(self.model)
        for other in self.active:
            if other is member:
                return slice(start, start + len(member.labels))
            start += len(other.labels)
        return None

    # Members come and go.

    def add(self, member: Member) -> None:
        """Let ``member`` take part from the model's next pass on: whole or not at all."""
        name = member.insertion.name
        with _LOCK:
            try:
                if name != INPUT and name not in self._readers:
                    table = self.model.get_submodule(name)._forward_hooks
                    # kept before the hook is in place: an interrupt between the two leaves none behind
                    handle = self._readers[name] = RemovableHandle(table)
                    table[handle.id] = partial(_read, self, name)
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
            for features, waiting in list(self._between.items()):
                if member in waiting.members:
                    self._between.pop(features, None)
            for name in self._readers.keys() - {other.insertion.name for other in self.members}:
                self._readers.pop(name).remove()
            if not self.members:
                self._uninstall()
            self._show_width()

    @contextmanager
    def without(self, member: Member) -> Iterator[None]:
        """Leave ``member`` out of the passes that begin within the block; such blocks may overlap."""
        with _LOCK:
            self.muted = (*self.muted, member)
            self._show_width()
        try:
            yield
        finally:
            with _LOCK:
                at = self.muted.index(member)
                self.muted = (*self.muted[:at], *self.muted[at + 1 :])
                if self.members:
                    self._show_width()

    def _show_width(self) -> None:
        """Let ``model.num_classes`` say how many columns the model returns."""
        self.width.show(self.model, sum(len(member.labels) for member in self.active) if self.members else None)

    def _install(self) -> None:
        attributes = vars(self.model)
        attributes[ATTRIBUTE] = self
        has_steps = all(callable(getattr(self.model, step, None)) for step in METHODS[:2])
        for method in METHODS if has_steps else METHODS[2:]:
            if method in attributes:
                self.replaced[method] = attributes[method]
            attributes[method] = StandIn(self, method)

    def _uninstall(self) -> None:
        """A stand-in that somebody has wrapped since stays under the wrapper as the method that it stood for."""
        attributes = vars(self.model)
        for name, value in list(attributes.items()):
            if isinstance(value, StandIn) and value.owner is self:
                attributes[name] = value.__wrapped__
                if name == value.method and name not in self.replaced:
                    del attributes[name]
        if attributes.get(ATTRIBUTE) is self:
            del attributes[ATTRIBUTE]

    # The model runs.

    def call(self, method: str, args: Args, kwargs: Kwargs) -> Any:
        """What a stand-in does when it is called."""
        outer = self._thread.state["pass"]
        if method == "forward":
            return self._forward(args, kwargs)
        if outer is None or outer.in_step:
            step = self._forward_features if method == "forward_features" else self._forward_head
            return step(args, kwargs)
        outer.in_step = True  # forward has called its step: that is a part of its pass
        try:
            return self._run(method, args, kwargs)
        finally:
            outer.in_step = False

    def _forward(self, args: Args, kwargs: Kwargs) -> Any:
        """The model's logits [B, T], then those of each clone: [B, T + K]."""
        current = Pass(self.active)
        return self._extended(self._run_in(current, "forward", args, kwargs), current)

    def _forward_features(self, args: Args, kwargs: Kwargs) -> Any:
        """What the model returns; what the clones have read is kept for ``forward_head`` for as long as that lives."""
        current = Pass(self.active, in_step=True)
        output = self._run_in(current, "forward_features", args, kwargs)
        tensor = _first_tensor(output)
        if current.members and tensor is not None:
            self._between[tensor] = current
        return output

    def _forward_head(self, args: Args, kwargs: Kwargs) -> Any:
        """The model's logits, then those of the clones that took part in ``forward_features``."""
        tensor = _first_tensor(args[0] if args else kwargs.get(self._image_names["forward_head"]))
        before = self._between.get(tensor) if tensor is not None else None
        current = Pass(before.members if before else (), in_step=True)
        current.features.update(before.features if before else {})
        output = self._run_in(current, "forward_head", args, kwargs)
        members = self.active
        if not members or kwargs.get("pre_logits") or (len(args) > 1 and args[1]):
            return output
        if before is None and self._is_within_forward():  # of a call that began before there were clones
            return output
        if current.members != members:
            raise TargetError(
                f"forward_head of this {type(self.model).__name__} got features that its forward_features did not return"
                " with the clones that are attached now, so there is something missing to read: run forward_features"
                " again and give it the very tensor that it returns, or call the model itself"
            )
        return self._extended(output, current)

    def _run_in(self, current: Pass, method: str, args: Args, kwargs: Kwargs) -> Any:
        """The model's method as the pass ``current``. However it ends, the thread is in the pass that it was in before."""
        outer, self._thread.state["pass"] = self._thread.state["pass"], current
        try:
            if current.members and method != "forward_head":
                current.begin(args[0] if args else kwargs.get(self._image_names[method]), self.size)
            return self._run(method, args, kwargs)
        finally:
            self._thread.state["pass"] = outer

    def _run(self, method: str, args: Args, kwargs: Kwargs) -> Any:
        """The model's method. No bound method is made of it: torch.compile does not trace that."""
        if method in self.replaced:
            return self.replaced[method](*args, **kwargs)
        return getattr(type(self.model), method)(self.model, *args, **kwargs)

    def _extended(self, output: Any, current: Pass) -> Any:
        """``output`` [B, T] of the model with the logits of each clone behind: [B, T + K]."""
        kind, features = type(self.model).__name__, current.features
        members = [member for member in current.members if member.insertion.name in features or member in self.members]
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
            if name not in features:
                raise TargetError(
                    f"{kind} ran past {name!r} without its hooks, so {member!r} has no logits: the module was replaced, or"
                    " it was compiled before the clone was attached. Attach the clone again, or call"
                    " torch.compiler.reset()"
                )
            columns.append(member(features[name], output))
        return torch.cat(columns, 1)

    def _is_within_forward(self) -> bool:
        """Whether the caller is the model's ``forward``, and not somebody who runs its steps."""
        frame = None if torch.compiler.is_compiling() else sys._getframe(1)
        while frame is not None and frame.f_code is not _CALL:
            if frame.f_code.co_name == "forward" and frame.f_locals.get("self") is self.model:
                return True
            frame = frame.f_back
        return False


def _read(hooks: Hooks, name: str, _module: nn.Module, _args: Args, output: Any) -> None:
    """The forward hook on the insertion point ``name``; a partial function, so that copies read for their own clones."""
    current = hooks._thread.state["pass"]
    if current is not None:
        current.keep(name, output)


def _first_argument(model: nn.Module, method: str) -> str:
    """What the images are called when they are passed by name."""
    names = list(inspect.signature(getattr(type(model), method, type(model).forward)).parameters)
    return names[1] if len(names) > 1 else ""


def _first_tensor(value: Any) -> Tensor | None:
    """``value``, or the first tensor in it: some models hand several from one step to the other."""
    if isinstance(value, (tuple, list)):
        return next((item for item in map(_first_tensor, value) if item is not None), None)
    return value if isinstance(value, Tensor) else None
