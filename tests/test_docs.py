"""Every code block of the documentation runs, in order, as it is shown; every link leads somewhere."""

import configparser
import itertools
import json
import os
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import docs_world
import pytest
import torch
import yaml
from click.testing import CliRunner
from common import images
from conftest import HUB
from markdown_it import MarkdownIt
from markdown_it.token import Token

from pnc_hub.cli import main

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LINKED = [*PAGES, ROOT / "CHANGELOG.md", *sorted((ROOT / "recipes").rglob("*.md"))]
MARKDOWN = MarkdownIt().enable("table")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def tokens(page: Path) -> Iterator[Token]:
    for token in MARKDOWN.parse(page.read_text(encoding="utf-8")):
        yield token
        yield from token.children or ()


def blocks(page: Path) -> list[Token]:
    return [token for token in tokens(page) if token.type == "fence"]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> tuple[Path, str]:
    """Folder of photos, and the token of the user whose clones these are."""
    folder = tmp_path_factory.mktemp("world")
    return folder, docs_world.build(HUB, folder)


@pytest.fixture
def place(world, tmp_path, monkeypatch) -> Path:
    """The folder that a reader is in: with photos, logged in."""
    folder, token = world
    for entry in folder.iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", token)
    return tmp_path


# Clones are learned with the whole search at 224 pixels.
SLOW = {"README.md", "docs/cli.md"}


def with_code() -> Iterator[object]:
    """Pages with blocks of code."""
    for page in PAGES:
        if blocks(page):
            yield pytest.param(page, id=name_of(page), marks=[pytest.mark.slow] if name_of(page) in SLOW else [])


@pytest.mark.filterwarnings("ignore")  # what users are warned of is shown in the text
@pytest.mark.parametrize("page", with_code())
def test_code_blocks_run(page, place, monkeypatch):
    module = ModuleType(f"docs_{page.stem}".lower())
    monkeypatch.setitem(sys.modules, module.__name__, module)  # classes that are defined in a block have a home
    module.images = images(side=224)
    for block in blocks(page):
        RUN[block.info](block, page, vars(module))


def run_python(block: Token, page: Path, namespace: dict) -> None:
    code = "\n" * (block.map[0] + 1) + block.content  # lines in a traceback are those of the page
    with torch.random.fork_rng():
        exec(compile(code, str(page), "exec"), namespace)


def run_shell(block: Token, page: Path, namespace: dict) -> None:
    for line in block.content.replace("\\\n", " ").splitlines():
        for command in line.split("&&"):
            program, *arguments = shlex.split(command)
            assert program in PROGRAMS or program.startswith(".ci/"), f"{name_of(page)}: nobody checks {command!r}"
            PROGRAMS.get(program, is_script)(program, arguments)


def is_script(program: str, arguments: list[str]) -> None:
    assert os.access(ROOT / program, os.X_OK)


def pnc_hub(program: str, arguments: list[str]) -> None:
    if arguments[0] == "demo":  # takes two minutes; tests/cli/test_demo.py runs its parts, .ci/run all of it
        assert main.commands["demo"].make_context("demo", arguments[1:])
        return
    result = CliRunner().invoke(main, ["--debug", *arguments])
    assert result.exit_code == 0, f"{arguments}: {result.output} {result.exception!r}"


def pip(program: str, arguments: list[str]) -> None:
    assert arguments[0] == "install"
    for extra in re.findall(r"\.\[(\w+)\]", " ".join(arguments)):
        assert extra in extras()


def python(program: str, arguments: list[str]) -> None:
    if arguments[0] == "-m":
        assert arguments[1] == "venv" or arguments[1] in extras()["dev"]
        return
    options = {argument for argument in arguments[1:] if argument.startswith("--")}
    source = (ROOT / arguments[0]).read_text()
    frame = (ROOT / "recipes" / "frame").glob("*.py") if arguments[0].startswith("recipes/") else ()
    common = "".join(path.read_text() for path in frame)
    assert not [option for option in options if f'"{option}"' not in source + common]


def pytest_(program: str, arguments: list[str]) -> None:
    assert all((ROOT / argument).exists() for argument in arguments if argument.startswith("tests"))


def of_dev(program: str, arguments: list[str]) -> None:
    """A tool that the extra for developers brings."""
    assert re.search(rf"^{program}\b", extras()["dev"], re.MULTILINE), f"the extra dev lacks {program}"


def of_shell(program: str, arguments: list[str]) -> None:
    """Nothing to check."""


def extras() -> dict[str, str]:
    """What setup.cfg says of each extra."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    return dict(setup["options.extras_require"])


PROGRAMS = {
    **{"pnc-hub": pnc_hub, "pip": pip, "python": python, "pytest": pytest_},
    **dict.fromkeys(("ruff", "mypy", "pre-commit", "pdoc"), of_dev),
    "lint-imports": lambda program, arguments: of_dev("import-linter", arguments),
    **dict.fromkeys((".", "export"), of_shell),
}
RUN = {
    "python": run_python,
    "sh": run_shell,
    "json": lambda block, page, namespace: json.loads(block.content),
    "yaml": lambda block, page, namespace: yaml.safe_load(block.content),
}


def test_the_first_two_commands_run_the_demo_and_the_tests():
    first = blocks(ROOT / "README.md")[0]
    assert first.content.splitlines() == ["pip install '.[clone]' && pnc-hub demo", "pip install '.[test]' && pytest"]


@pytest.mark.parametrize("page", LINKED, ids=name_of)
def test_links_lead_somewhere(page):
    for token in tokens(page):
        link = token.attrs.get("href") or token.attrs.get("src")
        if link and not str(link).startswith("https://"):
            path, _, anchor = str(link).partition("#")
            linked = (page.parent / path).resolve() if path else page
            assert linked.exists(), link
            assert not anchor or anchor in anchors(linked), link


def anchors(page: Path) -> set[str]:
    """Those of the headings, as GitHub makes them."""
    everything = list(tokens(page))
    titles = [after.content for token, after in itertools.pairwise(everything) if token.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_page_is_in_the_index():
    listed = (ROOT / "docs" / "README.md").read_text()
    assert [
        page.name for page in (ROOT / "docs").glob("*.md") if page.stem != "README" and f"({page.name})" not in listed
    ] == []


def test_every_command_is_described():
    text = (ROOT / "docs" / "cli.md").read_text()
    assert [name for name in main.commands if f"| `{name}` |" not in text] == []


def test_the_picture_is_for_light_and_dark():
    picture = ROOT / "docs" / "concepts.svg"
    assert ElementTree.parse(picture).getroot().get("role") == "img"
    style = picture.read_text()
    used, light, dark = (
        set(re.findall(pattern, part))
        for pattern, part in (
            (r'class="(\w+)"', style),
            (r"\.(\w+)", style.partition("@media")[0]),
            (r"\.(\w+)", style.partition("@media (prefers-color-scheme: dark)")[2].partition("</style>")[0]),
        )
    )
    assert used <= light
    assert used <= dark
