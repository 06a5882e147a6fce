"""Classes as people write them down."""

import click
import pytest

from pnc_hub.cli.classes import labels, parse


def parsed(given):
    return parse(None, None, str(given))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("heron\ncrane\n", ["heron", "crane"]),
        ("\ufeffheron\r\n\r\n  crane  \r\n", ["heron", "crane"]),
        ("131\n134", [131, 134]),
        ("great grey owl, great gray owl", ["great grey owl, great gray owl"]),
        ("heron\t131\ngreat grey owl, great gray owl\t24", {"heron": 131, "great grey owl, great gray owl": 24}),
        ("heron,131\ncrane, 134", {"heron": 131, "crane": 134}),
        ('{"heron": 131, "crane": 134}', {"heron": 131, "crane": 134}),
    ],
)
def test_files(tmp_path, text, found):
    (tmp_path / "birds").write_text(text, encoding="utf-8")
    assert parsed(tmp_path / "birds") == found


def test_names_on_the_command_line():
    assert parsed("heron, little blue heron,131,") == ["heron", "little blue heron", 131]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("heron\t131\ncrane", "'crane' has none"),
        ("heron\t131\nheron\t134", "'heron' is named twice"),
        ("131\theron", "its label, a tab and its index"),
        ("\n\n", "names no class"),
        ('{"heron": "131"}', "the index '131'"),
        ('{"heron": true}', "the index True"),
        ('{"heron": 131, "heron": 134}', "'heron' is named twice"),
        ('{"heron": ', "a JSON object"),
        (b"\xff\xfe\x00", "no text file"),
    ],
)
def test_mistakes(tmp_path, text, said):
    (tmp_path / "birds").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(click.BadParameter, match=said):
        parsed(tmp_path / "birds")


@pytest.mark.parametrize("given", ["birds.txt", "my/birds.csv", "birds.json"])
def test_a_file_that_is_not_there_is_not_taken_for_a_class(given):
    with pytest.raises(click.BadParameter, match="there is no file"):
        parsed(given)


def test_lines_of_a_file_are_labels(tmp_path):
    (tmp_path / "names").write_text("a, b\n\nc\n")
    assert labels(None, None, tmp_path / "names") == ["a, b", "c"]
    assert labels(None, None, None) is None
