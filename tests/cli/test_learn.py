"""Learning from checkpoints and photos on disk, by commands alone."""

import json
import math
import re
import shutil
from pathlib import Path

import pytest
from common import source_args, tiny_model
from huggingface_hub import HfApi
from timm.models import save_for_hf

from cli.photographs import CLONED, OLD, named, take
from cli.running import run, told
from pnc_hub.cli.common import show

PLACE = ("--insertion", "stages.1", "--cut", "layer3.1")
QUICKLY = (*PLACE, "--epochs", "0", "--keep", "0.9", "--no-flip", "--device", "cpu")


@pytest.fixture(scope="module")
def disk(tmp_path_factory) -> Path:
    """Photos, and a file with the classes."""
    folder = tmp_path_factory.mktemp("disk")
    take(folder / "photos", CLONED, 12)
    take(folder / "old", OLD, 10, seed=1)
    take(folder / "held-out", CLONED, 4, seed=2)
    take(folder / "held-out-old", OLD, 3, seed=3)
    (folder / "classes.txt").write_text("".join(f"{label}\t{index}\n" for label, index in CLONED.items()))
    return folder


@pytest.fixture(scope="module")
def models(disk) -> tuple[str, ...]:
    return *named("source", "resnet", disk, seed=1), *named("target", "convnext", disk)


def arguments(disk, models, output, **options):
    given = {"classes": disk / "classes.txt", "data": disk / "photos", "output": output, **options}
    pairs = [(f"--{name.replace('_', '-')}", value) for name, value in given.items()]
    return ["clone", *models, *(part for pair in pairs for part in pair), *QUICKLY]


@pytest.fixture(scope="module")
def learned(disk, models) -> dict:
    """What the command says of a clone that it has learned."""
    result = run(*arguments(disk, models, disk / "clone", target_data=disk / "old"), "--json")
    assert result.exit_code == 0, result.output
    assert not set("\r\x1b") & set(result.output)
    assert all(line.startswith("Warning: ") for line in result.stderr.splitlines())
    return json.loads(result.stdout)


def test_from_checkpoints_to_an_attached_clone(disk, learned):
    clone = learned["folder"]
    assert learned["labels"] == list(CLONED)
    assert (learned["metrics"]["insertion"], learned["metrics"]["cut"]) == ("stages.1", "layer3.1")
    assert learned["curve"][0]["insertion"] == "stages.1"
    shown = told("info", clone)["config"]
    assert shown["classes"] == [{"label": label, "source_index": index} for label, index in CLONED.items()]
    assert shown["source"]["model_args"] == {"num_classes": 7, "channels": [8, 16, 24, 32], "stem_width": 8}
    assert told("verify", clone)["passed"] is True
    model = named("model", "convnext", disk)
    checked = told("check", "convnext_atto", clone, *model)
    assert (checked["attaches"], checked["insertion"]) == (True, "stages.1")
    predicted = told("predict", "--clone", clone, *model, disk / "held-out")
    assert (predicted["model"], len(predicted["photos"]), predicted["unreadable"]) == ("convnext_atto", 12, [])
    measured = told(
        *("evaluate", "--clone", clone, *model, "--data", disk / "held-out", "--target-data", disk / "held-out-old")
    )
    assert measured["photos"] == {"cloned": 12, "target": 21}
    assert measured["restored"] is True
    top = [photo["top"][0] for photo in predicted["photos"]]
    shows = [Path(photo["file"]).parent.name for photo in predicted["photos"]]
    right = sum(answer["label"] == label for answer, label in zip(top, shows, strict=True))
    assert measured["tar"] == pytest.approx(right / 12)


def test_ported_in_place(disk, learned):
    options = ["--target-data", disk / "old", "--name", "mobile", "--device", "cpu", "--output", disk / "ported"]
    target = named("target", "mobilenet", disk)
    found = told("port", learned["folder"], *target, "--data", disk / "photos", *options)
    assert found["labels"] == list(CLONED)
    assert 0 <= found["ported"]["mobile"]["diverted"] <= 1
    checked = told("check", "mobilenetv2_035", found["folder"], *named("model", "mobilenet", disk))
    assert (checked["adapter"], checked["universal"]) == ("mobile", False)
    again = run("port", found["folder"], *target, "--data", disk / "photos", "--output", found["folder"])
    assert again.exit_code == 1
    assert "has an adapter for this" in again.stderr
    assert told("verify", found["folder"])["passed"] is True


def test_what_a_person_reads(disk, models):
    page = disk / "pages" / "report.html"
    options = {"seed": 3, "max_parameters": 10**6, "max_macs": 1e9, "report": page}
    result = run(*arguments(disk, models, disk / "again", **options))
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("Clone of 3 classes: ant, bee, wasp\n")
    assert f"Written: {(disk / 'again').resolve()}, {page}\n" in result.stdout
    assert page.read_text().lstrip().lower().startswith("<!doctype html")
    assert "pnc-hub publish" in result.stdout
    assert "Warning: the gate has seen images of the cloned classes alone" in result.stderr


def test_from_names_alone(disk, hub, monkeypatch):
    """As in the README: both models from the Hub, and nobody has to name the target again."""
    monkeypatch.setenv("HF_TOKEN", hub.add_user("zoe"))
    for name, family in (("insects", "resnet"), ("things", "mobilenet")):
        HfApi().create_repo(f"zoe/{name}")
        save_for_hf(tiny_model(family), disk / name, model_args=source_args(family))
        HfApi().upload_folder(repo_id=f"zoe/{name}", folder_path=disk / name)
    names = ("--source", "hf-hub:zoe/insects", "--target", "hf-hub:zoe/things")
    built = ("--source-args", json.dumps(source_args("resnet")), "--license", "cc0-1.0", "--insertion", "blocks.3.3")
    result = run(*arguments(disk, names, disk / "named"), *built)
    assert result.exit_code == 0, result.output
    config = told("info", disk / "named")["config"]
    assert (config["source"]["hub_id"], config["source"]["license"]) == ("zoe/insects", "cc0-1.0")
    assert config["adapters"][0]["target"]["hub_id"] == "zoe/things"
    hint = re.search(r"Try it: pnc-hub (.*) PHOTO", result.stdout)[1]
    assert told(*hint.split(), disk / "photos" / "ant" / "0.png")["model"] == "hf-hub:zoe/things"


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        ({"classes": "moth"}, 1, "SourceError: 'moth' names 0 of the 7 classes"),
        ({"classes": "none.txt"}, 2, "there is no file"),
        ({"data": "no photos"}, 1, "DataError: 'no photos' is no folder"),
        ({"keep": "0"}, 2, "is not in the range"),
        ({"max_macs": "1"}, 1, "Error: "),
        ({"insertion": "nowhere"}, 1, "InsertionPointError: .*nowhere"),
        ({"target_id": "not a name"}, 2, "user/name is needed"),
        ({"locality_budget": "0.01"}, 1, "DataError: .*target_data"),
        ({"license": "not a licence!"}, 1, "Error: .*not a licence"),
    ],
)
def test_what_can_not_be_learned(disk, models, options, code, said):
    given = [part for pair in options.items() for part in (f"--{pair[0].replace('_', '-')}", pair[1])]
    result = run(*arguments(disk, models, disk / "none"), *given)
    assert result.exit_code == code, result.output
    assert any(re.search(said, line) for line in result.stderr.splitlines()), result.stderr
    assert not (disk / "none").exists()


class TestBeforeAnythingIsLearned:
    """No photo is read and no model is made: there are none."""

    def refused(self, *options):
        names = ["--source", "x", "--target", "x", "--classes", "x", "--data", "x"]
        result = run("clone", *names, *options)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith("PublishError: ")
        return result.stderr

    def test_a_folder_of_other_things_is_refused(self, tmp_path):
        (tmp_path / "photo.jpg").touch()
        assert "something else than a clone" in self.refused("--output", tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]

    def test_so_is_one_that_can_not_be_made(self, tmp_path):
        (tmp_path / "file").touch()
        assert "nothing can be written" in self.refused("--output", tmp_path / "file" / "clone")

    def test_so_is_a_report_that_can_not_be_written(self, tmp_path):
        (tmp_path / "file").touch()
        output = ("--output", tmp_path / "clone")
        assert "nothing can be written" in self.refused(*output, "--report", tmp_path / "file" / "report.html")
        assert "beside it" in self.refused(*output, "--report", tmp_path / "clone" / "report.html")
        assert not (tmp_path / "clone").exists()


def test_json_has_no_nan(capsys):
    show(str, lambda: {"kl": math.inf, "auroc": math.nan, "path": Path("a")}, True)
    assert json.loads(capsys.readouterr().out) == {"kl": None, "auroc": None, "path": "a"}


def test_a_clone_takes_the_place_of_another(disk, models, learned):
    folder = shutil.copytree(learned["folder"], disk / "place")
    found = told(*arguments(disk, models, folder, classes="4", data=take(disk / "four", {"4": 4}, 12)))
    assert (found["folder"], found["labels"]) == (str(folder), ["4"])
    assert told("info", folder)["config"]["classes"] == [{"label": "4", "source_index": 4}]
    assert told("verify", folder)["passed"] is True


def test_points_lists_the_insertion_points_of_a_model():
    result = run("points", "resnet18")
    lines = [line.split() for line in result.output.splitlines()]
    assert result.exit_code == 0
    assert lines[0] == ["name", "channels", "reduction", "layout", "grid"]
    assert lines[1] == ["input", "3", "1", "NCHW", "224x224"]
    assert ["layer3.1", "256", "16", "NCHW", "14x14"] in lines
    assert lines[-1] == ["global_pool", "512", "224", "NC", "1x1"]


def test_points_of_a_model_with_arguments_as_json():
    found = told("points", "resnet18", "--model-args", '{"channels": [8, 16, 24, 32]}')
    by_name = {point["name"]: point for point in found}
    assert (by_name["layer3.1"]["channels"], by_name["layer3.1"]["layout"]) == (24, "NCHW")
    assert by_name["input"]["grid"] == [224, 224]
    assert len(found) == len(run("points", "resnet18").output.splitlines()) - 1
