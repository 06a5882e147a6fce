"""The report as a page: complete, escaped, and readable in a real browser by day and night, on a phone and on a desk."""

import html
import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from common import tiny_clone, tiny_model
from measured import measured
from PIL import Image

from pnc_hub.artifact.config import CloneConfig
from pnc_hub.hub.clone import Clone
from pnc_hub.report import Report, figures, page
from pnc_hub.report.page import KINDS, OTHERS, ShownPhoto
from pnc_hub.report.rows import ROWS

BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
NASTY = "<script>alert(1)</script> \"' onload=x {{ 7 * 7 }} &amp; " + "long" * 30
SHAPES = {
    name: (width, scheme) for width in (360, 1280) for scheme in ("light", "dark") for name in (f"{width}-{scheme}",)
}


@pytest.fixture(scope="module")
def described() -> dict:
    """The configuration of a pruned clone with everything measured."""
    return measured(tiny_clone(tiny_model("resnet"), tiny_model("mobilenet"), keep=0.4)).config.to_dict()


@pytest.fixture
def undrawn(monkeypatch) -> None:
    """As where matplotlib is not installed: a page takes no time."""
    monkeypatch.setattr(figures, "can_draw", lambda: False)


@pytest.fixture
def clone(described) -> Clone:
    return Clone(CloneConfig.from_dict(json.loads(json.dumps(described))), {})


def photos(names=("a", "b")) -> tuple[ShownPhoto, ...]:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "teal").save(file, "PNG")
    return tuple(
        ShownPhoto(kind, file.getvalue(), names[0] if kind != "diverted" else None, (names[0], 0.614), (names[1], 0.9))
        for kind in KINDS
        for _ in range(3)
    )


VOID = {"meta", "img", "path", "use", "rect"}


class Parsed(HTMLParser):
    """Elements with their attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements, self.words, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def rendered(report: Report) -> str:
    return page.render(report.config, report.metrics, report.ported, report.photos)


def read(report) -> Parsed:
    return Parsed(rendered(report))


def test_it_is_written_where_it_is_asked_to(undrawn, clone, tmp_path):
    path = clone.report.save(tmp_path / "report.html")
    assert path == tmp_path / "report.html"
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert clone.report.save(str(path)) == path


def test_all_that_was_measured_is_on_it(undrawn, clone):
    found = read(clone.report)
    assert not found.open
    for _, text, _ in ROWS:
        assert text in found.text
    for drawing in figures.drawings(clone.config):
        assert drawing.title in found.text
        assert drawing.note in found.text
        assert all(cell in found.text for row in drawing.rows for cell in row)
    for words in (
        "91.0 %",
        "the target alone: 92.0 %",
        "the budget was 3.0 %",
        "5% of the source's 1,168,951",
        "60 images of new classes and 1,234 of old classes",
        "the source alone: 99.0 %",
        "Old images answered as new",
    ):
        assert words in found.text


@pytest.fixture(scope="module")
def whole(described) -> str:
    """The page with everything on it, figures and photos."""
    clone = Clone(CloneConfig.from_dict(json.loads(json.dumps(described))), {})
    clone.photos = photos()
    return rendered(clone.report)


def test_it_is_whole(whole):
    """Nothing is loaded and nothing runs, and a browser is told so."""
    found = Parsed(whole)
    policy = next(meta["content"] for meta in found.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert not found.all("script") + found.all("link") + found.all("iframe")
    for _, attributes in found.elements:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/"))
    assert not re.search(r"https?:|@import|url\((?!#)", whole)


def test_it_can_be_walked_by_those_who_do_not_see_it(clone, whole):
    found = Parsed(whole)
    assert found.all("html")[0]["lang"] == "en"
    assert [len(found.all(tag)) for tag in ("h1", "main", "title")] == [1, 1, 1]
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    for _, attributes in found.elements:
        assert attributes.get("aria-labelledby", ids[0]) in ids
        assert attributes.get("href", "#" + ids[0])[1:] in ids or attributes["href"].startswith("data:")
    drawn = [attributes for _, attributes in found.elements if attributes.get("role") == "img"]
    assert len(drawn) == len(figures.drawings(clone.config))
    assert all(len(attributes["aria-label"]) > 20 for attributes in drawn)
    assert all(attributes["alt"] for attributes in found.all("img"))
    assert all(attributes["scope"] in ("col", "row") for attributes in found.all("th"))


def test_names_stay_text(clone, whole):
    clone.photos, plain = photos(), Parsed(whole)
    for entry in clone.config.classes[1:]:
        entry.label = NASTY[: 190 - entry.source_index]
    clone.config.adapters[0].metrics["regime"] = NASTY
    clone.config.source.hub_id = None
    found = read(clone.report)
    assert [tag for tag, _ in found.elements if tag != "tspan"] == [tag for tag, _ in plain.elements if tag != "tspan"]
    assert NASTY in found.text
    assert "{{ 7 * 7 }}" in found.text


def test_photos_are_shown_before_and_after(undrawn, clone):
    vars(clone)["photos"] = photos(("heron", "stork"))
    found = read(clone.report)
    assert [image["alt"] for image in found.all("img")] == ["A photo of heron"] * 9 + [
        "A photo whose class is not known"
    ] * 3
    assert all(title in found.text for title in KINDS.values())
    assert "before heron 61 % after stork 90 %" in found.text
    assert "61\N{NO-BREAK SPACE}%" in found.words


def test_images_of_other_classes_are_called_that(undrawn, clone):
    """Regime R2: no image of the target was seen."""
    vars(clone)["photos"] = photos()
    clone.config.adapters[0].metrics.update(regime="R2", ori=None, locality_budget=None)
    found = read(clone.report)
    for words in (
        "Other images answered as new",
        "1,234 of other classes",
        "images of other classes of the source",
        OTHERS,
    ):
        assert words in found.text
    for words in ("Old images", "images of old classes", "of old images", KINDS["diverted"], "target images"):
        assert words not in found.text


def test_of_one_class_the_source_alone_says_nothing(undrawn, clone):
    clone.config.classes = clone.config.classes[:1]
    found = read(clone.report)
    assert "the target alone: 92.0 %" in found.text
    assert "the source alone:" not in found.text
    assert "cloned classes 87.5 % with the clone" in figures.drawings(clone.config)[0].alt


def test_without_photos_it_says_why(undrawn, clone):
    found = read(clone.report)
    assert "Photos are not part of an artifact" in found.text
    assert not found.all("img")


def test_without_matplotlib_the_numbers_are_open(undrawn, clone):
    found = read(clone.report)
    assert not found.all("svg")
    assert all("open" in attributes for attributes in found.all("details"))
    assert "pip install 'pnc-hub[clone]'" in found.text


def test_a_clone_of_which_nothing_was_measured_has_a_page(saved_clone):
    found = read(Clone.from_pretrained(saved_clone).report)
    assert "Nothing that could be drawn was measured" in found.text
    assert "not measured" in found.text


def test_a_target_that_did_not_come_back_is_not_hidden(undrawn, clone):
    clone.config.adapters[0].metrics["restored"] = False
    assert any(attributes.get("role") == "alert" for _, attributes in read(clone.report).elements)


def test_targets_that_it_was_ported_to_have_their_figures_and_table(undrawn, clone):
    first, universal = clone.config.adapters
    other = replace(first, name="vit-1", metrics={"agreement": 0.956}, series={"curve": first.series["curve"]})
    clone.config.adapters = [first, other, universal]
    found = read(clone.report)
    assert "Insertion points of vit-1" in found.text
    assert "Ported to vit-1" in found.text
    assert "95.6 %" in found.text


# Run in a page that shows the report in frames; frames follow the colour scheme of the element that holds them.
LOOK = """
const luminance = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
const behind = node => { for (; node; node = node.parentElement) {
  const colour = numbers(getComputedStyle(node).backgroundColor);
  if (colour.length < 4 || colour[3] > 0) return colour; } };
const contrast = (a, b) => { const both = [luminance(a), luminance(b)];
  return (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05); };
const look = frame => {
  const inner = frame.contentDocument, root = inner.documentElement;
  inner.querySelectorAll("details").forEach(one => one.open = true);
  const texts = [...inner.body.querySelectorAll("*")].filter(node =>
    [...node.childNodes].some(child => child.nodeType === 3 && child.data.trim()) && node.getClientRects().length);
  const style = node => frame.contentWindow.getComputedStyle(node);
  const inside = (a, b) => a.left >= b.left - 1 && a.right <= b.right + 1 && a.top >= b.top - 1 && a.bottom <= b.bottom + 1;
  return {
    width: frame.contentWindow.innerWidth, overflow: root.scrollWidth - root.clientWidth,
    page: style(inner.body).backgroundColor,
    wide: [...inner.querySelectorAll("body *:not(svg *)")].filter(node => !node.closest(".scroll") &&
      node.getBoundingClientRect().right > root.clientWidth + 1).map(node => node.tagName),
    drawings: [...inner.querySelectorAll(".drawing svg")].map(svg => { const box = svg.getBoundingClientRect();
      const scale = box.width / svg.viewBox.baseVal.width, words = [...svg.querySelectorAll("text")];
      return { width: box.width, height: box.height,
        smallest: Math.min(...words.map(word => parseFloat(style(word).fontSize) * scale)),
        cut: words.filter(word => !inside(word.getBoundingClientRect(), box)).map(word => word.textContent) }; }),
    pictures: [...inner.images].map(image => [image.naturalWidth, image.getBoundingClientRect().width]),
    faint: texts.map(node => [contrast(numbers(node.closest("svg") ? style(node).fill : style(node).color), behind(node)),
      node.textContent.slice(0, 40)]).filter(([value]) => value < 4.5),
    texts: texts.length,
    loaded: frame.contentWindow.performance.getEntriesByType("resource").map(one => one.name)
      .filter(name => !name.startsWith("data:")),
  };
};
addEventListener("load", () => { const found = {};
  document.querySelectorAll("iframe").forEach(frame => found[frame.id] = look(frame));
  document.body.textContent = JSON.stringify(found); });
"""


@pytest.fixture(scope="module")
def seen(described, tmp_path_factory) -> dict:
    """What a browser makes of the page with long names, at each width and in each colour scheme."""
    if BROWSER is None:
        pytest.skip("no chromium or google-chrome on the PATH")
    clone = Clone(CloneConfig.from_dict(json.loads(json.dumps(described))), {})
    clone.config.classes[0].label, clone.config.classes[1].label = "a" * 200, "日本語 the " + "very " * 20 + "long"
    vars(clone)["photos"] = photos(("b" * 120, "c d " * 30))
    text = html.escape(rendered(clone.report))
    frames = (
        f'<iframe id="{name}" style="border:0;width:{width}px;height:900px;color-scheme:{scheme}" srcdoc="{text}"></iframe>'
        for name, (width, scheme) in SHAPES.items()
    )
    folder = tmp_path_factory.mktemp("browser")
    (folder / "look.html").write_text(
        f'<!DOCTYPE html><meta charset="utf-8"><script>{LOOK}</script><body>{"".join(frames)}</body>', encoding="utf-8"
    )
    options = (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        f"--user-data-dir={folder}/profile",
    )
    command = [BROWSER, *options, "--virtual-time-budget=20000", "--dump-dom", (folder / "look.html").as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True).stdout
    return json.loads(html.unescape(re.search(r"<body>(.*)</body>", shown, re.DOTALL)[1]))


@pytest.mark.browser
@pytest.mark.parametrize("shape", SHAPES)
class TestInABrowser:
    def test_nothing_is_wider_than_the_screen(self, seen, shape):
        assert seen[shape]["width"] == SHAPES[shape][0]
        assert seen[shape]["overflow"] == 0
        assert seen[shape]["wide"] == []

    def test_figures_are_there_and_their_letters_can_be_read(self, seen, shape):
        assert len(seen[shape]["drawings"]) == 6
        for drawing in seen[shape]["drawings"]:
            assert drawing["width"] > 280
            assert drawing["height"] > 80
            assert drawing["smallest"] >= 8.5
            assert drawing["cut"] == []

    def test_photos_are_there(self, seen, shape):
        assert len(seen[shape]["pictures"]) == 12
        assert all(natural == 8 and 80 < width < 250 for natural, width in seen[shape]["pictures"])

    def test_text_stands_out_from_what_is_behind_it(self, seen, shape):
        assert seen[shape]["texts"] > 150
        assert seen[shape]["faint"] == []

    def test_nothing_is_loaded(self, seen, shape):
        assert seen[shape]["loaded"] == []


@pytest.mark.browser
def test_night_is_dark_and_day_is_light(seen):
    brightness = {shape: sum(map(int, re.findall(r"\d+", found["page"])[:3])) for shape, found in seen.items()}
    for width in (360, 1280):
        assert brightness[f"{width}-dark"] < 150
        assert brightness[f"{width}-light"] > 600
