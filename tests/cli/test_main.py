"""The command line as a whole: help, errors, exit codes, completion, and what it does when nobody watches."""

import json
import re
import subprocess
import sys
import warnings

import click
import pytest
from hub_fixtures import repo, token  # noqa: F401
from timm.models import register_model
from torch import nn

import pnc_hub
from cli.running import on_terminal, program, run
from pnc_hub.cli import main

COMMANDS = {
    *("check", "clone", "demo", "evaluate", "info", "points", "port", "predict", "publish", "search", "verify"),
}


class Picky(nn.Module):
    """Does something else for every number of images."""

    def forward(self, x):
        return x if len(x) > 1 else -x


@register_model
def picky(pretrained=False, **_):
    return Picky()


class TestHelp:
    def test_fits_a_screen(self):
        lines = run("--help", COLUMNS="80").output.splitlines()
        assert len(lines) <= 24
        assert max(map(len, lines)) <= 80

    def test_lists_every_command_with_what_it_does(self):
        text = run("--help", COLUMNS="80").output
        listed = dict(re.findall(r"^  (\w+) +(\S.*)$", text.split("Learn a clone:")[1], re.MULTILINE))
        assert set(listed) == set(main.commands) == COMMANDS
        assert not [told for told in listed.values() if told.endswith("...")]

    @pytest.mark.parametrize("name", sorted(COMMANDS))
    def test_of_each_command(self, name):
        result = run(name, "-h", COLUMNS="80")
        assert result.exit_code == 0
        assert result.output.startswith(f"Usage: main {name}")
        assert "--json" in result.output
        assert max(map(len, result.output.splitlines())) <= 80

    @pytest.mark.parametrize("name", sorted(COMMANDS))
    def test_tells_of_every_option(self, name):
        options = [one for one in main.commands[name].params if isinstance(one, click.Option) and not one.hidden]
        assert [one.name for one in options if not one.help] == []

    def test_imports_nothing_that_takes_long(self):
        code = "import sys, pnc_hub.cli; print(sorted({name.partition('.')[0] for name in sys.modules}))"
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        assert "'pnc_hub'" in found
        assert not [name for name in ("torch", "timm", "huggingface_hub", "numpy", "PIL") if f"'{name}'" in found]


def test_version():
    result = run("--version")
    assert result.exit_code == 0
    assert result.output.strip().endswith(pnc_hub.__version__)


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "code", "found"),
        [
            (["points", "no_such_model"], 1, "no_such_model"),
            (["points", "resnet18.no_such_tag"], 1, "no_such_tag"),
            (["points", "picky"], 1, "cannot be traced"),
            (["points"], 2, "Missing argument"),
            (["no-such-command"], 2, "No such command"),
            (["demo", "--seed", "x"], 2, "not a valid integer"),
            (["info", "no/such/folder"], 1, "no such folder"),
            (["verify", "no/such/folder"], 1, "no such folder"),
            (["publish", "no/such/folder", "alice/x"], 1, "no such folder"),
            (["check", "no_such_model", "alice/x"], 1, "no_such_model"),
            (["check", "resnet18", "alice/x", "--model-args", "[]"], 2, "a JSON object is needed"),
            (["check", "resnet18", "alice/x", "--model-args", "{"], 2, "a JSON object is needed"),
            (["check", "resnet18", "alice/x", "--checkpoint", "no such file"], 2, "does not exist"),
            (["search", "--target", "../x y"], 2, "give a timm model"),
            (["search", "--limit", "0"], 2, "not in the range"),
            (["info", "alice/no-such-clone"], 1, "no such repository"),
            (["predict", "--clone", "alice/no-such-clone", "."], 1, "no photo in .|no such repository"),
            (["predict", "--clone", "x", "no such photo"], 2, "does not exist"),
            (["evaluate", "--clone", "alice/no-such-clone", "--data", "x"], 1, "no such repository"),
            (["port", "no/such/folder", "--target", "resnet18", "--data", "x", "--output", "."], 1, "something else"),
        ],
    )
    def test_a_mistake_is_told_in_one_paragraph(self, arguments, code, found):
        result = run(*arguments)
        assert result.exit_code == code
        assert result.stdout == ""
        assert re.search(found, result.stderr)
        assert "Traceback" not in result.output
        assert isinstance(result.exception, SystemExit)
        told = [line for line in result.stderr.splitlines() if line and not line.startswith(("Usage:", "Try "))]
        assert len(told) == 1

    @pytest.mark.parametrize("arguments", [["--debug", "points", "picky"], ["points", "picky", "--debug"]])
    def test_debug_shows_where_an_error_came_from(self, arguments):
        assert isinstance(run(*arguments).exception, pnc_hub.errors.InsertionPointError)

    @pytest.mark.parametrize(
        ("raised", "said"),
        [
            (OSError(28, "No space left on device"), "OSError: [Errno 28] No space left on device"),
            (
                RuntimeError("out of\nmemory"),
                "RuntimeError: out of memory (not foreseen: the option --debug shows where",
            ),
            (KeyboardInterrupt(), "Aborted!"),
        ],
    )
    def test_whatever_happens_there_is_no_traceback(self, monkeypatch, raised, said):
        @click.command()
        def broken():
            raise raised

        monkeypatch.setitem(main.commands, "broken", broken)
        result = run("broken")
        assert (result.exit_code, result.stdout) == (1, "")
        assert said in result.stderr
        assert "Traceback" not in result.stderr

    def test_warnings_are_a_line_without_the_place_in_the_code(self, monkeypatch):
        @click.command()
        def careful():
            warnings.warn("the gate has\nseen little", stacklevel=1)
            warnings.warn("old name", FutureWarning, stacklevel=1)
            click.echo("done")

        monkeypatch.setitem(main.commands, "careful", careful)
        result = run("careful")
        assert (result.stdout, result.stderr) == ("done\n", "Warning: the gate has seen little\n")

    def test_what_has_to_be_installed_is_said_before_anything_is_done(self):
        commands = [
            ["clone", "--source", "x", "--target", "x", "--classes", "x", "--data", "x", "--output", "x"],
            ["port", "x", "--target", "x", "--data", "x", "--output", "x"],
            ["evaluate", "--clone", "x", "--data", "x"],
        ]
        code = (
            "import json, sys; sys.modules['sklearn'] = None; from click.testing import CliRunner;"
            "from pnc_hub.cli import main; import pnc_hub.cloning.images.files;"  # which predict reads with
            " results = [CliRunner().invoke(main, one) for one in json.loads(sys.argv[1])];"
            "print(json.dumps([(one.exit_code, one.stdout, one.stderr) for one in results]))"
        )
        ended = subprocess.run([sys.executable, "-c", code, json.dumps(commands)], capture_output=True, check=True)
        for code, printed, said in json.loads(ended.stdout):
            assert (code, printed) == (1, "")
            assert said.startswith("ModuleNotFoundError: learning a clone needs sklearn")
            assert "pip install 'pnc-hub[clone]'" in said
            assert len(said.splitlines()) == 1


class TestCompletion:
    def complete(self, *words):
        words = ["pnc-hub", *words]
        asked = {"COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
        found = program(_PNC_HUB_COMPLETE="bash_complete", **asked).stdout
        return [tuple(line.split(",")) for line in found.splitlines()]

    @pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
    def test_a_script_for_each_shell(self, shell):
        result = run("--completion", shell)
        assert result.exit_code == 0, result.output
        assert "_PNC_HUB_COMPLETE" in result.stdout

    def test_commands_options_folders_and_models(self):
        assert self.complete("p") == [
            ("plain", "points"),
            ("plain", "port"),
            ("plain", "predict"),
            ("plain", "publish"),
        ]
        assert ("plain", "--target-data") in self.complete("clone", "--target")
        assert self.complete("info", "some") == [("dir", "some")]
        assert ("plain", "resnet50") in self.complete("points", "resnet5")
        assert ("plain", "resnet50.a1_in1k") in self.complete("clone", "--target", "resnet50.a")


class TestProgress:
    @pytest.mark.slow
    def test_nothing_but_the_result_is_printed_into_a_pipe(self, hub, repo, token, saved_clone):  # noqa: F811
        """Where the Hub's client would show a bar for every file."""
        result = program("publish", saved_clone, repo, HF_TOKEN=token)
        assert result.returncode == 0, result.stderr
        assert re.fullmatch(rf"Published {repo}@[0-9a-f]{{40}}\n{hub.endpoint}\S+\n", result.stdout)
        assert result.stderr == ""

    def test_on_a_terminal_there_is_a_bar_until_it_is_done(self, photos, model, saved_clone):
        printed, seen = on_terminal("predict", "--clone", saved_clone, *model, photos, "--json")
        assert len(json.loads(printed)["photos"]) == 22
        first, *_, last = [line for line in seen.split("\r") if line]
        assert first.startswith("predict:   0%")
        assert last.isspace()
