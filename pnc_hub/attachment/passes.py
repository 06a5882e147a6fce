"""One forward pass: the clones that take part, what is asked of its images, and the features that they read."""

from __future__ import annotations

import threading
from typing import Any, Protocol

from torch import Tensor

from pnc_hub.errors import ImageError, TargetError
from pnc_hub.models.insertion import INPUT, InsertionPoint

Size = tuple[int, int, int]  # (C, H, W) of a model's images


class Member(Protocol):
    """What reads a model and adds columns to its output, as a clone does.

    Attributes:
        labels: names of the columns.
        insertion: where it reads the model.
    """

    labels: tuple[str, ...]
    insertion: InsertionPoint

    def __call__(self, feature: Tensor, target_logits: Tensor) -> Tensor:
        """Logits [B, K] of the feature at its insertion point, given the model's own logits [B, T]."""


Members = tuple[Member, ...]


class Pass:
    """A forward pass.

    Attributes:
        members: who takes part; that does not change.
        features: copies of what was read, by insertion point.
        in_step: whether one of the model's two steps is under way. One that is called meanwhile is somebody else's, such as
            a hook's, and no part of this pass.
    """

    def __init__(self, members: Members, in_step: bool = False) -> None:
        self.members, self.in_step = members, in_step
        self.features: dict[str, Tensor] = {}

    def begin(self, images: Any, size: Size) -> None:
        """Check the images that a model for images of ``size`` gets, and keep them for members that read the input."""
        if isinstance(images, Tensor):
            check_images(images, size[0])
            for member in self.members:
                _check_proportions(images, member.insertion, size)
        if images is not None:
            self.keep(INPUT, images)

    def keep(self, name: str, output: Any) -> None:
        """Copy what passes the insertion point ``name``, if a member reads there: a later layer may overwrite it in place."""
        if any(member.insertion.name == name for member in self.members):
            if not isinstance(output, Tensor):
                raise TargetError(f"{name!r} gives {shape(output)}, and a clone reads a tensor; detach the clone")
            self.features[name] = output.clone()


class ThisThread(threading.local):
    """The pass that a thread is in, as an item of a dictionary: torch.compile loses changes to attributes of this."""

    def __init__(self) -> None:
        self.state: dict[str, Pass | None] = {"pass": None}


def check_images(images: Tensor, channels: int) -> None:
    """Raise ``ImageError`` unless ``images`` are floats [B, channels, H, W]: a clone would answer others too, wrongly."""
    if not images.is_floating_point():
        raise ImageError(f"images must be normalised floats, {_found(images)}")
    if images.dim() != 4 or images.shape[1] != channels:
        raise ImageError(f"images must be [B, {channels}, height, width], {_found(images)}")


def shape(value: Any) -> str:
    """The shape of a tensor, or what it is instead."""
    return str(list(value.shape)) if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _found(images: Tensor) -> str:
    kind = str(images.dtype).removeprefix("torch.")
    return f"found {shape(images)} of {kind}; apply the model's timm transform first"


def _check_proportions(images: Tensor, insertion: InsertionPoint, size: Size) -> None:
    """Tokens do not tell how they are arranged: that is known only for images of the proportions of ``size``."""
    _, height, width = size
    if insertion.layout == "NLC" and images.shape[2] * width != images.shape[3] * height:
        raise ImageError(
            f"the clone reads tokens of images {height} high and {width} wide, or of others of these proportions, found"
            f" {images.shape[2]} high and {images.shape[3]} wide; crop them, or attach the clone at the input"
        )
