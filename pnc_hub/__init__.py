"""Partial network cloning: clone what a classifier knows about some classes and attach it to another one."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pnc_hub import errors, lock
    from pnc_hub.artifact import Clone
    from pnc_hub.attachment import Attachment, attach, attachments, detach
    from pnc_hub.catalogue import CloneInfo, search
    from pnc_hub.cloning import clone
    from pnc_hub.cloning.port import port
    from pnc_hub.compatibility import Compatibility, check
    from pnc_hub.points import InsertionPoint, insertion_points

__version__ = "0.1.0.dev0"

_HOME = {
    "Attachment": "attachment",
    "Clone": "artifact",
    "CloneInfo": "catalogue",
    "Compatibility": "compatibility",
    "InsertionPoint": "points",
    "attach": "attachment",
    "attachments": "attachment",
    "check": "compatibility",
    "clone": "cloning",
    "detach": "attachment",
    "errors": "errors",
    "insertion_points": "points",
    "lock": "lock",
    "port": "cloning.port",
    "search": "catalogue",
}

__all__ = [
    "Attachment",
    "Clone",
    "CloneInfo",
    "Compatibility",
    "InsertionPoint",
    "attach",
    "attachments",
    "check",
    "clone",
    "detach",
    "errors",
    "insertion_points",
    "lock",
    "port",
    "search",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that ``import pnc_hub`` costs nothing beside torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'pnc_hub' has no attribute {name!r}")
    module = importlib.import_module(f"pnc_hub.{_HOME[name]}")
    value = module if name == _HOME[name] else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
