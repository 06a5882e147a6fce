"""Settings that must be in place before anything imports huggingface_hub: no network, no telemetry, no shared cache."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from loopback_hub import LoopbackHub

HUB = LoopbackHub().__enter__()  # serves until the process ends: huggingface_hub reads HF_ENDPOINT once, when imported
os.environ["HF_ENDPOINT"] = HUB.endpoint
os.environ["HF_HUB_DISABLE_XET"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="pnc-hub-tests-")
atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)
for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
    os.environ.pop(name, None)

import pytest
import torch
from common import tiny_clone, tiny_model
from hub_fixtures import api, impatient, published, repo, token  # noqa: F401  (fixtures of every test)
from torch import nn

from pnc_hub.models.fingerprint import state_digest

# layers this small lose more to waiting for a second thread than they gain
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _unchanged_random_state():
    """No function of ours may touch the caller's random state."""
    torch.manual_seed(0)
    return


@pytest.fixture
def hub() -> LoopbackHub:
    """The Hub that huggingface_hub talks to; repositories of earlier tests are still there."""
    HUB.requests.clear()
    return HUB


@pytest.fixture(scope="session")
def _target() -> nn.Module:
    return tiny_model("mobilenet")


@pytest.fixture
def target(_target) -> Iterator[nn.Module]:
    """A classifier that must be what it was when the test ends."""
    before = what_it_is(_target)
    yield _target
    assert what_it_is(_target) == before


def what_it_is(model: nn.Module) -> tuple:
    """Everything of a model that attaching could leave changed."""
    parts = [
        (
            name,
            id(module),
            module.training,
            sorted(vars(module)),
            *map(dict, (module._forward_hooks, module._forward_pre_hooks)),
        )
        for name, module in model.named_modules()
    ]
    frozen = [parameter.requires_grad for parameter in model.parameters()]
    return state_digest(model), model.num_classes, parts, frozen, torch.random.get_rng_state().tolist()


@pytest.fixture(scope="session")
def saved_clone(tmp_path_factory, _target) -> Path:
    """A clone of three classes of a resnet for ``target``, saved; not to be changed."""
    return tiny_clone(tiny_model("resnet"), _target).save_pretrained(tmp_path_factory.mktemp("saved") / "clone")


@pytest.fixture
def clone_folder(saved_clone, tmp_path: Path) -> Path:
    """A copy of ``saved_clone`` that the test may damage."""
    return Path(shutil.copytree(saved_clone, tmp_path / "clone"))
