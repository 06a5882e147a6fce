"""``attach`` and ``detach``: clones joined to a running model, and taken out again without a trace."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pnc_hub.attachment import hooks
from pnc_hub.attachment.joined import JoinedClone
from pnc_hub.attachment.plan import Target, unwrapped
from pnc_hub.errors import TargetError
from pnc_hub.hub.clone import Clone, open_clone
from pnc_hub.hub.lock import Lock


class Attachment:
    """A clone joined to one model. A context manager: leaving it detaches the clone.

    Attributes:
        labels: names of the cloned classes, in the order of their logits.
        insertion: the target module that it reads (``"input"`` for the image itself).
        revision: the commit that it was read at, when it came from the Hub: what to pin.
    """

    def __init__(self, model: nn.Module, joined: JoinedClone) -> None:
        self.labels, self.insertion, self.revision = joined.labels, joined.insertion.name, joined.clone.revision
        self._model: Callable[[], nn.Module | None] = weakref.ref(model)
        self._joined: JoinedClone | None = joined
        self._fired = False
        joined.attachment = self

    def __repr__(self) -> str:
        if self.clone is None:
            return f"Attachment(detached, {', '.join(self.labels)})"
        return f"Attachment({', '.join(self.labels)} at {self.insertion!r}, {self.clone!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_model": self._model()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy belongs to the copy of its model that is made with it."""
        model = state["_model"]
        self.__dict__.update(state, _model=_nowhere if model is None else weakref.ref(model))

    def __enter__(self) -> Attachment:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    @property
    def clone(self) -> Clone | None:
        """The clone; None once it has been detached."""
        return self._joined.clone if self._joined is not None else None

    @property
    def fired(self) -> bool:
        """Whether a forward pass has used the clone since it was attached."""
        return self._joined.fired if self._joined is not None else self._fired

    @property
    def enabled(self) -> bool:
        """Whether it is in no block of ``disabled``."""
        return self._hooks is None or self._joined not in self._hooks.muted

    @property
    def logit_slice(self) -> slice:
        """Where this clone's logits are in the model's output at present.

        Raises:
            TargetError: the clone is detached or disabled, so there are none.
        """
        on_model, joined = self._hooks, self._joined
        columns = on_model.columns(joined) if on_model is not None and joined is not None else None
        if columns is None:
            raise TargetError(f"{self!r} has no logits now: it is {'disabled' if joined else 'detached'}")
        return columns

    def detach(self) -> None:
        """Take the clone out. In any order, twice, or after an exception: the model is what it was."""
        joined = self._joined
        if joined is not None:
            if self._hooks is not None:
                self._hooks.remove(joined)
            self._fired, self._joined = joined.fired, None

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Within the block the model answers as if this clone were not attached."""
        joined, on_model = self._joined, self._hooks
        with on_model.without(joined) if on_model is not None and joined is not None else nullcontext():
            yield

    def verify(self, callable: Callable[[Tensor], Tensor] | None = None) -> float:
        """Check that target and clone answer the probe as recorded, and that the clone answers where the model is run.

        Args:
            callable: how the model is run, if not by calling it: a compiled or wrapped version of it. It gets one image, in
                the grad mode in which ``verify`` is called; graphs compiled for other shapes or modes are not looked at.

        Returns:
            The largest absolute difference from the probe's expected logits.

        Raises:
            ProbeError: beyond the artifact's tolerance, or the output does not carry the clone's logits.
            TargetError: the model is in training mode (running it would change its statistics), or the clone is detached
                or disabled.
        """
        model, joined, columns = self._model(), self._joined, self.logit_slice
        if model is None or joined is None:
            raise TargetError(f"the model of {self!r} is gone; attach the clone again to verify it")
        if any(module.training for module in model.modules()):
            raise TargetError("the model is in training mode; call model.eval() before verifying a clone")
        return joined.verify(model, columns.stop, model if callable is None else callable)

    def parameters(self) -> Iterator[nn.Parameter]:
        """The clone's own parameters, for an optimizer. The model's are not among them, nor these among the model's.

        Raises:
            TargetError: the clone is frozen, or detached.
        """
        return self._trainable("parameters to train").parameters()

    def learned(self) -> Clone:
        """A clone with the weights as training has left them, to be saved or attached elsewhere.

        What was measured of the clone before is not carried over.

        Raises:
            TargetError: the clone is frozen, or detached.
        """
        return self._trainable("trained weights").learned()

    @property
    def _hooks(self) -> hooks.Hooks | None:
        model = self._model()
        return None if model is None else hooks.hooks_of(model)

    def _trainable(self, what: str) -> JoinedClone:
        joined = self._joined
        if joined is None or not joined.trainable:
            state = "detached" if joined is None else "frozen"
            raise TargetError(f"{self!r} has no {what}: it is {state}; attach it with trainable=True")
        return joined


def _nowhere() -> None:
    """What a dead weak reference returns."""


def attach(
    model: nn.Module,
    clone: str | Path | Clone,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    on_mismatch: str = "error",
    on_collision: str = "error",
    trainable: bool = False,
    lock: Lock | None = None,
) -> Attachment:
    """Join a clone to ``model``: its output gets one more logit per cloned class.

    With T classes of its own, ``model(images)`` [B, C, H, W] then returns [B, T + K]; the first T columns are the model's
    own logits bit for bit, and the K new ones follow the gated fusion of ``pnc_hub.fusion``. Several clones can be joined
    at once. ``detach`` leaves the model as it was.

    Args:
        model: a timm classifier, plain, compiled or in ``DistributedDataParallel``. It may be in use by other threads.
        clone: ``"user/name"``, ``"user/name@revision"``, a local folder, or a ``Clone``.
        revision: branch, tag, pull request (``"refs/pr/1"``) or commit sha on the Hub.
        token: Hub token.
        cache_dir: the Hub client's cache.
        local_files_only: do not ask the Hub.
        force_download: fetch again what is in the cache.
        on_mismatch: ``"error"``, or ``"warn"`` to use an adapter that was made for other weights of this architecture.
        on_collision: ``"error"``, or ``"allow"`` to add a class whose name the model already has.
        trainable: let the clone's own parameters take gradients (``Attachment.parameters``); it stays in eval mode and in
            float32, and the artifact is not changed.
        lock: a file that ``pnc_hub.lock.write`` wrote (``"pnc-hub.lock"``), or what it holds: the clone's commit and files
            must be those in it.

    Returns:
        The attachment, usable as a context manager.

    Raises:
        CloneNotFoundError: no such clone.
        ArtifactError: the clone's files cannot be used.
        LockError: the clone is not in the lock, or another one.
        FingerprintMismatchError: the clone was made for other targets and has no universal adapter.
        InsertionPointError: the model has no module of the recorded name and shape.
        ClassCollisionError: a cloned class has the name of one the model has.
        NoClassifierError: the model was built with ``num_classes=0``.
        TargetError: the model cannot take hooks as it is.

    Example:
        >>> import pnc_hub, timm, torch
        >>> model = timm.create_model("resnet18").eval()
        >>> with pnc_hub.attach(model, "user/clone-birds") as birds:  # doctest: +SKIP
        ...     logits = model(torch.randn(8, 3, 224, 224))
    """
    for name, value, allowed in (("on_mismatch", on_mismatch, "warn"), ("on_collision", on_collision, "allow")):
        if value not in ("error", allowed):
            raise ValueError(f"{name} is 'error' or {allowed!r}, received {value!r}")
    target = Target(model)
    if trainable and isinstance(model, DistributedDataParallel):
        raise TargetError(
            "DistributedDataParallel does not average the gradients of a clone; train it on the plain model, then wrap that"
        )
    clone = open_clone(
        clone,
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        force_download=force_download,
        lock=lock,
    )
    plan = target.plan(clone, on_mismatch=on_mismatch)
    if on_collision == "error":
        plan.refuse_collisions()
    for text in plan.warnings:
        warnings.warn(text, stacklevel=2)
    joined = JoinedClone(clone, plan, trainable)
    attachment = Attachment(plan.model, joined)
    hooks.add(plan.model, joined, plan.given.input_size)
    return attachment


def attachments(model: nn.Module) -> tuple[Attachment, ...]:
    """The clones that are joined to ``model``, in the order in which they were attached."""
    joined = hooks.hooks_of(unwrapped(model))
    return tuple(member.attachment for member in joined.members if isinstance(member, JoinedClone)) if joined else ()


def detach(model: nn.Module) -> None:
    """Take every clone out of ``model``."""
    for attachment in attachments(model):
        attachment.detach()
