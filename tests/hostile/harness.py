"""What every hostile artifact must meet: a typed error or no effect, an untouched model, little memory, little work.

Artifacts are made from a valid one. Its digests are recorded anew after every change, so that what is refused is refused for
what it is; the ids of the tests begin with the numbers of the list of threats (``A05``), so that each can be found.
"""

import copy
import json
import sys
import threading
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

MEGABYTES = 256  # of memory, over what the process held before
READ = 64 << 20  # bytes, from files
CALLS = 6_000_000  # of functions; building and cutting timm's largest architectures takes up to 4.4 million
DELETE = object()


@contextmanager
def bounded() -> Iterator[None]:
    """Within the budget of memory and of bytes read; the highest mark of the process's memory is set back before."""
    Path("/proc/self/clear_refs").write_text("5")
    held, already = _number("status", "VmRSS"), _number("io", "rchar")
    try:
        yield
    finally:  # also, and most of all, where it was refused
        megabytes, read = (_number("status", "VmHWM") - held) / 1024, _number("io", "rchar") - already
        assert megabytes < MEGABYTES
        assert read < READ


@contextmanager
def few_calls() -> Iterator[None]:
    """Within the budget of functions called, ours and others', in this thread and those that it starts."""
    calls = [0]

    def count(_frame: object, event: str, _argument: object) -> None:
        calls[0] += event in ("call", "c_call")

    threading.setprofile(count)
    sys.setprofile(count)
    try:
        yield
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    assert calls[0] < CALLS, calls[0]


def _number(file: str, name: str) -> int:
    """What the system says of this process."""
    return int(Path(f"/proc/self/{file}").read_text().split(f"{name}:")[1].split()[0])


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


def by_number(cases: dict[str, Any], name: str = "case") -> Callable:
    """Parametrize ``name`` with the values of ``cases``, whose keys are the ids; the first of each number is quick."""
    first = {key.partition("-")[0]: key for key in reversed(cases)}
    slow = {key: [] if key in first.values() else [pytest.mark.slow] for key in cases}
    return pytest.mark.parametrize(name, [pytest.param(cases[key], marks=slow[key], id=key) for key in cases])
