"""Commands that look at one clone."""

import re

import pytest
import torch
from common import tiny_model
from timm.models import save_for_hf

from cli.running import run, told


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
