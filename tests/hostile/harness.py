"""What every hostile artifact must meet: a typed error or no effect, an untouched model, little time, little memory.

Artifacts are made from a valid one. Its digests are recorded anew after every change, so that what is refused is refused for
what it is; the ids of the tests begin with the numbers of the list of threats (``A05``), so that each can be found.
"""

import copy
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from battery import snapshot
from common import images, sha256
from torch import nn

import pnc_hub
from pnc_hub.artifact import files
from pnc_hub.artifact.config import seal
from pnc_hub.errors import ArtifactError, MalformedArtifactError, PncHubError

SECONDS = 2.0  # of processor time: what else runs on the machine is not the artifact's doing
MEGABYTES = 256  # over what the process held before
DELETE = object()


@contextmanager
def bounded() -> Iterator[None]:
    """Within the budget of time and memory; the highest mark of the process's memory, its tensors included, is set back."""
    Path("/proc/self/clear_refs").write_text("5")
    held, started = _megabytes("VmRSS"), time.process_time()
    try:
        yield
    finally:  # also, and most of all, where it was refused
        seconds, megabytes = time.process_time() - started, _megabytes("VmHWM") - held
        assert seconds < SECONDS
        assert megabytes < MEGABYTES


def _megabytes(name: str) -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{name}:")[1].split()[0]) / 1024


def everything(model: nn.Module) -> dict:
    """All of a model that must stay what it is: bytes, identities, order, flags, hooks, attributes, random state."""
    modules = [(name, id(module), type(module)) for name, module in model.named_modules()]
    return {**snapshot(model), "modules": modules}


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    before = everything(model)
    yield
    assert everything(model) == before


def refused(
    model: nn.Module,
    clone: Any,
    kind: type[PncHubError] = MalformedArtifactError,
    file: str | None = None,
    act: Callable[[nn.Module, Any], Any] = pnc_hub.attach,
) -> PncHubError:
    """The typed error with which ``act`` refuses ``clone``, within the budget; ``model`` is what it was."""
    try:
        with untouched(model), bounded(), pytest.raises(PncHubError) as raised:
            act(model, clone)
    finally:
        pnc_hub.detach(model)  # a failure is that of one case
    error = raised.value
    assert isinstance(error, kind), repr(error)
    assert len(str(error)) < 2000
    if isinstance(error, ArtifactError):
        assert error.repo_id == str(clone)
        assert error.reason in str(error)
        assert error.revision is None  # a folder has none
        assert error.file is not None
        assert file in (None, error.file)
    return error


def harmless(model: nn.Module, clone: Any, reference: Any) -> None:
    """Attached within the budget, ``clone`` answers to the bit as ``reference`` does, and leaves nothing behind."""
    batch = images()
    with torch.no_grad(), untouched(model):
        alone = model(batch)
        with pnc_hub.attach(model, reference):
            expected = model(batch)
        with bounded(), pnc_hub.attach(model, clone):
            found = model(batch)
        assert torch.equal(found, expected)
        assert torch.equal(found[:, : alone.shape[1]], alone)
        assert torch.equal(model(batch), alone)


def put(config: dict, path: str, value: Any) -> dict:
    """A sealed copy of ``config`` with ``value`` at ``path`` (names and positions joined by ``/``); DELETE takes out."""
    changed = copy.deepcopy(config)
    *parents, last = [int(part) if part.isdigit() else part for part in path.split("/")]
    holder = changed
    for part in parents:
        holder = holder[part]
    if value is DELETE:
        del holder[last]
    elif isinstance(holder, list) and last == len(holder):
        holder.append(value)
    else:
        holder[last] = value
    return sealed(changed)


def file_of(adapter: dict) -> str:
    """Where the tensors of an adapter of a configuration are."""
    return f"adapters/{adapter['name']}.safetensors"


def without(config: dict, place: int) -> dict:
    """A sealed copy of ``config`` that has not the adapter at ``place``, nor the digest of its file."""
    changed = copy.deepcopy(config)
    del changed["files"][file_of(changed["adapters"].pop(place))]
    return sealed(changed)


def sealed(config: dict) -> dict:
    """Sealed again, if it is still of a form that can be."""
    return seal(config) if isinstance(config.get("files"), dict) else config


def read_config(folder: Path) -> dict:
    return json.loads((folder / files.CONFIG).read_text(encoding="utf-8"))


def write_config(folder: Path, config: Any) -> None:
    (folder / files.CONFIG).write_text(json.dumps(config), encoding="utf-8")


def change(folder: Path, path: str, value: Any) -> None:
    """Put ``value`` at ``path`` of the configuration of the clone in ``folder``."""
    write_config(folder, put(read_config(folder), path, value))


def replace(folder: Path, file: str, data: bytes) -> None:
    """Give ``file`` other bytes, and have the configuration record their digest."""
    (folder / file).write_bytes(data)
    reseal(folder, file)


def reseal(folder: Path, file: str) -> None:
    """Have the configuration record the digest that ``file`` has now."""
    config = read_config(folder)
    config["files"][file] = sha256(folder / file)
    write_config(folder, sealed(config))


def by_number(cases: dict[str, Any]) -> Callable:
    """Parametrize ``case`` with the values of ``cases``; the ids are its keys."""
    return pytest.mark.parametrize("case", list(cases.values()), ids=list(cases))
