"""Artifacts that earlier versions wrote load in this one, with the logits that they had."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch.testing import assert_close

import pnc_hub
from pnc_hub import Clone
from regression.make import build, place

FOLDERS = sorted(path.parent for path in Path(__file__).parent.glob("v*/*/made.json"))


def test_every_kind_is_kept():
    assert {folder.name for folder in FOLDERS} >= {"convolutional", "input", "vit"}


@pytest.mark.filterwarnings("ignore:.*it is attached at the input")
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_the_logits_are_those_recorded(folder):
    made = json.loads((folder / "made.json").read_text())
    model = build(made["architecture"], made["arguments"])
    model.load_state_dict(safetensors.torch.load_file(folder / "target.safetensors"))
    expected = safetensors.torch.load_file(folder / "expected.safetensors")
    exactly = all(made[key] == value for key, value in place().items())
    with torch.no_grad(), pnc_hub.attach(model, folder / "clone") as attachment:
        assert (attachment.insertion == "input") == (folder.name == "input")
        found = model(expected["images"])
        assert attachment.verify() < 1e-3
    assert_close(found, expected["logits"], **({"rtol": 0, "atol": 0} if exactly else {"rtol": 1e-4, "atol": 1e-4}))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_saved_again_it_says_the_same(folder, tmp_path):
    clone = Clone.from_pretrained(folder / "clone")
    again = Clone.from_pretrained(clone.save_pretrained(tmp_path / "again"))
    assert again.config.to_dict() == clone.config.to_dict()
    assert again.recorded == clone.recorded
