"""How figures look, as PNG on white for a Hub page, and as SVG that takes its colours from the page it is in."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Names are those of the page's CSS variables, values those of a light page; ``page.NIGHT`` has those of a dark one.
COLOURS = {
    "ink": "#1b2530",
    "muted": "#566371",
    "line": "#d3dae1",
    "old": "#8d9aa8",
    "new": "#1f6fd0",
    "harm": "#b94a08",
    "glow": "#e3eefc",
}
WIDTH = 4.1  # inches: on a phone a point is a pixel then
_SVG = "{http://www.w3.org/2000/svg}"
_HREF = "{http://www.w3.org/1999/xlink}href"
_COLOUR = re.compile(r"#[0-9a-f]{6}")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_SETTINGS: dict[str, Any] = {
    "font.size": 9,
    "font.sans-serif": ["DejaVu Sans"],
    "text.color": COLOURS["ink"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.edgecolor": COLOURS["line"],
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.titlecolor": COLOURS["muted"],
    "grid.color": COLOURS["line"],
    "grid.linewidth": 0.6,
    "xtick.color": COLOURS["line"],
    "ytick.color": COLOURS["line"],
    "xtick.labelcolor": COLOURS["muted"],
    "ytick.labelcolor": COLOURS["ink"],
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "svg.fonttype": "none",  # text stays text: readable at any size, and to a screen reader's user
    "svg.hashsalt": "pnc-hub",
    "text.parse_math": False,  # a dollar sign in the name of a class is one
}


@contextmanager
def style() -> Iterator[None]:
    """Figures that are made and saved within look the same whatever the caller's settings are."""
    import matplotlib
    import matplotlib.style

    with matplotlib.rc_context(), matplotlib.style.context(["default", _SETTINGS]):
        yield


def axes(
    rows: float,
    labels: Iterable[str] = (),
    room: tuple[float, float] = (0.1, 0.45),
    shape: tuple[int, int] = (1, 1),
    **how: Any,
) -> tuple[Figure, Any]:
    """A figure of the page's width, and its axes.

    Room beside the axes is given in inches: to let matplotlib find it would draw everything several times.

    Args:
        rows: inches of height that the axes have.
        labels: of the ticks on the left; without them there is room for numbers and a title.
        room: inches above and below the axes.
        shape: rows and columns of axes.
        how: what ``Figure.subplots`` takes besides.
    """
    from matplotlib.figure import Figure

    height = rows + sum(room)
    edges = {
        "left": (1.12 * max(map(width, labels), default=0.36) + 0.1) / WIDTH,  # bold letters are wider
        "right": 1 - 0.17 / WIDTH,
        "bottom": room[1] / height,
        "top": 1 - room[0] / height,
    }
    figure = Figure(figsize=(WIDTH, height))
    return figure, figure.subplots(*shape, gridspec_kw={**edges, "wspace": 0.14, "hspace": 0.14}, **how)


def legend(figure: Figure, plot: Any) -> None:
    """What the colours mean, on one line at the very bottom."""
    handles, labels = plot.get_legend_handles_labels()
    spaces = {"columnspacing": 1.0, "handlelength": 1.0, "handletextpad": 0.4, "borderaxespad": 0.1}
    figure.legend(handles, labels, loc="lower center", ncols=len(labels), **spaces)


def width(label: str) -> float:
    """Inches that ``label`` takes at the size of ticks."""
    font = _font()
    font.set_size(_SETTINGS["font.size"], 72)
    font.set_text(label)
    return float(font.get_width_height()[0]) / 64 / 72


def has_letters(text: str) -> bool:
    """Whether the font of the figures has all of ``text``; in SVG a reader's own fonts do."""
    known = _font().get_charmap()
    return all(ord(letter) in known for letter in text)


def _font() -> Any:
    from matplotlib import font_manager

    return font_manager.get_font(font_manager.findfont("DejaVu Sans"))


def png(figure: Figure) -> bytes:
    """Twice the pixels of a phone. The same figure gives the same bytes."""
    file = io.BytesIO()
    figure.savefig(file, dpi=180, format="png", metadata={"Software": None})
    return file.getvalue()


def svg(figure: Figure, name: str) -> str:
    """An ``<svg>`` to be put into HTML: colours are CSS variables, letters the page's, and ids begin with ``name``.

    It is hidden from screen readers: the page says beside it what it shows.
    """
    file = io.BytesIO()
    figure.savefig(file, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    root = ElementTree.fromstring(file.getvalue())  # our own drawing: no entities, nothing that is fetched
    for element in [*root.iter()]:
        for child in [*element]:
            if child.tag in (f"{_SVG}metadata", f"{_SVG}style"):
                element.remove(child)
        _adapt(element, name)
    view = root.get("viewBox", "")
    root.attrib.clear()
    root.attrib.update({"viewBox": view, "aria-hidden": "true", "focusable": "false"})
    return ElementTree.tostring(root, encoding="unicode")


def _adapt(element: ElementTree.Element, name: str) -> None:
    variables = {value: f"var(--{colour})" for colour, value in COLOURS.items()}
    element.tag = element.tag.removeprefix(_SVG)  # in HTML it needs no namespace
    for key, value in list(element.attrib.items()):
        if key == "id":
            value = f"{name}-{value}"
        elif key == _HREF:
            del element.attrib[key]
            key, value = "href", f"#{name}-{value.removeprefix('#')}"
        elif key == "style":
            value = re.sub(r"font-family:[^;]*;?|font: ", lambda found: "font: " if found[0] == "font: " else "", value)
            value = _COLOUR.sub(lambda found: variables.get(found[0], found[0]), value)
        element.set(key, _REFERENCE.sub(rf"url(#{name}-\1)", value))
