"""Figures of a clone, for its Hub page and its report, drawn from what its configuration records.

matplotlib belongs to the learning extras; without it a page has no figures and says the same in its tables.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from pnc_hub.artifact.config import AdapterConfig, CloneConfig
from pnc_hub.report import plots, theme
from pnc_hub.report.layers import kept_layers
from pnc_hub.report.rows import number, others, shown
from pnc_hub.report.series import Confusion, Curve, Histogram, Reliability

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Drawing:
    """One figure.

    Attributes:
        name: of its file.
        title: as a heading.
        alt: what it shows, to somebody who does not see it.
        note: how to read it.
        plot: draws it.
        columns: titles of the table of its numbers.
        rows: the table.
    """

    name: str
    title: str
    alt: str
    note: str
    plot: Callable[[], Figure]
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @property
    def file(self) -> str:
        """Inside the artifact."""
        return f"figures/{self.name}.png"

    def png(self) -> bytes:
        """The same numbers give the same bytes."""
        with theme.style():
            return theme.png(self.plot())

    def svg(self) -> str:
        """To be put into an HTML page that has the variables of ``theme.COLOURS``."""
        with theme.style():
            return theme.svg(self.plot(), self.name.replace(".", "-"))


def can_draw() -> bool:
    """Whether matplotlib is there."""
    return find_spec("matplotlib") is not None


def drawings(config: CloneConfig) -> list[Drawing]:
    """What there is to be drawn of a clone; none of it is drawn yet."""
    first = config.adapters[0]
    possible = [
        _accuracy(first.metrics, len(config.labels)),
        *(drawing for adapter in config.adapters for drawing in (_insertion(adapter), _gate(adapter))),
        _confusion(first, config.labels),
        _reliability(first),
        _kept(config),
    ]
    return [drawing for drawing in possible if drawing is not None]


def _accuracy(metrics: Mapping[str, Any], count: int) -> Drawing | None:
    pairs: dict[str, tuple[float | None, float]] = {}
    for name, before, after in (("target's classes", "target_alone", "ori"), ("cloned classes", "source_alone", "tar")):
        alone, joint = number(metrics, before), number(metrics, after)
        if alone is not None and joint is not None:
            # of a single class the source is right by definition: there is nothing to choose among
            pairs[name] = (None if after == "tar" and count == 1 else alone, joint)
    if all(alone is None for alone, _ in pairs.values()):
        return None
    rows = tuple(
        (name, "" if alone is None else _percent(alone), _percent(joint)) for name, (alone, joint) in pairs.items()
    )
    said = (f"{name} {f'{alone} alone, ' if alone else ''}{joint} with the clone" for name, alone, joint in rows)
    return Drawing(
        "accuracy",
        "Accuracy before and after",
        f"Accuracy before and after: {'; '.join(said)}",
        "On held-out images. With the clone, every image is answered among old and new classes together.",
        partial(plots.accuracy, pairs),
        ("accuracy on", "alone", "with the clone"),
        rows,
    )


def _insertion(adapter: AdapterConfig) -> Drawing | None:
    curve = Curve.of(adapter.series, adapter.metrics.get("insertion"))
    if curve is None:
        return None
    best = max(curve.places, key=lambda place: place.accuracy)
    read = f"the clone reads the target at {curve.chosen}; " if curve.chosen else ""
    return Drawing(
        f"insertion-{adapter.name}",
        f"Insertion points of {adapter.name}",
        f"{len(curve.places)} insertion points of {adapter.name}: {read}the best before training is {best.name} with"
        f" {_percent(best.accuracy)} accuracy",
        "Each module of the target that was tried, the first of the network on top: accuracy and the gate's AUROC of a clone in"
        " closed form, before pruning and training, and the multiply-accumulates that it would add to each image. The one that"
        " was chosen is marked.",
        partial(plots.insertion, curve),
        ("insertion point", "accuracy", "AUROC", "multiply-accumulates"),
        tuple(
            (
                f"{place.name} (chosen)" if place.name == curve.chosen else place.name,
                _percent(place.accuracy),
                "" if place.auroc is None else f"{place.auroc:.3f}",
                "" if place.macs is None else f"{place.macs:,.0f}",
            )
            for place in curve.places
        ),
    )


def _gate(adapter: AdapterConfig) -> Drawing | None:
    histogram = Histogram.of(adapter.series)
    if histogram is None:
        return None
    budget, other = number(adapter.metrics, "locality_budget"), others(adapter.metrics)
    sides = [
        f"{_percent(share)} of the {side} images are on the wrong side"
        for crossed, side in (("missed", "new"), ("diverted", other))
        if (share := number(adapter.metrics, crossed)) is not None
    ]
    chosen = "The threshold was set where old and new classes together do best on images that were kept for it."
    if not any(histogram.old):
        chosen = (
            "No images of other classes were there, so the threshold is where both networks' answers stand side by side; it was"
            " not calibrated."
        )
    elif budget is not None:
        chosen = (
            f"The threshold was set so that at most {_percent(budget)} of images like those in target_data are diverted, on"
            " average."
        )
    elif other == "other":
        chosen = (
            "The threshold was set with images of other classes of the source, where they and new classes together do best on"
            " images that were kept for it; no image of the target's classes was seen."
        )
    return Drawing(
        f"gate-{adapter.name}",
        f"The gate of {adapter.name}",
        f"Histogram of the gate of {adapter.name}. "
        + ", ".join(sides or [f"{other.capitalize()} and new images by log-odds"]),
        "How far the best new class is ahead of the best old one. Right of the threshold the answer is a new class. "
        + chosen
        + " The outermost bars hold what lies beyond them too.",
        partial(plots.gate, histogram, budget, other),
        ("log-odds from", "to", f"images of {other} classes", "images of new classes"),
        tuple(
            (f"{low:.2f}", f"{high:.2f}", str(old), str(new))
            for low, high, new, old in zip(*histogram.table().values(), strict=True)
        ),
    )


def _confusion(adapter: AdapterConfig, labels: tuple[str, ...]) -> Drawing | None:
    confusion = Confusion.of(adapter.metrics, adapter.series, len(labels))
    if confusion is None:
        return None
    other = others(adapter.metrics)
    sides = [(f"images of {other} classes", confusion.old), ("images of new classes", confusion.new)]
    rows = [
        (label, "not known" if row.right is None else _percent(row.right), _percent(row.stayed), _percent(row.crossed))
        for label, row in (*sides, *((labels[at], row) for at, row in confusion.classes))
        if row
    ]
    pairs = [(f"{labels[new]} taken for the target's class {old}", count) for new, old, count in confusion.new_to_old]
    pairs += [(f"the target's class {old} taken for {labels[new]}", count) for old, new, count in confusion.old_to_new]
    rows += [(label, "", "", f"{count} image{'s'[: count > 1]}") for label, count in pairs]
    kept = f" {_percent(confusion.old.crossed)} of {other} images get a new class." if confusion.old else ""
    return Drawing(
        "confusion",
        f"{other.capitalize()} and new classes side by side",
        f"{_percent(confusion.new.right)} of the images of new classes are right,"
        f" {_percent(confusion.new.crossed)} get an old class.{kept}",
        "Where held-out images end up when all classes are answered together. Single classes are those of the clone that do"
        " worst.",
        partial(plots.confusion, confusion, labels, other),
        ("images of", "right", "another of the same side", "one of the other side"),
        tuple(rows),
    )


def _reliability(adapter: AdapterConfig) -> Drawing | None:
    measured = Reliability.of(adapter.series, number(adapter.metrics, "ece"))
    if measured is None:
        return None
    error = "" if measured.ece is None else f"Expected calibration error {measured.ece:.3f}. "
    edges = [100 * bin_ / len(measured.bins) for bin_ in range(len(measured.bins) + 1)]
    return Drawing(
        "reliability",
        "How sure, and how right",
        f"Reliability diagram of the joint answer over old and new classes. {error}".strip(),
        f"Bars that end on the dashed line are as often right as the answer says. {error}Lower: the answer is too sure; higher:"
        " not sure enough.",
        partial(plots.reliability, measured),
        ("confidence", "right", "images"),
        tuple(
            (f"{edges[bin_]:.0f} to {edges[bin_ + 1]:.0f} %", _percent(right), f"{images:,}")
            for bin_, (images, right) in enumerate(measured.bins)
            if images
        ),
    )


def _kept(config: CloneConfig) -> Drawing | None:
    layers = kept_layers(config)
    if not layers:
        return None
    kept, whole = (sum(column) for column in zip(*layers.values(), strict=True))
    return Drawing(
        "kept",
        "What is left of the source",
        f"{_percent(kept / whole)} of the source's weights after the cut are kept, in {len(layers)} layers",
        f"Of the layers of {config.source.architecture} after the cut at {config.cut}, in their order, the share of the"
        f" weights that the clone kept: {kept:,} of {whole:,}.",
        partial(plots.kept, layers),
        ("layer", "kept", "of", "share"),
        tuple((name, f"{part:,}", f"{of:,}", _percent(part / of)) for name, (part, of) in layers.items()),
    )


_percent = partial(shown, kind="percent")
