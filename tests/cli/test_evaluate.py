"""Measuring a clone."""

import re
import shutil

import pytest
import torch
from common import tiny_model
from hub_fixtures import edit

import pnc_hub
from cli.running import run, told
from pnc_hub.cloning.images.files import ImageFiles


def test_all_rows(photos, model, saved_clone):
    target = tiny_model("mobilenet")
    asked = ["--clone", saved_clone, *model, "--data", photos / "cloned", "--target-data", photos / "own"]
    found = told("evaluate", *asked)
    assert found["photos"] == {"cloned": 6, "target": 14}
    files = sorted((photos / "own").rglob("*.png"))
    ((_, batch),) = ImageFiles(files, target)
    truth = torch.tensor([int(path.parent.name) for path in files])
    with torch.inference_mode():
        alone = target(batch).argmax(1)
        with pnc_hub.attach(target, saved_clone):
            joint = target(batch).argmax(1)
    assert found["target_alone"] == pytest.approx((alone == truth).float().mean().item())
    assert found["ori"] == pytest.approx((joint == truth).float().mean().item())
    assert found["diverted"] == pytest.approx((joint >= 7).float().mean().item())
    assert found["avg"] == pytest.approx((7 * found["ori"] + 3 * found["tar"]) / 10)
    assert found["restored"] is True
    text = run("evaluate", *asked).stdout
    assert re.search(rf"model's classes \(Ori\) +{100 * found['ori']:.1f} %\n", text)
    assert re.search(rf"gate AUROC +{found['auroc']:.3f}\n", text)


def test_without_photos_of_the_models_own_classes(photos, model, saved_clone):
    found = told("evaluate", "--clone", saved_clone, *model, "--data", photos / "cloned", "--batch-size", 4)
    assert found["ori"] is None
    assert 0 <= found["tar"] <= 1
    text = run("evaluate", "--clone", saved_clone, *model, "--data", photos / "cloned").stdout
    assert re.search(r"\(Ori\) +not measured\n", text)


def test_folders_named_as_timm_names_the_sources_classes(tmp_path, photos, model, clone_folder):
    def change(config):
        config["source"].update(hub_id="timm/resnet18.a1_in1k")
        config["source"]["model_args"].update(num_classes=1000)
        config["classes"] = [{"label": "blue one", "source_index": 14}, *config["classes"][1:]]

    edit(clone_folder, change)
    shutil.copytree(photos / "cloned", tmp_path / "named")
    (tmp_path / "named" / "ant").rename(tmp_path / "named" / "n01537544")
    found = told("evaluate", "--clone", clone_folder, *model, "--data", tmp_path / "named")
    assert found["photos"]["cloned"] == 6


def test_photos_of_something_else(tmp_path, photos, model, saved_clone):
    shutil.copytree(photos / "cloned" / "bee", tmp_path / "photos" / "hoverfly")
    result = run("evaluate", "--clone", saved_clone, *model, "--data", tmp_path / "photos")
    assert result.exit_code == 1
    assert "DataError: no images of class 'ant'" in result.stderr


def test_photos_of_cloned_classes_are_none_of_the_models_own(tmp_path, photos, model, saved_clone):
    cloned = photos / "cloned"
    for name in pnc_hub.Clone.from_pretrained(saved_clone).labels:
        shutil.copytree(cloned / name, tmp_path / "alone" / name)
    asked = ["--clone", saved_clone, *model, "--data", cloned, "--target-data", tmp_path / "alone"]
    result = run("evaluate", *asked)
    assert result.exit_code == 1
    assert "shows a class of the model" in result.stderr
