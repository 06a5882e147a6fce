"""The report as one HTML page. Everything that is not ours (names of classes, texts of an artifact) is escaped by Jinja."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from pnc_hub.artifact.config import CloneConfig
from pnc_hub.report import figures, theme
from pnc_hub.report.rows import PORTED_ROWS, ROWS, number, others, shown, written

if TYPE_CHECKING:
    from jinja2 import Template

# The same names as ``theme.COLOURS``, for a dark page.
NIGHT = {
    "ink": "#e9eef4",
    "muted": "#a7b3c0",
    "line": "#313c48",
    "old": "#7f8d9c",
    "new": "#62a4ff",
    "harm": "#ff9257",
    "glow": "#1d3048",
}
MOST_NAMED = 12  # classes that are named in the heading; all are in the list


# What happened to a photo, in the order of the page.
KINDS = {
    "recognised": "Photos of new classes that are recognised now",
    "mixed": "Photos of new classes that got another new class",
    "missed": "Photos of new classes that the target still answers",
    "diverted": "Photos of old classes that moved to a new class",
}
# Of the last kind, where no image of the target was seen but those of the source's other classes (regime R2).
OTHERS = "Photos of other classes that got a new class"


@dataclass(frozen=True)
class ShownPhoto:
    """One held-out image, before and after the clone, small: for the report of one just learned, never part of an artifact.

    Attributes:
        kind: one of ``KINDS``.
        picture: a PNG or JPEG of at most 112 pixels.
        shows: name of its class, or None where it is not known.
        before: what the target alone answers, and its probability.
        after: what the target answers with the clone attached, and its probability.
    """

    kind: str
    picture: bytes
    shows: str | None
    before: tuple[str, float]
    after: tuple[str, float]

    @property
    def uri(self) -> str:
        """The picture as part of a page."""
        kind = "png" if self.picture.startswith(b"\x89PNG") else "jpeg"
        return f"data:image/{kind};base64,{base64.b64encode(self.picture).decode()}"


class Tile(NamedTuple):
    """One number in large type."""

    title: str
    value: str
    note: str


def render(
    config: CloneConfig, metrics: Mapping[str, Any], ported: Mapping[str, Any], photos: Sequence[ShownPhoto]
) -> str:
    """The page of a clone with ``config``, see ``pnc_hub.report.Report``."""
    drawn = figures.can_draw()
    drawings = [(drawing, drawing.svg() if drawn else None) for drawing in figures.drawings(config)]
    targets = [adapter.target for adapter in config.adapters if adapter.target is not None]
    titles = {**KINDS, "diverted": OTHERS} if others(metrics) == "other" else KINDS
    by_title = [(title, [photo for photo in photos if photo.kind == kind]) for kind, title in titles.items()]
    return _template().render(
        labels=config.labels,
        named=config.labels[:MOST_NAMED],
        source=config.source.hub_id or config.source.architecture,
        target=next((target.hub_id or target.architecture for target in targets), None) or "a classifier",
        tiles=_tiles(metrics, len(config.labels)),
        restored=metrics.get("restored"),
        held_out=[number(metrics, f"held_out.{side}") for side in ("new", "old")],
        others=others(metrics),
        drawings=drawings,
        drawn=drawn,
        photos=[(title, shown_photos) for title, shown_photos in by_title if shown_photos],
        rows=written(metrics, ROWS),
        ported={name: written(measured, PORTED_ROWS) for name, measured in ported.items()},
        regime=metrics.get("regime"),
        version=config.pnc_hub_version,
        day=theme.COLOURS,
        night=NIGHT,
    )


def _tiles(metrics: Mapping[str, Any], count: int) -> list[Tile]:
    """What a reader wants to know first; what was not measured, or is true by definition of one class, is left out."""
    budget = number(metrics, "locality_budget")
    allowed = "no budget was set" if budget is None else f"the budget was {shown(budget, 'percent')}"
    whole, kept = number(metrics, "source_parameters"), number(metrics, "kept_parameters")
    share = f"{kept / whole:.0%} of the source's {whole:,.0f}" if whole and kept is not None else ""
    tiles = (
        ("ori", "Old classes, with the clone", "percent", _alone(metrics, "target")),
        ("tar", "New classes, with the clone", "percent", "" if count == 1 else _alone(metrics, "source")),
        ("diverted", f"{others(metrics).capitalize()} images answered as new", "percent", allowed),
        ("kept_parameters", "Parameters added", "count", share),
    )
    return [
        Tile(title, shown(metrics[key], kind), note)
        for key, title, kind, note in tiles
        if number(metrics, key) is not None
    ]


def _alone(metrics: Mapping[str, Any], network: str) -> str:
    accuracy = number(metrics, f"{network}_alone")
    return "" if accuracy is None else f"the {network} alone: {shown(accuracy, 'percent')}"


@lru_cache(maxsize=1)
def _template() -> Template:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    how: dict[str, Any] = {"undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    return Environment(loader=PackageLoader("pnc_hub.report", "."), autoescape=True, **how).get_template("page.html")
