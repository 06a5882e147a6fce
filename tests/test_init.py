"""``import pnc_hub`` costs nothing, and attaching needs nothing of what learning needs."""

import subprocess
import sys

import pytest

import pnc_hub

LEARNING = {"pnc_hub.cloning", "sklearn", "matplotlib", "torch_pruning"}


def imported_by(code: str) -> set[str]:
    """Names of the modules and their parents that a fresh interpreter holds after ``code``."""
    ended = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print('\\n'.join(sys.modules))"], capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    return set(ended.stdout.split())


def test_importing_imports_nothing_else():
    found = imported_by("import pnc_hub")
    assert "pnc_hub" in found
    assert not found & {*LEARNING, "timm", "torch", "huggingface_hub", "accelerate", "safetensors", "numpy"}


def test_attaching_imports_nothing_of_the_learning_side(clone_folder):
    code = f"""
import pnc_hub, timm, torch, warnings
warnings.simplefilter("ignore")
model = timm.create_model("resnet18", num_classes=5).eval()
with pnc_hub.attach(model, {str(clone_folder)!r}) as attachment, torch.no_grad():
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 8)
    attachment.verify()
pnc_hub.Clone.from_pretrained({str(clone_folder)!r}).save_pretrained({str(clone_folder.parent / "again")!r})
pnc_hub.insertion_points(model)
assert pnc_hub.check(model, {str(clone_folder)!r}).attaches
import pnc_hub.hub.verification, pnc_hub.cli
assert pnc_hub.hub.verification.verify({str(clone_folder)!r}).passed
assert callable(pnc_hub.search)
"""
    found = imported_by(code)
    assert "timm" in found
    assert not found & {*LEARNING, "accelerate"}


@pytest.mark.parametrize("name", pnc_hub.__all__)
def test_every_public_name_is_there(name):
    assert getattr(pnc_hub, name) is getattr(pnc_hub, name)
    assert (getattr(pnc_hub, name).__doc__ or "").strip()


def test_dir_lists_the_public_names_once():
    listed = dir(pnc_hub)
    assert set(pnc_hub.__all__) <= set(listed)
    assert len(listed) == len(set(listed))


def test_other_names_are_not_there():
    with pytest.raises(AttributeError, match="module 'pnc_hub' has no attribute 'clones'"):
        _ = pnc_hub.clones
    assert not hasattr(pnc_hub, "_no_such_name")


def test_public_names_are_sorted():
    assert sorted(pnc_hub.__all__) == pnc_hub.__all__
