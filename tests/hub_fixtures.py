"""A repository of alice's with a clone in it, and what went over the wire."""

import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from common import sha256
from huggingface_hub import HfApi
from loopback_hub import LoopbackHub

from pnc_hub import Clone
from pnc_hub.artifact import files
from pnc_hub.artifact.config import seal

_numbers = itertools.count()


@pytest.fixture
def token(hub: LoopbackHub) -> str:
    """The token of ``alice``."""
    return hub.add_user("alice")


@pytest.fixture
def api(token) -> HfApi:
    return HfApi(token=token)


@pytest.fixture
def repo() -> str:
    """A name that no repository has yet."""
    return f"alice/clone-{next(_numbers)}"


@pytest.fixture
def published(hub, saved_clone, repo, token) -> str:
    """The commit of a clone that has just been published in ``repo``; no request has been noted since."""
    commit = Clone.from_pretrained(saved_clone).push_to_hub(repo, token=token).oid
    hub.requests.clear()
    return commit


@pytest.fixture
def impatient(monkeypatch) -> None:
    """We and the client wait before a request is made again; not here."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def requested(hub: LoopbackHub, method: str) -> list[str]:
    """What has been asked for by ``method``: names of files, and sha256 of those at the CDN."""
    found = [record.path for record in hub.requests if record.method == method and record.status < 300]
    return sorted(path.partition("/resolve/")[2].partition("/")[2] or path.rpartition("/")[2] for path in found)


def heads(api: HfApi, repo: str) -> list[str]:
    """Commits, newest first."""
    return [commit.commit_id for commit in api.list_repo_commits(repo)]


def edit(folder: Path, change: Callable[[dict], object]) -> None:
    """Change the configuration of a saved clone."""
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(seal(config)))


def drop(config: dict, place: int) -> None:
    """Take the adapter at ``place`` out of a configuration."""
    config["files"].pop(f"adapters/{config['adapters'].pop(place)['name']}.safetensors")


def change_weights(folder: Path) -> Path:
    """Make a saved clone one that no Hub has seen."""
    path = folder / "model.safetensors"
    tensors = files.safetensors.torch.load_file(path)
    tensors["head.bias"] += 1 + next(_numbers)
    path.write_bytes(files.tensor_bytes(tensors))
    edit(folder, lambda config: config["files"].update({"model.safetensors": sha256(path)}))
    return folder
