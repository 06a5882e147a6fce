"""Settings that must be in place before anything imports huggingface_hub: no network, no telemetry, no shared cache."""

import os
import tempfile
from pathlib import Path

os.environ["HF_HUB_DISABLE_XET"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="pnc-hub-tests-")
os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"  # nothing answers here: a test that needs a Hub starts one
for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
    os.environ.pop(name, None)

import pytest
import torch

torch.set_num_threads(2)


@pytest.fixture(autouse=True)
def _unchanged_random_state():
    """No function of ours may touch the caller's random state."""
    torch.manual_seed(0)
    return


@pytest.fixture
def clone_folder(tmp_path: Path) -> Path:
    """A clone of three classes, saved."""
    from common import tiny_clone, tiny_model

    return tiny_clone(tiny_model("resnet"), tiny_model("mobilenet")).save_pretrained(tmp_path / "clone")
