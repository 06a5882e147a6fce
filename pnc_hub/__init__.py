"""Partial network cloning: clone what a classifier knows about some classes and attach it to another one."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pnc_hub._version import __version__ as __version__

if TYPE_CHECKING:
    from pnc_hub import errors
    from pnc_hub.attachment import Attachment, attach, attachments, detach
    from pnc_hub.attachment.check import Compatibility, check
    from pnc_hub.cloning.learn import clone
    from pnc_hub.cloning.port import port
    from pnc_hub.hub import lock
    from pnc_hub.hub.clone import Clone
    from pnc_hub.hub.search import CloneInfo, search
    from pnc_hub.models.insertion import InsertionPoint
    from pnc_hub.models.skeleton import insertion_points

_HOME = {
    "Attachment": "attachment",
    "Clone": "hub.clone",
    "CloneInfo": "hub.search",
    "Compatibility": "attachment.check",
    "InsertionPoint": "models.insertion",
    "attach": "attachment",
    "attachments": "attachment",
    "check": "attachment.check",
    "clone": "cloning.learn",
    "detach": "attachment",
    "errors": "errors",
    "insertion_points": "models.skeleton",
    "lock": "hub.lock",
    "port": "cloning.port",
    "search": "hub.search",
}
_MODULES = ("errors", "lock")

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
    home = importlib.import_module(f"pnc_hub.{_HOME[name]}")
    value = home if name in _MODULES else getattr(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
