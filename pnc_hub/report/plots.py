"""The figures themselves, one function each, drawn with matplotlib from what ``series`` and ``layers`` hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pnc_hub.report.series import Confusion, Curve, Histogram, Reliability
from pnc_hub.report.theme import COLOURS, axes, has_letters, legend

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LINE = 0.2  # inches of height for a line of text
_LEGEND = (0.1, 0.68)  # room above, and below for an axis with its title and a legend


def accuracy(pairs: Mapping[str, tuple[float | None, float]]) -> Figure:
    """Old and new classes: the network that knows them alone, if that says something, and the target with the clone."""
    figure, plot = axes(0.55 * len(pairs), pairs, (0.05, 0.5))
    for shift, series, label, colour in (
        (-0.2, 0, "the network that knows them, alone", "old"),
        (0.2, 1, "target with the clone", "new"),
    ):
        values = {place + shift: pair[series] for place, pair in enumerate(pairs.values())}
        known = {place: 100 * value for place, value in values.items() if value is not None}
        bars = plot.barh(list(known), list(known.values()), 0.36, label=label, color=COLOURS[colour])
        plot.bar_label(bars, fmt="%.1f %%", padding=3)
    _percent(plot, list(pairs), room=22)
    legend(figure, plot)
    return figure


def insertion(curve: Curve) -> Figure:
    """Accuracy, gate and cost at every insertion point, the first of the network on top."""
    places, names = curve.places, [place.name for place in curve.places]
    columns: list[tuple[str, str, list[float | None]]] = [
        ("accuracy (%)", ".1f", [100 * place.accuracy for place in places]),
        ("gate AUROC", ".3f", [place.auroc for place in places]),
        ("cost (M MACs)", ".3g", [None if place.macs is None else place.macs / 1e6 for place in places]),
    ]
    columns = [column for column in columns if any(value is not None for value in column[2])]
    figure, plots = axes(_LINE * len(places), names, (0.25, 0.28), (1, len(columns)), sharey=True, squeeze=False)
    for plot, (title, form, values) in zip(plots[0], columns, strict=True):
        _dots(plot, values, names, curve.chosen)
        plot.set_title(title)
        known = [value for value in values if value is not None]
        plot.set_xticks(ends := sorted({min(known), max(known)}), [f"{end:{form}}" for end in ends])
        for text, side in zip(plot.get_xticklabels(), ("left", "right") if len(ends) > 1 else ("center",), strict=True):
            text.set_horizontalalignment(side)
        plot.margins(x=0.12)
    _from_the_top(plots[0][0], names)
    for text, name in zip(plots[0][0].get_yticklabels(), names, strict=True):
        text.set_fontweight("bold" if name == curve.chosen else "normal")
    return figure


def _dots(plot: Any, values: Sequence[float | None], names: Sequence[str], chosen: str | None) -> None:
    known = [(value, place) for place, value in enumerate(values) if value is not None]
    plot.plot(*zip(*known, strict=True), color=COLOURS["old"], linewidth=1, marker="o", markersize=4)
    if chosen is None:
        return
    place = names.index(chosen)
    plot.axhspan(place - 0.5, place + 0.5, color=COLOURS["glow"], linewidth=0, zorder=0)
    if values[place] is not None:
        plot.plot(values[place], place, color=COLOURS["new"], marker="o", markersize=8)


def kept(layers: Mapping[str, tuple[int, int]]) -> Figure:
    """Of each layer after the cut the share of its weights that is still there."""
    figure, plot = axes(_LINE * len(layers), layers)
    shares = [100 * part / whole for part, whole in layers.values()]
    plot.barh(range(len(layers)), [100] * len(layers), 0.72, color=COLOURS["glow"])
    bars = plot.barh(range(len(layers)), shares, 0.72, color=COLOURS["new"])
    plot.bar_label(bars, fmt="%.0f %%", padding=3)
    plot.set_xlabel("weights kept (%)")
    _percent(plot, list(layers), room=22)
    return figure


def confusion(measured: Confusion, labels: Sequence[str], others: str) -> Figure:
    """For images of old or other classes, of new ones, and of those that do worst: right, another class, the other side."""
    rows = [(f"{others} classes", measured.old), ("new classes", measured.new)]
    rows += [(_named(labels[at], at), row) for at, row in measured.classes]
    shown = [(label, row) for label, row in rows if row is not None]
    names = [label for label, _ in shown]
    figure, plot = axes(1.2 * _LINE * len(shown), names, _LEGEND)
    left = [0.0] * len(shown)
    for label, colour, values in (
        ("right", "new", [100 * (row.right or 0.0) for _, row in shown]),
        ("another of the same side", "old", [100 * row.stayed for _, row in shown]),
        ("one of the other side", "harm", [100 * row.crossed for _, row in shown]),
    ):
        plot.barh(range(len(shown)), values, 0.7, left=left, color=COLOURS[colour], label=label)
        left = [start + value for start, value in zip(left, values, strict=True)]
    _percent(plot, names)
    plot.set_xlabel("held-out images that get this answer (%)")
    legend(figure, plot)
    return figure


def gate(histogram: Histogram, budget: float | None, others: str) -> Figure:
    """Where images of either side stand, and the line that divides them."""
    figure, plot = axes(2.1, room=_LEGEND)
    for label, colour, counts in (
        (f"images of {others} classes", "old", histogram.old),
        ("images of new classes", "new", histogram.new),
    ):
        if any(counts):
            shares = [100 * count / sum(counts) for count in counts]
            shown = {"alpha": 0.55, "color": COLOURS[colour], "edgecolor": COLOURS[colour]}
            plot.stairs(shares, histogram.edges, fill=True, label=label, **shown)
    plot.axvline(0, color=COLOURS["harm"], linewidth=1.6)
    top = plot.get_ylim()[1]
    plot.set_ylim(0, 1.16 * top)
    text = "threshold" if budget is None else f"threshold for {100 * budget:g} %"
    plot.annotate(text, (0, 1.13 * top), (4, 0), textcoords="offset points", color=COLOURS["harm"], va="top")
    plot.set_xlabel("target's answer  \N{LEFTWARDS ARROW}  log-odds  \N{RIGHTWARDS ARROW}  clone's answer")
    plot.set_ylabel("images of the side (%)")
    legend(figure, plot)
    return figure


def reliability(measured: Reliability) -> Figure:
    """Accuracy by confidence, beside what it should be; below, how many images are that sure."""
    figure, (plot, below) = axes(2.8, shape=(2, 1), sharex=True, height_ratios=(3, 1))
    width = 100 / len(measured.bins)
    centres = [width * (place + 0.5) for place in range(len(measured.bins))]
    shown = [
        (centre, 100 * right, images) for centre, (images, right) in zip(centres, measured.bins, strict=True) if images
    ]
    x, accuracies, images = zip(*shown, strict=True)
    plot.bar(x, accuracies, 0.9 * width, color=COLOURS["new"], label="accuracy")
    never = [centre for centre, right, _ in shown if not right]  # a bar of no height would look like no images
    plot.plot(never, [0] * len(never), color=COLOURS["new"], linestyle="", marker="o", markersize=5, clip_on=False)
    plot.plot((0, 100), (0, 100), color=COLOURS["harm"], linestyle="--", linewidth=1.4, label="as sure as right")
    plot.set_ylabel("right (%)")
    plot.set_ylim(0, 104)
    plot.legend(loc="upper left", handlelength=1.4)
    below.bar(x, [100 * count / sum(images) for count in images], 0.9 * width, color=COLOURS["old"])
    below.set_ylabel("images (%)")
    below.set_xlabel("confidence of the joint answer (%)")
    below.set_xlim(0, 100)
    below.locator_params(axis="y", nbins=3)
    return figure


def _percent(plot: Any, names: Sequence[str], room: float = 0) -> None:
    """A bar for each of ``names``, from 0 to 100 with ``room`` for labels behind; lines across say nothing beside bars."""
    _from_the_top(plot, names)
    plot.set_xlim(0, 100 + room)
    plot.set_xticks(range(0, 101, 25))
    plot.grid(visible=False, axis="y")


def _from_the_top(plot: Any, names: Sequence[str]) -> None:
    plot.set_yticks(range(len(names)), names)
    plot.set_ylim(len(names) - 0.5, -0.5)


def _named(label: str, position: int) -> str:
    """``label`` as far as there is room; where the figures' letters do not have it, its place in the table of classes."""
    short = label if len(label) <= 18 else f"{label[:17]}\N{HORIZONTAL ELLIPSIS}"
    return short if has_letters(short) else f"class {position}"
