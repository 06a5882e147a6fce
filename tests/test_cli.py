"""The command line: what it prints, and how it fails."""

import itertools
import json
import re
import warnings

import pytest
import torch
from click.testing import CliRunner
from common import tiny_model
from hub_fixtures import edit
from timm.models import register_model, save_for_hf
from torch import nn

import pnc_hub
from pnc_hub.cli import main

_numbers = itertools.count()


def run(*arguments):
    return CliRunner().invoke(main, arguments)


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], *([name, "-h"] for name in main.commands)])
def test_help(arguments):
    result = run(*arguments)
    assert result.exit_code == 0
    assert result.output.startswith("Usage:")
    assert "--help" in result.output


def test_help_lists_every_command():
    lines = run("--help").output.split("Commands:")[1].split("\n")
    assert {line.split()[0] for line in lines if line.strip()} == set(main.commands)
    assert set(main.commands) == {"check", "demo", "info", "points", "publish", "search", "verify"}


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
        (["info", "no/such/folder"], "no such folder"),
        (["verify", "no/such/folder"], "no such folder"),
        (["publish", "no/such/folder", "alice/x"], "no such folder"),
        (["check", "no_such_model", "alice/x"], "no_such_model"),
        (["check", "resnet18", "alice/x", "--model-args", "[]"], "a JSON object is needed"),
        (["check", "resnet18", "alice/x", "--checkpoint", "no such file"], "does not exist"),
        (["search", "--target", "../x y"], "give a timm model"),
        (["search", "--limit", "0"], "not in the range"),
        (["info", "alice/no-such-clone"], "no such repository"),
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
    result = run("--debug", "points", "no_such_model")
    assert isinstance(result.exception.__cause__, RuntimeError)


@pytest.fixture
def user(hub, monkeypatch) -> str:
    """The name of somebody who is logged in and has published nothing yet."""
    name = f"user-{next(_numbers)}"
    monkeypatch.setenv("HF_TOKEN", hub.add_user(name))
    return name


@pytest.fixture
def model_name(tmp_path) -> str:
    """What timm calls a model in a folder: the one that ``saved_clone`` was made for."""
    save_for_hf(tiny_model("mobilenet"), tmp_path / "model")
    return f"local-dir:{tmp_path / 'model'}"


def told(*arguments, code: int = 0):
    """What a command prints as JSON."""
    result = run(*arguments, "--json")
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


class TestClones:
    def test_published_found_shown_verified(self, user, saved_clone):
        name = f"{user}/insects"
        published = run("publish", str(saved_clone), name, "--message", "Insects")
        assert published.exit_code == 0, published.output
        commit = re.search(f"Published {name}@([0-9a-f]{{40}})\n", published.stdout)[1]
        found = run("search", "ant", "wasp", "--target", "mobilenetv2_035", "--author", user)
        assert found.exit_code == 0
        assert [line.split()[0] for line in found.stdout.splitlines()] == ["clone", name]
        shown = run("info", name)
        assert shown.exit_code == 0
        assert f"{name}@{commit}" in shown.stdout
        assert "any timm classifier, read at input" in shown.stdout
        verified = run("verify", f"{name}@{commit}")
        assert verified.exit_code == 0
        assert verified.stdout.startswith(f"{name}@{commit}: passed\n")

    def test_json(self, user, saved_clone):
        name = f"{user}/insects"
        published = told("publish", str(saved_clone), name, "--private")
        assert told("publish", str(saved_clone), name)["revision"] == published["revision"]
        (found,) = told("search", "--author", user)
        assert (found["repo_id"], found["sha"]) == (name, published["revision"])
        assert found["labels"] == ["ant", "bee", "wasp"]
        shown = told("info", name, "--revision", "main")
        assert shown["revision"] == published["revision"]
        assert shown["config"]["source"]["architecture"] == "resnet18"
        assert told("verify", name)["passed"] is True

    def test_a_pull_request(self, user, saved_clone, clone_folder):
        name = f"{user}/insects"
        run("publish", str(saved_clone), name)
        edit(clone_folder, lambda config: config["classes"][0].update(label="moth"))
        proposed = told("publish", str(clone_folder), name, "--create-pr")
        assert proposed["pull_request"].endswith(f"{name}/discussions/1")
        assert told("info", f"{name}@refs/pr/1")["config"]["classes"][0]["label"] == "moth"

    def test_nothing_found(self, user):
        result = run("search", "no such class")
        assert (result.exit_code, result.stdout) == (0, "No clone on the Hub meets all of that.\n")
        assert told("search", "no such class") == []

    def test_not_logged_in(self, user, saved_clone, monkeypatch):
        monkeypatch.delenv("HF_TOKEN")
        result = run("publish", str(saved_clone), f"{user}/insects")
        assert result.exit_code == 1
        assert re.match("PublishError: .*hf auth login", result.stderr.splitlines()[-1])

    def test_a_damaged_clone(self, clone_folder):
        (clone_folder / "prefix.safetensors").unlink()
        result = run("verify", str(clone_folder))
        assert result.exit_code == 1
        assert "FAILED       prefix.safetensors" in result.stdout
        assert told("verify", str(clone_folder), code=1)["passed"] is False


class TestCheck:
    def test_yes(self, model_name, saved_clone):
        result = run("check", model_name, str(saved_clone))
        assert result.exit_code == 0, result.output
        assert re.search(r"attaches +yes\n", result.stdout)
        found = told("check", model_name, str(saved_clone))
        assert found["attaches"] is True
        assert found["insertion"] == "blocks.3.3"

    def test_no(self, model_name, saved_clone):
        arguments = ["check", model_name, str(saved_clone), "--model-args", '{"num_classes": 0}']
        result = run(*arguments)
        assert result.exit_code == 1
        assert "NoClassifierError" in result.stdout
        assert told(*arguments, code=1)["problem"]["type"] == "NoClassifierError"

    def test_weights_of_ones_own(self, tmp_path, saved_clone):
        torch.save(tiny_model("mobilenet").state_dict(), tmp_path / "own.pt")
        arguments = ["mobilenetv2_035", str(saved_clone), "--model-args", '{"num_classes": 7}']
        found = told("check", *arguments, "--checkpoint", str(tmp_path / "own.pt"))
        assert found["universal"] is False
        torch.save(tiny_model("mobilenet", seed=1).state_dict(), tmp_path / "own.pt")
        assert told("check", *arguments, "--checkpoint", str(tmp_path / "own.pt"))["universal"] is True

    def test_damaged_weights_of_the_model(self, tmp_path, saved_clone):
        (tmp_path / "own.pt").write_bytes(b"no weights")
        with warnings.catch_warnings(record=True):
            result = run("check", "resnet18", str(saved_clone), "--checkpoint", str(tmp_path / "own.pt"))
        assert result.exit_code == 1
        assert isinstance(result.exception, SystemExit)
