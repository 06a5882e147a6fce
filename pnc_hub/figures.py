"""Figures of a clone's Hub page, drawn from what its configuration records: accuracies, and where it might have been read.

matplotlib belongs to the learning extras; without it a page has no figures and says the same in its tables.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pnc_hub.artifact import Clone

# Metrics of this prefix hold, by insertion point, the best joint accuracy that a closed-form clone had there.
_CURVE = "curve."
_LONGEST = 64  # characters of a metric's name
_GREY, _BLUE = "#9aa5b1", "#1f77b4"


def curve_metrics(places: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """``Clone.curve`` as metrics: for each insertion point the best over all cuts.

    It is the accuracy of old and new classes together, or of the cloned ones where there were no other images.

    Example:
        >>> curve_metrics([{"insertion": "layer1", "avg_u": value, "tar": 1.0} for value in (0.5, 0.7)])
        {'curve.layer1': 0.7}
    """
    best: dict[str, float] = {}
    for place in places:
        name = _CURVE + place["insertion"]
        value = place["tar"] if place["avg_u"] is None else place["avg_u"]
        if len(name) <= _LONGEST:
            best[name] = max(value, best.get(name, value))
    return best


def names(clone: Clone) -> list[str]:
    """The files that ``draw`` draws."""
    return list(_planned(clone))


def draw(clone: Clone) -> dict[str, bytes]:
    """File inside the artifact -> PNG. The same configuration gives the same bytes; nothing measured, no figure."""
    return {file: _png(plot(data, metrics)) for file, (plot, data, metrics) in _planned(clone).items()}


def _planned(clone: Clone) -> dict[str, tuple[Callable[..., Figure], dict[str, Any], dict[str, Any]]]:
    """File -> (what draws it, its data, the metrics they are from)."""
    if find_spec("matplotlib") is None:
        return {}
    adapters = clone.config.adapters
    planned = {"figures/accuracy.png": (_accuracy, _pairs(adapters[0].metrics), adapters[0].metrics)}
    for adapter in adapters:
        planned[f"figures/insertion-{adapter.name}.png"] = (_insertion, _curve(adapter.metrics), adapter.metrics)
    return {file: plan for file, plan in planned.items() if plan[1]}


def _pairs(metrics: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Old and new classes: accuracy of the network that knows them, and with the clone."""
    pairs = {
        "target's classes": (metrics.get("target_alone"), metrics.get("ori")),
        "cloned classes": (metrics.get("source_alone"), metrics.get("tar")),
    }
    return {name: pair for name, pair in pairs.items() if all(isinstance(value, (int, float)) for value in pair)}


def _curve(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Insertion points in their order with what a clone does there; nothing where there is no choice to be seen."""
    curve = {name.removeprefix(_CURVE): value for name, value in metrics.items() if name.startswith(_CURVE)}
    curve = {name: curve[name] for name in sorted(curve, key=_natural) if isinstance(curve[name], (int, float))}
    return curve if len(curve) > 1 else {}


def _accuracy(pairs: dict[str, tuple[float, float]], _: Mapping[str, Any]) -> Figure:
    figure, axes = _axes("accuracy on held-out images (%)")
    series = zip(*pairs.values(), strict=True)
    for shift, label, colour in (
        (-0.2, "the network that knows them, alone", _GREY),
        (0.2, "target with the clone", _BLUE),
    ):
        places = [position + shift for position in range(len(pairs))]
        bars = axes.bar(places, [100 * value for value in next(series)], 0.38, label=label, color=colour)
        axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=8)
    axes.set_xticks(range(len(pairs)), list(pairs))
    axes.set_ylim(0, 110)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def _insertion(curve: dict[str, float], metrics: Mapping[str, Any]) -> Figure:
    figure, axes = _axes("accuracy in closed form (%)")
    colours = [_BLUE if name == metrics.get("insertion") else _GREY for name in curve]
    axes.bar(range(len(curve)), [100 * value for value in curve.values()], color=colours)
    axes.set_xticks(range(len(curve)), list(curve), rotation=60, ha="right", fontsize=8)
    axes.set_xlabel("insertion point of the target (blue: chosen)")
    return figure


def _axes(label: str) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.set_ylabel(label)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, dpi=120, format="png")
    return file.getvalue()


def _natural(name: str) -> list[tuple[int, int, str]]:
    """A key that puts blocks.2 before blocks.10."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in name.split(".")]
