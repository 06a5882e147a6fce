"""A Hub that keeps large files in xet, as the real one does.

Whether a process uses hf_xet is settled when it imports the client, and that of the other tests does not. So another one does
here what it is asked for, a line of JSON at a time.
"""

import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from common import images, tiny_model
from hostile.harness import bounded, untouched
from huggingface_hub import HfApi
from loopback_hub import LoopbackHub, faults

import pnc_hub
from pnc_hub import Clone
from pnc_hub.artifact import files
from pnc_hub.errors import PncHubError
from pnc_hub.hub.verification import verify

# the defaults are five attempts, with three seconds to begin with and six minutes at most
QUICKLY = {
    "HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "2",
    "HF_XET_CLIENT_RETRY_BASE_DELAY": "10ms",
    "HF_XET_CLIENT_RETRY_MAX_DURATION": "1s",
}


class Reply(NamedTuple):
    """What came of it: a result, or the name, the attributes and the text of a typed error."""

    result: Any = None
    error: str | None = None
    where: tuple = ()
    said: str = ""


class Process:
    """Another process, whose client knows the one Hub and uses hf_xet."""

    def __init__(self, hub: LoopbackHub, home: Path) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        own = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path), **QUICKLY}
        command = [sys.executable, "-c", f"from {__name__} import obey; obey()"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        self._process = subprocess.Popen(command, env=inherited | own, **pipes)

    def __call__(self, act: str, **arguments: Any) -> Reply:
        """What comes of ``act``, one of ``ACTS``."""
        print(json.dumps([act, arguments]), file=self._process.stdin, flush=True)
        kind, *reply = json.loads(self._process.stdout.readline())
        assert kind == "reply", reply[0]
        return Reply(*reply)

    def end(self) -> None:
        self._process.communicate(timeout=60)


def obey() -> None:
    """In that process: do what comes in, and reply; nothing waits before it asks again."""
    time.sleep = lambda seconds: None
    torch.set_num_threads(1)
    for line in sys.stdin:
        act, arguments = json.loads(line)
        try:
            reply = ["reply", ACTS[act](**arguments)]
        except PncHubError as error:
            where = [getattr(error, name, None) for name in ("repo_id", "revision", "file")]
            reply = ["reply", None, type(error).__name__, where, str(error)]
        except BaseException:
            reply = ["failed", traceback.format_exc()]
        print(json.dumps(reply), flush=True)


@cache
def target() -> torch.nn.Module:
    return tiny_model("mobilenet")


def publish(folder: str, repo: str, token: str) -> str:
    return Clone.from_pretrained(folder).push_to_hub(repo, token=token).oid


def attach(name: str, most: int = files.MAX_FILE_BYTES, **options: Any) -> list:
    """Its answers, and the commit; the model is what it was, and little memory was taken."""
    files.MAX_FILE_BYTES = most
    with torch.no_grad(), untouched(target()), bounded(), pnc_hub.attach(target(), name, **options) as attachment:
        return [target()(images()).tolist(), attachment.revision]


def check(name: str, **options: Any) -> list:
    found = pnc_hub.check(target(), name, **options)
    return [found.attaches, found.download, str(found)]


def verified(name: str, **options: Any) -> list:
    found = verify(name, **options)
    return [found.passed, str(found)]


ACTS = {"publish": publish, "attach": attach, "check": check, "verify": verified}


class Xet(NamedTuple):
    """A Hub with a clone on it."""

    hub: LoopbackHub
    process: Process
    store: Path
    api: HfApi
    repo: str
    commit: str


@pytest.fixture(scope="module")
def xet(tmp_path_factory, saved_clone) -> Iterator[Xet]:
    hf_xet = pytest.importorskip("hf_xet")
    folder = tmp_path_factory.mktemp("xet")
    try:
        with hf_xet.XetSession().new_upload_commit(endpoint=f"local://{folder / 'probe'}") as commit:
            commit.start_upload_bytes(b"0" * 100)
    except Exception as error:
        pytest.skip(f"this hf_xet cannot keep files in a folder: {error}")
    with LoopbackHub(xet_store=folder / "store") as hub:
        process, token = Process(hub, folder / "home"), hub.add_user("alice")
        reply = process("publish", folder=str(saved_clone), repo="alice/birds", token=token)
        yield Xet(hub, process, folder / "store", HfApi(hub.endpoint, token=token), "alice/birds", reply.result)
        process.end()


@pytest.fixture
def cold(xet, tmp_path) -> dict[str, str]:
    """Options with an empty cache; no request has been noted yet."""
    xet.hub.requests.clear()
    return {"token": xet.api.token, "cache_dir": str(tmp_path / "cache")}


def paths(hub: LoopbackHub, part: str) -> list[str]:
    return [record.path for record in hub.requests if part in record.path]


def answers(model: torch.nn.Module, folder: Path) -> list:
    with torch.no_grad(), pnc_hub.attach(model, folder):
        return model(images()).tolist()


class TestXet:
    def test_it_is_published_there(self, xet, saved_clone):
        entries = {entry.path: entry for entry in xet.api.list_repo_tree(xet.repo, recursive=True)}
        recorded = Clone.from_pretrained(saved_clone).recorded
        assert {name: entries[name].lfs.sha256 for name in recorded} == recorded
        assert all(entries[name].xet_hash for name in recorded)
        assert not entries["config.json"].lfs

    def test_again_makes_no_commit(self, xet, cold, saved_clone):
        before = xorbs(xet.store)
        again = xet.process("publish", folder=str(saved_clone), repo=xet.repo, token=xet.api.token)
        assert again.result == xet.commit
        assert xorbs(xet.store) == before

    def test_it_is_attached(self, xet, cold, target, saved_clone):
        reply = xet.process("attach", name=xet.repo, **cold)
        assert reply.result == [answers(target, saved_clone), xet.commit]
        assert len(paths(xet.hub, "xet-read-token")) == 1
        assert not paths(xet.hub, "/lfs/")
        xet.hub.requests.clear()
        assert xet.process("attach", name=f"{xet.repo}@{xet.commit}", **cold) == reply
        assert xet.hub.requests == []  # from the cache

    def test_it_is_checked_without_download(self, xet, cold, saved_clone):
        is_fit, download, said = xet.process("check", name=xet.repo, **cold).result
        assert is_fit, said
        weights = [saved_clone / name for name in Clone.from_pretrained(saved_clone).recorded if "mobilenet" in name]
        assert download == sum(path.stat().st_size for path in [*weights, saved_clone / files.WEIGHTS])
        assert not paths(xet.hub, "xet-read-token")
        assert {record.range for record in xet.hub.requests if "/lfs/" in record.path} == {"bytes=0-16383"}

    def test_it_is_verified(self, xet, cold):
        passed, said = xet.process("verify", name=xet.repo, **cold).result
        assert passed, said

    def test_too_much_is_not_downloaded(self, xet, cold, tmp_path):
        reply = xet.process("attach", name=xet.repo, most=5000, **cold)
        assert (reply.error, reply.where) == ("MalformedArtifactError", [xet.repo, xet.commit, files.WEIGHTS])
        assert "5000 are allowed" in reply.said or "more than" in reply.said
        assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size > 5000]


def xorbs(store: Path) -> dict[Path, bytes]:
    """The files that hold the contents of all others."""
    return {path: path.read_bytes() for path in store.glob("xet/xorbs/xorbs/default.*") if path.suffix != ".tagset"}


@contextmanager
def damaged(store: Path, change: Callable[[bytes], bytes]) -> Iterator[None]:
    """What the store holds is other than what was put there."""
    kept = xorbs(store)
    try:
        for path, content in kept.items():
            path.chmod(0o644)
            path.write_bytes(change(content))
        yield
    finally:
        for path, content in kept.items():
            path.write_bytes(content)


def flipped(content: bytes, at: float) -> bytes:
    changed = bytearray(content)
    changed[int(at * len(content))] ^= 0xFF
    return bytes(changed)


@pytest.mark.slow
class TestE105:
    """The Hub gives no token, or the store something else: a typed error, nothing is attached, and nothing half is kept."""

    def refused(self, xet, cold, *kinds: str) -> None:
        reply = xet.process("attach", name=xet.repo, **cold)
        assert reply.error in kinds, reply
        assert reply.where[:2] == [xet.repo, xet.commit]
        assert reply.where[2].endswith(".safetensors")
        assert not list(Path(cold["cache_dir"]).rglob("*.incomplete"))

    @pytest.mark.parametrize("effect", [*map(faults.refuse, (401, 403, 404, 503)), faults.drop()])
    def test_no_token(self, xet, cold, effect):
        cold["token"] = xet.hub.add_user("bob")  # the client keeps the tokens of users that it has seen
        with xet.hub.fail("xet-read-token", effect, times=1000) as fault:
            self.refused(xet, cold, "HubError")
            assert fault.remaining < 1000
        assert xet.process("attach", name=xet.repo, **cold).error is None

    @pytest.mark.parametrize("share", [0, 0.5, 0.99])
    def test_a_truncated_xorb(self, xet, cold, share):
        with damaged(xet.store, lambda content: content[: int(share * len(content))]):
            self.refused(xet, cold, "HubError")
        assert xet.process("attach", name=xet.repo, **cold).error is None

    def test_a_corrupt_xorb_of_the_same_size(self, xet, cold):
        """The client may not notice. Where the byte is in no file that is read, the answer is the right one."""
        expected = xet.process("attach", name=xet.repo, **cold).result
        replies = []
        for at in (0, 0.1, 0.3, 0.5, 0.7):
            cold["cache_dir"] += "-again"
            with damaged(xet.store, lambda content, at=at: flipped(content, at)):
                replies.append(xet.process("attach", name=xet.repo, **cold))
            cold["force_download"] = True
            assert xet.process("attach", name=xet.repo, **cold).result == expected
            del cold["force_download"]
        assert {reply.error for reply in replies} <= {"HubError", "IntegrityError", None}
        assert all(reply.result == expected for reply in replies if reply.error is None)
        assert sum(reply.error is not None for reply in replies) >= 2
