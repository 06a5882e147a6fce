"""Which calls of a model are under way in this thread: what its hooks are not told.

Hooks may be left out (an interrupt), called for a call that they did not see begin (an earlier hook failed), or find
themselves in a call within a call (a hook that asks the model). A frame of ``nn.Module``'s own call tells them apart.
torch.compile can not look at frames; what it compiles runs from beginning to end, so there the answer is the obvious one.
"""

from __future__ import annotations

import sys
from types import FrameType

import torch
from torch import nn

_CALL = nn.Module._call_impl.__code__


def here() -> int | None:
    """Identity of the caller, while it runs; None if it is being compiled."""
    return None if torch.compiler.is_compiling() else id(sys._getframe(1))


def under_way(model: nn.Module) -> int | None:
    """Identity of the call of ``model`` that the caller is directly in, not in one of a layer; None while compiling."""
    if torch.compiler.is_compiling():
        return None
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not _CALL:
        frame = frame.f_back
    return id(frame) if frame is not None and frame.f_locals.get("self") is model else None


def lasts(key: int | None) -> bool:
    """Whether what ``key`` identifies is still under way."""
    if torch.compiler.is_compiling():
        return True
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and id(frame) != key:
        frame = frame.f_back
    return frame is not None


def is_by(model: nn.Module) -> bool:
    """Whether the caller's caller is code of ``model`` itself, such as its ``forward``, and not a hook or somebody else."""
    if torch.compiler.is_compiling():
        return True
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code.co_filename != _CALL.co_filename:
        if frame.f_locals.get("self") is model:
            return True
        frame = frame.f_back
    return False
