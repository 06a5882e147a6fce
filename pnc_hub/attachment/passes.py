"""One forward pass of one thread, and what hears it."""

from __future__ import annotations

import threading
from typing import Protocol

from torch import Tensor

from pnc_hub.models.insertion import InsertionPoint


class Member(Protocol):
    """What hears a model.

    Attributes:
        labels: names of the columns that it adds.
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
        """Nothing has been read yet."""
        self.members, self.in_step = members, in_step
        self.features: dict[str, Tensor] = {}


class ThisThread(threading.local):
    """The pass that a thread is in, as an item of a dictionary: torch.compile loses changes to attributes of this."""

    def __init__(self) -> None:
        self.now: dict[str, Pass | None] = {"pass": None}
