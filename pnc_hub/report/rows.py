"""Measurements as rows of a table: what each is called, and how its value is written."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

ROWS = (
    ("insertion", "read from the target at", "text"),
    ("cut", "source cut after", "text"),
    ("target_alone", "target alone, its own classes", "percent"),
    ("ori", "with the clone, the target's classes (Ori)", "percent"),
    ("source_alone", "source alone, among the cloned classes", "percent"),
    ("source_alone_among_all", "source alone, among all its classes", "percent"),
    ("tar", "with the clone, the cloned classes (Tar)", "percent"),
    ("avg", "both, weighted by numbers of classes (Avg)", "percent"),
    ("diverted", "target images diverted to the clone", "percent"),
    ("missed", "images of cloned classes left to the target", "percent"),
    ("auroc", "gate AUROC", "number"),
    ("kl", "change of the target's answers (KL, nats)", "number"),
    ("ece", "calibration error of the joint answer (ECE)", "number"),
    ("kept_parameters", "parameters added", "count"),
    ("source_parameters", "parameters of the source", "count"),
    ("bytes", "bytes (module, adapter and gate)", "count"),
    ("macs", "multiply-accumulates added per image", "count"),
    ("trunk_bytes", "bytes of the source's first layers", "count"),
    ("seconds", "seconds to learn", "number"),
)
PORTED_ROWS = (
    ("insertion", "read from the target at", "text"),
    ("target_alone", "target alone, its own classes", "percent"),
    ("ori", "with the clone, the target's classes (Ori)", "percent"),
    ("agreement", "cloned classes, answered as the source does", "percent"),
    ("agreement_among_cloned", "the same, no matter what the gate says", "percent"),
    ("match", "variance of the source's logits reproduced", "percent"),
    ("diverted", "other images diverted to the clone", "percent"),
    ("auroc", "gate AUROC", "number"),
    ("adapter_bytes", "bytes of the adapter and gate", "count"),
    ("macs", "multiply-accumulates added per image", "count"),
    ("seconds", "seconds to port", "number"),
)


def number(metrics: Mapping[str, Any], name: str) -> float | None:
    """The metric of that name if it is a number."""
    value = metrics.get(name)
    return value if isinstance(value, (int, float)) and math.isfinite(value) else None


def others(metrics: Mapping[str, Any]) -> str:
    """What images of no cloned class show: "old" classes, those of the target, or in regime R2 "other" ones of the source.

    Example:
        >>> others({"regime": "R2"}), others({"regime": "R4"})
        ('other', 'old')
    """
    return "other" if metrics.get("regime") == "R2" else "old"


def rows_of(metrics: Mapping[str, Any], rows: tuple[tuple[str, str, str], ...] = ROWS) -> list[tuple[str, str, str]]:
    """(name, text, kind) of ``rows`` as they are to be called for ``metrics``: in regime R2 no image of the target was seen."""
    renamed = {"diverted": "images of other classes diverted to clone"} if others(metrics) == "other" else {}
    return [(name, renamed.get(name, text), kind) for name, text, kind in rows]


def written(metrics: Mapping[str, Any], rows: tuple[tuple[str, str, str], ...]) -> list[tuple[str, str]]:
    """What each of ``rows`` is called for ``metrics``, and its value as text."""
    return [(text, shown(metrics.get(name), kind)) for name, text, kind in rows_of(metrics, rows)]


def listed(title: str, rows: Iterable[tuple[str, Any]]) -> str:
    """A title, and below it a table of two columns as text.

    Example:
        >>> print(listed("ResNet", [("cut", "layer3")]))
        ResNet
          cut                                         layer3
    """
    return "\n".join([title, *(f"  {text:<44}{value}" for text, value in rows)])


def classes(count: int) -> str:
    """So many of them.

    Example:
        >>> classes(1), classes(2)
        ('1 class', '2 classes')
    """
    return f"{count:,} class{'es' if count != 1 else ''}"


def shown(value: Any, kind: str) -> str:
    """A measurement as text; ``kind`` is that of its row in ``ROWS``."""
    if value is None:
        return "not measured"
    if kind == "text" or isinstance(value, str):
        return str(value)
    if kind == "percent":
        return f"{100 * value:.1f} %"
    if kind == "count":
        return f"{value:,}"
    return f"{value:.3f}"
