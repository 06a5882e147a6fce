"""What is measured more than once: written as tables of an artifact when it was measured, read back to be drawn.

An adapter's ``series`` holds tables by name, each of them columns (lists of one length) by name. Anybody may have written an
artifact, so a row is left out where a value is not what its column is for.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pnc_hub.report.rows import number

MOST_POINTS, MOST_CLASSES, MOST_PAIRS = 30, 12, 6
BINS, CONFIDENCE_BINS = 20, 15

Table = dict[str, list[Any]]
Series = Mapping[str, Mapping[str, Sequence[Any]]]


@dataclass(frozen=True)
class Place:
    """What a clone in closed form does at one insertion point of the target, with the cut that is best there."""

    name: str
    accuracy: float
    auroc: float | None
    macs: float | None


@dataclass(frozen=True)
class Curve:
    """The insertion points that there were to choose from, in the target's order, and the one that was chosen."""

    places: tuple[Place, ...]
    chosen: str | None

    @classmethod
    def of(cls, series: Series, chosen: Any) -> Curve | None:
        """None where there is no choice to be seen."""
        optional = _or_none(_is_number)
        rows = _rows(series, "curve", name=_is_name, accuracy=_is_share, auroc=optional, macs=optional)
        places = tuple({row[0]: Place(*row) for row in rows}.values())
        names = [place.name for place in places]
        return cls(places, chosen if chosen in names else None) if len(names) > 1 else None


def curve_table(places: Iterable[Mapping[str, Any]], chosen: str | None = None) -> Table:
    """``Clone.curve`` as a table: for each of the best insertion points the best of all cuts.

    Accuracy is that of old and new classes together, or of the cloned ones where there were no other images.

    Args:
        places: records with ``insertion``, ``avg_u``, ``tar``, and if they are known ``auroc`` and ``macs``.
        chosen: the insertion point that is kept however it does.

    Example:
        >>> curve_table([{"insertion": "layer1", "avg_u": value, "tar": 1.0} for value in (0.5, 0.7)])
        {'name': ['layer1'], 'accuracy': [0.7], 'auroc': [None], 'macs': [None]}
    """
    best: dict[str, Place] = {}
    for place in places:
        accuracy = place["tar"] if place["avg_u"] is None else place["avg_u"]
        found = Place(place["insertion"], accuracy, place.get("auroc"), place.get("macs"))
        if found.name not in best or accuracy > best[found.name].accuracy:
            best[found.name] = found
    kept = sorted(best.values(), key=lambda place: (place.name != chosen, -place.accuracy))[:MOST_POINTS]
    kept.sort(key=lambda place: _natural(place.name))
    return {name: [getattr(place, name) for place in kept] for name in ("name", "accuracy", "auroc", "macs")}


@dataclass(frozen=True)
class Histogram:
    """How far the best cloned class is ahead of the target's best one (in log-odds), by images of either side.

    Ahead of 0 the answer is a cloned class. The first and the last bin hold what lies beyond them too.

    Attributes:
        edges: of the bins, one more than there are bins.
        new: images of the cloned classes in each bin.
        old: other images in each bin.
    """

    edges: tuple[float, ...]
    new: tuple[int, ...]
    old: tuple[int, ...]

    @classmethod
    def count(cls, new: Sequence[float], old: Sequence[float]) -> Histogram:
        """Of margins, in bins that have an edge at 0; all but one in a hundred are within."""
        finite = sorted(value for value in (*new, *old) if math.isfinite(value))
        edge = len(finite) // 200
        low, high = (min(0.0, finite[edge]), max(0.0, finite[-1 - edge])) if finite else (0.0, 0.0)
        step = (high - low) / BINS or 1.0
        first, last = math.floor(low / step), max(math.ceil(high / step), math.floor(low / step) + 1)

        def counts(values: Sequence[float]) -> tuple[int, ...]:
            within = (min(max(value / step, first), last - 1) for value in values)
            images = Counter(math.floor(value) for value in within)
            return tuple(images[bin_] for bin_ in range(first, last))

        return cls(tuple(step * bin_ for bin_ in range(first, last + 1)), counts(new), counts(old))

    def table(self) -> Table:
        """A row per bin."""
        return {"low": [*self.edges[:-1]], "high": [*self.edges[1:]], "new": [*self.new], "old": [*self.old]}

    @classmethod
    def of(cls, series: Series) -> Histogram | None:
        """None where it was not measured, or where the bins do not follow one another."""
        rows = _rows(series, "gate", low=_is_number, high=_is_number, new=_is_count, old=_is_count)
        if not any(new or old for _, _, new, old in rows):
            return None
        low, high, new, old = zip(*rows, strict=True)
        follow = low[1:] == high[:-1] and all(start < end for start, end in zip(low, high, strict=True))
        return cls((*low, high[-1]), new, old) if follow else None


@dataclass(frozen=True)
class Reliability:
    """How often the joint answer is right, by how sure it is of itself: (images, accuracy) in 15 bins of equal width."""

    bins: tuple[tuple[int, float], ...]
    ece: float | None

    @classmethod
    def count(cls, confidence: Sequence[float], right: Sequence[bool]) -> Reliability:
        """With the expected calibration error: the mean difference of accuracy and confidence over bins, by images."""
        members: list[list[int]] = [[] for _ in range(CONFIDENCE_BINS)]
        for index, value in enumerate(confidence):
            members[min(int(value * CONFIDENCE_BINS), CONFIDENCE_BINS - 1)].append(index)
        gaps = (abs(math.fsum(confidence[index] - right[index] for index in bin_)) for bin_ in members)
        bins = tuple((len(bin_), sum(right[index] for index in bin_) / max(1, len(bin_))) for bin_ in members)
        return cls(bins, math.fsum(gaps) / max(1, len(confidence)))

    def table(self) -> Table:
        """A row per bin; ``ece`` is a metric."""
        return _table(("images", "accuracy"), self.bins)

    @classmethod
    def of(cls, series: Series, ece: float | None) -> Reliability | None:
        """None where it was not measured."""
        bins = _rows(series, "calibration", images=_is_count, accuracy=_is_share)
        measured = len(bins) == CONFIDENCE_BINS and any(images for images, _ in bins)
        return cls(tuple(bins), ece) if measured else None


@dataclass(frozen=True)
class Row:
    """Of some images: shares that are right, that get another class of the same side, and one of the other side.

    Of images whose class is not known the share that is right is not known either.
    """

    right: float | None
    stayed: float
    crossed: float

    @classmethod
    def between(cls, right: float | None, crossed: float | None) -> Row | None:
        """None where it was not measured, or where it is no share."""
        if crossed is None or not all(map(_is_share, (crossed, right or 0.0))):
            return None
        return cls(right, max(0.0, 1.0 - crossed - (right or 0.0)), crossed)


@dataclass(frozen=True)
class Confusion:
    """Where images go when old and new classes stand side by side.

    Attributes:
        old: images of the target's classes.
        new: images of the cloned classes.
        classes: by position, those of the cloned classes that do worst.
        new_to_old: (class, class that is answered, images), of new images that got an old class, the most frequent ones.
        old_to_new: the same of old images that got a new class.
    """

    old: Row | None
    new: Row
    classes: tuple[tuple[int, Row], ...]
    new_to_old: tuple[tuple[int, int, int], ...]
    old_to_new: tuple[tuple[int, int, int], ...]

    @classmethod
    def of(cls, metrics: Mapping[str, Any], series: Series, count: int) -> Confusion | None:
        """Of a clone of ``count`` classes; None where it was not measured."""
        new, old = (
            Row.between(number(metrics, right), number(metrics, crossed))
            for right, crossed in (("tar", "missed"), ("ori", "diverted"))
        )
        if new is None or new.right is None:
            return None
        is_cloned = _is_below(count)
        rows = _rows(series, "class", index=is_cloned, tar=_is_share, missed=_is_share)
        classes = [(index, row) for index, *shares in rows if (row := Row.between(*shares))]
        pairs = {"answered": _is_count, "images": _is_count}
        return cls(
            old,
            new,
            tuple(sorted(classes, key=lambda entry: (entry[1].right or 0.0, entry[0]))),
            tuple(_rows(series, "confused_new", shown=is_cloned, **pairs)),
            tuple(_rows(series, "confused_old", shown=_is_count, **{**pairs, "answered": is_cloned})),
        )


def class_table(labels: Sequence[int], right: Sequence[bool], crossed: Sequence[bool]) -> Table:
    """For those cloned classes that do worst, shares that are right (``tar``) and left to the target (``missed``).

    Example:
        >>> class_table([0, 0, 1], [True, False, True], [False, True, False])
        {'index': [0, 1], 'tar': [0.5, 1.0], 'missed': [0.5, 0.0]}
    """
    images = Counter(labels)
    sums = [Counter(label for label, is_so in zip(labels, found, strict=True) if is_so) for found in (right, crossed)]
    rows = ((label, *(found[label] / images[label] for found in sums)) for label in images)
    worst = sorted(rows, key=lambda row: (row[1], row[0]))[:MOST_CLASSES]
    return _table(("index", "tar", "missed"), sorted(worst))


def pair_table(pairs: Iterable[tuple[int, int]]) -> Table:
    """The most frequent of (class that is shown, class of the other side that was answered).

    Example:
        >>> pair_table([(2, 17), (0, 4), (2, 17)])
        {'shown': [2, 0], 'answered': [17, 4], 'images': [2, 1]}
    """
    most = sorted(Counter(pairs).items(), key=lambda item: (-item[1], item[0]))[:MOST_PAIRS]
    return _table(("shown", "answered", "images"), [(*pair, count) for pair, count in most])


def _table(names: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> Table:
    return {name: [row[at] for row in rows] for at, name in enumerate(names)}


def _rows(series: Series, table: str, **kinds: Callable[[Any], bool]) -> list[tuple[Any, ...]]:
    """Rows of the named columns in which every value is of its kind; none where a column is missing."""
    columns = series.get(table, {})
    if not kinds.keys() <= columns.keys():
        return []
    rows = zip(*(columns[name] for name in kinds), strict=True)
    return [row for row in rows if all(is_so(value) for is_so, value in zip(kinds.values(), row, strict=True))]


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and abs(value) <= 1e15


def _is_share(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 1


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and 0 <= value <= 10**12


def _is_below(count: int) -> Callable[[Any], bool]:
    return lambda value: _is_count(value) and value < count


def _or_none(is_so: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or is_so(value)


def _natural(name: str) -> list[tuple[int, int, str]]:
    """A key that puts blocks.2 before blocks.10, and stem before blocks."""
    first = [(-1, 0, "")] if re.match(r"(stem|conv_?1|conv_stem|patch_embed|bn1|act1|maxpool)\b", name) else []
    return first + [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in name.split(".")]
