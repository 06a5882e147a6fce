"""The command line: what it prints, and how it fails."""

import re

import pytest
from click.testing import CliRunner
from timm.models import register_model
from torch import nn

import pnc_hub
from pnc_hub.cli import main


def run(*arguments):
    return CliRunner().invoke(main, arguments)


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["demo", "--help"], ["points", "-h"]])
def test_help(arguments):
    result = run(*arguments)
    assert result.exit_code == 0
    assert result.output.startswith("Usage:")
    assert "--help" in result.output


def test_help_lists_every_command():
    lines = run("--help").output.split("Commands:")[1].split("\n")
    assert {line.split()[0] for line in lines if line.strip()} == set(main.commands)
    assert {"demo", "points"} <= set(main.commands)


def test_version():
    result = run("--version")
    assert result.exit_code == 0
    assert result.output.strip().endswith(pnc_hub.__version__)


def test_points_lists_the_insertion_points_of_a_model():
    result = run("points", "resnet18")
    lines = [line.split() for line in result.output.splitlines()]
    assert result.exit_code == 0
    assert lines[0] == ["name", "channels", "reduction", "layout", "grid"]
    assert lines[1] == ["input", "3", "1", "NCHW", "224x224"]
    assert ["layer3.1", "256", "16", "NCHW", "14x14"] in lines
    assert lines[-1] == ["global_pool", "512", "224", "NC", "1x1"]


class Picky(nn.Module):
    """Does something else for every number of images."""

    def forward(self, x):
        return x if len(x) > 1 else -x


@register_model
def picky(pretrained=False, **_):
    return Picky()


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["points", "no_such_model"], "no_such_model"),
        (["points", "resnet18.no_such_tag"], "no_such_tag"),
        (["points", "picky"], "can not be traced"),
        (["points"], "Missing argument"),
        (["no-such-command"], "No such command"),
        (["demo", "--seed", "x"], "not a valid integer"),
    ],
)
def test_a_mistake_is_told_in_one_paragraph(arguments, found):
    result = run(*arguments)
    assert result.exit_code not in (0, None)
    assert re.search(found, result.output)
    assert "Traceback" not in result.output
    assert isinstance(result.exception, SystemExit)
    told = [line for line in result.output.splitlines() if line and not line.startswith(("Usage:", "Try "))]
    assert len(told) == 1


def test_debug_shows_where_an_error_came_from():
    result = run("--debug", "points", "picky")
    assert isinstance(result.exception, pnc_hub.errors.InsertionPointError)
