"""Naming what photos show."""

import itertools
import json
import re
import shutil

import pytest
import timm
import torch
from common import tiny_clone, tiny_model
from hub_fixtures import edit
from huggingface_hub import HfApi
from timm.models import save_for_hf
from torch import nn

import pnc_hub
from cli.photographs import named
from cli.running import run, told
from pnc_hub.cli.predict import _own_labels
from pnc_hub.cloning.images.files import ImageFiles

_numbers = itertools.count()


@pytest.fixture(scope="module")
def second(tmp_path_factory):
    """One more clone for that model, of classes one of which has the name of one of the first."""
    clone = tiny_clone(tiny_model("resnet", seed=1), tiny_model("mobilenet"), labels=("fly", "ant"), seed=1)
    return clone.save_pretrained(tmp_path_factory.mktemp("second") / "flies")


class TestPredict:
    def test_the_best_of_the_joint_softmax_and_whose_they_are(self, photos, model, saved_clone, second):
        target = tiny_model("mobilenet")
        own = [f"class {index}" for index in range(7)]
        found = told(
            "predict", "--clone", saved_clone, "--clone", second, *model, photos / "cloned" / "bee", "--top", 12
        )
        whose = [(label, None) for label in own]
        whose += [(label, str(saved_clone)) for label in ("ant", "bee", "wasp")]
        whose += [(label, str(second)) for label in ("fly", "ant")]
        files = [photos / "cloned" / "bee" / f"{index}.png" for index in range(2)]
        assert [photo["file"] for photo in found["photos"]] == list(map(str, files))
        ((_, batch),) = ImageFiles(files, target)
        pnc_hub.attach(target, saved_clone)
        pnc_hub.attach(target, second, on_collision="allow")
        with torch.inference_mode():
            expected = target(batch).softmax(1)
        for photo, row in zip(found["photos"], expected, strict=True):
            values = [answer["probability"] for answer in photo["top"]]
            assert values == sorted(values, reverse=True)
            assert sum(values) == pytest.approx(1, abs=1e-5)
            for answer in photo["top"]:
                assert (answer["label"], answer["clone"]) == whose[answer["index"]]
                assert answer["probability"] == pytest.approx(row[answer["index"]].item(), abs=1e-6)

    def test_five_lines_for_a_person(self, photos, model, saved_clone):
        photo = photos / "cloned" / "bee" / "0.png"
        result = run("predict", "--clone", saved_clone, *model, photo)
        assert result.exit_code == 0, result.output
        title, file, *rows = result.stdout.splitlines()
        assert (title, file) == (f"mobilenetv2_035 with {saved_clone}", str(photo))
        assert len(rows) == 5
        for row, answer in zip(
            rows, told("predict", "--clone", saved_clone, *model, photo)["photos"][0]["top"], strict=True
        ):
            assert row.split("%")[0].strip() == f"{100 * answer['probability']:.1f}"
            assert answer["label"] in row
            assert row.endswith(f"from {saved_clone}") == (answer["clone"] is not None)
        assert {row.endswith(str(saved_clone)) for row in rows} == {True, False}

    def test_names_of_the_models_own_classes(self, tmp_path, photos, model, saved_clone):
        (tmp_path / "names").write_text("a\nb\nc\nd\ne\nf\ng\n")
        asked = ["predict", "--clone", saved_clone, *model, photos / "own" / "0" / "0.png", "--top", 10]
        found = told(*asked, "--labels", tmp_path / "names")["photos"][0]["top"]
        assert {answer["label"] for answer in found} == {*"abcdefg", "ant", "bee", "wasp"}
        (tmp_path / "names").write_text("a\nb\n")
        result = run(*asked, "--labels", tmp_path / "names")
        assert (result.exit_code, "has 2 names, and the model has 7" in result.stderr) == (2, True)

    def test_a_damaged_photo_is_told_and_the_others_are_named(self, tmp_path, photos, model, saved_clone):
        folder = shutil.copytree(photos / "cloned" / "bee", tmp_path / "bee")
        (folder / "0.png").write_bytes(b"no picture")
        result = run("predict", "--clone", saved_clone, *model, folder, "--json")
        assert result.exit_code == 1
        assert re.match(r".*0\.png cannot be read \(.*\); give a photo", result.stderr.splitlines()[-1])
        found = json.loads(result.stdout)
        assert [photo["file"] for photo in found["photos"]] == [str(folder / "1.png")]
        assert [entry["file"] for entry in found["unreadable"]] == [str(folder / "0.png")]

    def test_without_a_model_it_is_the_one_that_the_clone_was_made_for(
        self, tmp_path, photos, clone_folder, hub, monkeypatch
    ):
        user = f"painter-{next(_numbers)}"
        monkeypatch.setenv("HF_TOKEN", hub.add_user(user))
        save_for_hf(tiny_model("mobilenet"), tmp_path / "model")
        HfApi().create_repo(f"{user}/tiny")
        HfApi().upload_folder(repo_id=f"{user}/tiny", folder_path=tmp_path / "model")
        asked = ["predict", "--clone", clone_folder, photos / "own" / "0" / "0.png"]
        result = run(*asked)
        assert result.exit_code == 1
        assert "only its architecture, mobilenetv2_035, is recorded" in result.stderr
        assert "--model" in result.stderr
        edit(clone_folder, lambda config: config["adapters"][0]["target"].update(hub_id=f"{user}/tiny"))
        result = run(*asked)
        assert result.exit_code == 0, result.stderr
        assert result.stdout.startswith(f"hf-hub:{user}/tiny with ")
        assert result.stderr == ""

    def test_another_model_is_warned_of(self, tmp_path, photos, saved_clone):
        other = ["--model", "convnext_atto", *named("model", "convnext", tmp_path)]
        result = run("predict", "--clone", saved_clone, *other, photos / "own" / "0" / "0.png")
        assert result.exit_code == 0, result.stderr
        assert re.match("Warning: .* has no adapter for this ConvNeXt: it is attached at the input", result.stderr)


class TestNames:
    def test_of_imagenet(self):
        with torch.device("meta"):
            names = _own_labels(timm.create_model("resnet18.a1_in1k"), None)
        assert (len(names), names[14]) == (1000, "indigo bunting")

    def test_of_the_larger_imagenet(self):
        with torch.device("meta"):
            names = _own_labels(timm.create_model("vit_tiny_patch16_224.augreg_in21k", num_classes=21843), None)
        assert len(names) == 21843
        assert "indigo bunting" in names

    def test_of_nothing_that_timm_knows(self):
        model = nn.Identity()
        model.num_classes = 1000
        assert _own_labels(model, None)[14] == "class 14"
