"""Stand-ins for ``forward_features`` and ``forward_head``: a model that is run in these two steps hears its clones too.

``forward`` of every classifier in timm calls both. In a call of the model they leave the clones to the hooks of the root;
run by themselves (``model.forward(x)`` does that as well) they do what those can not. They have a second use: torch.compile
guards on the methods that an instance overrides, so a graph compiled before the clone came is not used while it is attached,
and is used again when it has gone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from pnc_hub.attachment import calls
from pnc_hub.errors import TargetError

if TYPE_CHECKING:
    from pnc_hub.attachment import Attachment
    from pnc_hub.attachment.patch import Patch


# In the order in which they are replaced: a pass under way has no use for the second without the first.
STEPS = ("forward_head", "forward_features")


class Detour:
    """Both stand-ins of one model. What they replace on the instance itself, if anything, they give back."""

    def __init__(self, patch: Patch, model: nn.Module) -> None:
        """Nothing is changed yet: ``install`` does that."""
        self.patch, self.model = patch, model
        self.replaced: dict[str, Callable[..., Any]] = {}
        self._between = WeakTensorKeyDictionary()  # features on their way from one step to the other

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_between": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _between=WeakTensorKeyDictionary())

    def forward_features(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own, and what the clones read meanwhile is kept for as long as its result lives."""
        patch, by_model = self.patch, calls.is_by(self.model)
        if by_model and patch.is_passing(self.model):
            patch.look("forward_features", args, kwargs)
            return self._run("forward_features", args, kwargs)
        key = patch.start(key=calls.here())
        try:
            patch.look("forward_features", args, kwargs)
            output = self._run("forward_features", args, kwargs)
        finally:
            members, read = patch.finish(key)
        tensor = _first_tensor(output)
        if members and tensor is not None:
            self._between[tensor] = members, read, by_model
        return output

    def forward_head(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own logits, then those of the clones that took part in ``forward_features``."""
        patch, by_model = self.patch, calls.is_by(self.model)
        if (by_model and patch.is_passing(self.model)) or not patch.active:
            return self._run("forward_head", args, kwargs)
        given = _first_tensor(args[0] if args else kwargs.get(patch.image_names["forward_head"]))
        members, read, _ = (self._between.get(given) if given is not None else None) or (None, {}, False)
        key = patch.start(members, read, calls.here())
        try:
            output = self._run("forward_head", args, kwargs)
        finally:
            _, read = patch.finish(key)
        if kwargs.get("pre_logits") or (len(args) > 1 and args[1]):
            return output
        if members is None and by_model and calls.under_way(self.model):  # the call began before there were hooks
            return output
        # the model's own forward ends in the state that it began in; somebody who runs the steps may have changed it
        if members is None or not (by_model or tuple(member for member, _ in members) == patch.active):
            raise TargetError(
                f"forward_head of this {type(self.model).__name__} got features that its forward_features did not return"
                " with the clones that are attached now, so there is something missing to read: run forward_features"
                " again and give it the very tensor that it returns, or call the model itself"
            )
        return patch.extended(self.model, output, members, read)

    def forget(self, attachment: Attachment) -> None:
        """Let go of what ``attachment`` read between two steps that somebody runs."""
        for tensor, (members, _, by_model) in list(self._between.items()):
            if not by_model and any(member is attachment for member, _ in members):
                self._between.pop(tensor, None)

    def _run(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The model's own step. No bound method is made of it: torch.compile does not trace that."""
        if name in self.replaced:
            return self.replaced[name](*args, **kwargs)
        return getattr(type(self.model), name)(self.model, *args, **kwargs)


def install(model: nn.Module, patch: Patch) -> None:
    """Put both stand-ins on ``model``, if it has both steps."""
    if all(callable(getattr(model, step, None)) for step in STEPS):
        detour = Detour(patch, model)
        detour.replaced = {step: vars(model)[step] for step in STEPS if step in vars(model)}
        for step in STEPS:
            vars(model)[step] = getattr(detour, step)


def uninstall(model: nn.Module, patch: Patch) -> None:
    """Take them away; where somebody has put his own over them since, they stay below and pass everything on."""
    for step, detour in installed(model).items():
        if detour.patch is patch:
            del vars(model)[step]
            if step in detour.replaced:
                vars(model)[step] = detour.replaced[step]


def installed(model: nn.Module) -> dict[str, Detour]:
    """The stand-ins that ``model`` has, by the step that they stand for."""
    return {step: detour for step in STEPS if (detour := _at(model, step)) is not None}


def is_installed(model: nn.Module) -> bool:
    """Whether a call of ``model`` comes by ``forward_features``'s stand-in."""
    return _at(model, "forward_features") is not None


def overrides(module: nn.Module) -> dict[str, Any]:
    """What stands on the instance of a module only to look on: attribute -> what it replaced there, if anything.

    That is ours, and accelerate's, which moves weights in before ``forward`` and out after it.
    """
    found = {step: detour.replaced.get(step) for step, detour in installed(module).items()}
    if "_hf_hook" in vars(module):
        found.update({name: None for name in ("_hf_hook", "_old_forward", "forward") if name in vars(module)})
    return found


def _at(model: nn.Module, step: str) -> Detour | None:
    owner = getattr(vars(model).get(step), "__self__", None)
    return owner if isinstance(owner, Detour) else None


def _first_tensor(value: Any) -> Tensor | None:
    """``value``, or the first tensor in it: some models hand several from one step to the other."""
    if isinstance(value, (tuple, list)):
        return next((item for item in map(_first_tensor, value) if item is not None), None)
    return value if isinstance(value, Tensor) else None
