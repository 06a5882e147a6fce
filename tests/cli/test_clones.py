"""Publishing and finding, over the wire, and looking at one clone."""

import itertools
import re

import pytest
import torch
from common import tiny_model
from hub_fixtures import edit
from timm.models import save_for_hf

from cli.running import run, told

_numbers = itertools.count()


@pytest.fixture
def user(hub, monkeypatch) -> str:
    """The name of somebody who is logged in and has published nothing yet."""
    name = f"user-{next(_numbers)}"
    monkeypatch.setenv("HF_TOKEN", hub.add_user(name))
    return name


def test_published_found_shown_verified(user, saved_clone):
    name = f"{user}/insects"
    published = run("publish", saved_clone, name, "--message", "Insects")
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


def test_json(user, saved_clone):
    name = f"{user}/insects"
    published = told("publish", saved_clone, name, "--private")
    assert told("publish", saved_clone, name)["revision"] == published["revision"]
    (found,) = told("search", "--author", user)
    assert (found["repo_id"], found["sha"]) == (name, published["revision"])
    assert found["labels"] == ["ant", "bee", "wasp"]
    shown = told("info", name, "--revision", "main")
    assert shown["revision"] == published["revision"]
    assert shown["config"]["source"]["architecture"] == "resnet18"
    assert told("verify", name)["passed"] is True


def test_a_pull_request(user, saved_clone, clone_folder):
    name = f"{user}/insects"
    run("publish", saved_clone, name)
    edit(clone_folder, lambda config: config["classes"][0].update(label="moth"))
    proposed = told("publish", clone_folder, name, "--create-pr")
    assert proposed["pull_request"].endswith(f"{name}/discussions/1")
    assert told("info", f"{name}@refs/pr/1")["config"]["classes"][0]["label"] == "moth"


def test_nothing_found(user):
    result = run("search", "no such class")
    assert (result.exit_code, result.stdout) == (0, "No clone on the Hub meets all of that.\n")
    assert told("search", "no such class") == []


def test_not_logged_in(user, saved_clone, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    result = run("publish", saved_clone, f"{user}/insects")
    assert result.exit_code == 1
    assert re.match("PublishError: .*hf auth login", result.stderr.splitlines()[-1])


@pytest.fixture
def model_name(tmp_path) -> str:
    """What timm calls a model in a folder: the one that ``saved_clone`` was made for."""
    save_for_hf(tiny_model("mobilenet"), tmp_path / "model")
    return f"local-dir:{tmp_path / 'model'}"


def test_a_damaged_clone(clone_folder):
    (clone_folder / "trunk.safetensors").unlink()
    result = run("verify", clone_folder)
    assert result.exit_code == 1
    assert "FAILED       trunk.safetensors" in result.stdout
    assert told("verify", clone_folder, code=1)["passed"] is False


class TestCheck:
    def test_yes(self, model_name, saved_clone):
        result = run("check", model_name, saved_clone)
        assert result.exit_code == 0, result.output
        assert re.search(r"attaches +yes\n", result.stdout)
        found = told("check", model_name, saved_clone)
        assert found["attaches"] is True
        assert found["insertion"] == "blocks.3.3"

    def test_no(self, model_name, saved_clone):
        arguments = ["check", model_name, saved_clone, "--model-args", '{"num_classes": 0}']
        result = run(*arguments)
        assert result.exit_code == 1
        assert "NoClassifierError" in result.stdout
        assert told(*arguments, code=1)["problem"]["type"] == "NoClassifierError"

    def test_weights_of_ones_own(self, tmp_path, saved_clone):
        torch.save(tiny_model("mobilenet").state_dict(), tmp_path / "own.pt")
        arguments = ["mobilenetv2_035", saved_clone, "--model-args", '{"num_classes": 7}']
        found = told("check", *arguments, "--checkpoint", tmp_path / "own.pt")
        assert found["universal"] is False
        torch.save(tiny_model("mobilenet", seed=1).state_dict(), tmp_path / "own.pt")
        assert told("check", *arguments, "--checkpoint", tmp_path / "own.pt")["universal"] is True

    @pytest.mark.parametrize(
        ("content", "said"), [(b"no weights", "if the weights in .*own.pt"), (None, "another number of classes")]
    )
    def test_weights_that_do_not_fit(self, tmp_path, saved_clone, content, said):
        torch.save(tiny_model("mobilenet").state_dict(), tmp_path / "own.pt")
        if content:
            (tmp_path / "own.pt").write_bytes(content)
        result = run("check", "mobilenetv2_035", saved_clone, "--checkpoint", tmp_path / "own.pt")
        assert result.exit_code == 1
        assert re.match(f"TargetError: timm cannot make 'mobilenetv2_035' .*{said}", result.stderr.splitlines()[-1])
