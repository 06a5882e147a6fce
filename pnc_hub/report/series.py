"""What figures are drawn from, as the flat metrics of an artifact, and read back from them.

An artifact's metrics are names with one number each, so a histogram is stored bin by bin. What is read back may come from
anybody: what is no number is not there, and there are never more bars than were meant to be.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MOST_POINTS, MOST_CLASSES, MOST_PAIRS, MOST_LAYERS = 30, 12, 6, 32
BINS, CONFIDENCE_BINS = 20, 15
_LONGEST = 64  # characters of a metric's name
_PAIR = re.compile(r"confusion\.(new|old)\.(\d{1,6})\.(?!\1)(?:new|old)\.(\d{1,6})")


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
    def of(cls, metrics: Mapping[str, Any]) -> Curve | None:
        """None where there is no choice to be seen."""
        found = (name.removeprefix("curve.") for name in metrics if name.startswith("curve."))
        accuracies = {name: number(metrics, f"curve.{name}") for name in found}
        chosen = metrics.get("insertion")
        best = sorted(
            (name for name, value in accuracies.items() if value is not None),
            key=lambda name: (name != chosen, -(accuracies[name] or 0.0)),
        )
        places = tuple(
            Place(
                name,
                accuracies[name] or 0.0,
                number(metrics, f"curve_auroc.{name}"),
                number(metrics, f"curve_macs.{name}"),
            )
            for name in sorted(best[:MOST_POINTS], key=_natural)
        )
        return cls(places, chosen if chosen in best else None) if len(places) > 1 else None


def curve_metrics(places: Iterable[Mapping[str, Any]], chosen: str | None = None) -> dict[str, float]:
    """``Clone.curve`` as metrics: for each of the best insertion points the best of all cuts.

    Accuracy is that of old and new classes together, or of the cloned ones where there were no other images.

    Args:
        places: records with ``insertion``, ``avg_u``, ``tar``, and if they are known ``auroc`` and ``macs``.
        chosen: the insertion point that is kept however it does.

    Example:
        >>> curve_metrics([{"insertion": "layer1", "avg_u": value, "tar": 1.0} for value in (0.5, 0.7)])
        {'curve.layer1': 0.7}
    """
    best: dict[str, tuple[float, Mapping[str, Any]]] = {}
    for place in places:
        name, value = place["insertion"], place["tar"] if place["avg_u"] is None else place["avg_u"]
        if len(f"curve_auroc.{name}") <= _LONGEST and (name not in best or value > best[name][0]):
            best[name] = (value, place)
    kept = sorted(best, key=lambda name: (name != chosen, -best[name][0]))[:MOST_POINTS]
    metrics = {}
    for name in (name for name in best if name in kept):
        value, place = best[name]
        found = {f"curve.{name}": value} | {f"curve_{kind}.{name}": place.get(kind) for kind in ("auroc", "macs")}
        metrics.update({metric: value for metric, value in found.items() if value is not None})
    return metrics


@dataclass(frozen=True)
class Histogram:
    """How far the best cloned class is ahead of the target's best one (in log-odds), by images of either side.

    Ahead of 0 the answer is a cloned class. The first and the last bin hold what lies beyond them too.
    """

    low: float
    step: float
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
            found = Counter(math.floor(value) - first for value in within)
            return tuple(found[place] for place in range(last - first))

        return cls(first * step, step, counts(new), counts(old))

    def metrics(self) -> dict[str, float]:
        """Bins without images are left out."""
        found: dict[str, float] = {"gate.low": self.low, "gate.step": self.step}
        for side in ("new", "old"):
            found |= {f"gate.{side}.{place}": count for place, count in enumerate(getattr(self, side)) if count}
        return found

    @classmethod
    def of(cls, metrics: Mapping[str, Any]) -> Histogram | None:
        """None where it was not measured."""
        low, step = number(metrics, "gate.low"), number(metrics, "gate.step")
        new, old = ([_count(metrics, f"gate.{side}.{place}") for place in range(BINS + 2)] for side in ("new", "old"))
        used = [place for place, counts in enumerate(zip(new, old, strict=True)) if any(counts)]
        if low is None or step is None or not step > 0 or not used:
            return None
        return cls(low, step, tuple(new[: used[-1] + 1]), tuple(old[: used[-1] + 1]))

    def edges(self) -> list[float]:
        """One more than there are bins."""
        return [self.low + self.step * place for place in range(len(self.new) + 1)]


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

    def metrics(self) -> dict[str, float]:
        """Bins without images are left out; ``ece`` is a metric of its own."""
        found: dict[str, float] = {}
        for place, (images, accuracy) in enumerate(self.bins):
            if images:
                found |= {f"calibration.{place}.images": images, f"calibration.{place}.accuracy": accuracy}
        return found

    @classmethod
    def of(cls, metrics: Mapping[str, Any]) -> Reliability | None:
        """None where it was not measured."""
        names = [f"calibration.{place}" for place in range(CONFIDENCE_BINS)]
        bins = tuple((_count(metrics, f"{name}.images"), _share(metrics, f"{name}.accuracy") or 0.0) for name in names)
        return cls(bins, number(metrics, "ece")) if any(images for images, _ in bins) else None


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
        """None where it was not measured."""
        if crossed is None:
            return None
        return cls(right, max(0.0, 1.0 - crossed - (right or 0.0)), crossed)


@dataclass(frozen=True)
class Confusion:
    """Where images go when old and new classes stand side by side.

    Attributes:
        old: images of the target's classes.
        new: images of the cloned classes.
        classes: by position, those of the cloned classes that do worst.
        pairs: (class, class that is answered, images), of the other side, the most frequent ones: of new images, then of old.
    """

    old: Row | None
    new: Row | None
    classes: tuple[tuple[int, Row], ...]
    new_to_old: tuple[tuple[int, int, int], ...]
    old_to_new: tuple[tuple[int, int, int], ...]

    @classmethod
    def of(cls, metrics: Mapping[str, Any], count: int) -> Confusion | None:
        """Of a clone of ``count`` classes; None where it was not measured."""
        old = Row.between(_share(metrics, "ori"), _share(metrics, "diverted"))
        right = _share(metrics, "tar")
        new = Row.between(right, _share(metrics, "missed"))
        if right is None or new is None:
            return None
        known: list[tuple[int, Row]] = []
        for name in metrics:
            at = int(name.split(".")[1]) if re.fullmatch(r"class\.\d{1,6}\.tar", name) else count
            row = Row.between(_share(metrics, name), _share(metrics, f"class.{at}.missed")) if at < count else None
            known += [(at, row)] if row else []
        known.sort(key=lambda item: (item[1].right or 0.0, item[0]))
        pairs: dict[str, list[tuple[int, int, int]]] = {"new": [], "old": []}
        for match in filter(None, map(_PAIR.fullmatch, metrics)):
            pairs[match[1]].append((int(match[2]), int(match[3]), _count(metrics, match[0])))
        most = {
            side: tuple(
                sorted((pair for pair in found if pair[side == "old"] < count), key=lambda pair: (-pair[2], pair))
            )
            for side, found in pairs.items()
        }
        return cls(old, new, tuple(known[:MOST_CLASSES]), most["new"][:MOST_PAIRS], most["old"][:MOST_PAIRS])


def class_metrics(labels: Sequence[int], right: Sequence[bool], crossed: Sequence[bool]) -> dict[str, float]:
    """For those cloned classes that do worst, shares that are right (``tar``) and left to the target (``missed``).

    Example:
        >>> class_metrics([0, 0, 1], [True, False, True], [False, True, False])
        {'class.0.tar': 0.5, 'class.0.missed': 0.5, 'class.1.tar': 1.0, 'class.1.missed': 0.0}
    """
    images = Counter(labels)
    sums = [Counter(label for label, is_so in zip(labels, found, strict=True) if is_so) for found in (right, crossed)]
    worst = sorted(images, key=lambda label: (sums[0][label] / images[label], label))[:MOST_CLASSES]
    return {
        f"class.{label}.{name}": found[label] / images[label]
        for label in sorted(worst)
        for name, found in zip(("tar", "missed"), sums, strict=True)
    }


def pair_metrics(side: str, pairs: Iterable[tuple[int, int]]) -> dict[str, float]:
    """The most frequent of (class of ``side``, class of the other side that was answered).

    Example:
        >>> pair_metrics("new", [(2, 17), (0, 4), (2, 17)])
        {'confusion.new.2.old.17': 2, 'confusion.new.0.old.4': 1}
    """
    other = "old" if side == "new" else "new"
    most = sorted(Counter(pairs).items(), key=lambda item: (-item[1], item[0]))[:MOST_PAIRS]
    return {f"confusion.{side}.{true}.{other}.{answer}": count for (true, answer), count in most}


def _count(metrics: Mapping[str, Any], name: str) -> int:
    value = number(metrics, name) or 0
    return int(min(max(value, 0), 10**12))


def _share(metrics: Mapping[str, Any], name: str) -> float | None:
    value = number(metrics, name)
    return None if value is None else min(max(float(value), 0.0), 1.0)


def _natural(name: str) -> list[tuple[int, int, str]]:
    """A key that puts blocks.2 before blocks.10, and stem before blocks."""
    first = [(-1, 0, "")] if re.match(r"(stem|conv_?1|conv_stem|patch_embed|bn1|act1|maxpool)\b", name) else []
    return first + [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in name.split(".")]
