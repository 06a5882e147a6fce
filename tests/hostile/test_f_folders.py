"""F: folders whose files are links, devices, unreadable, or not alone; and interrupts while one is attached."""

import os
import shutil
import socket
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from common import slow
from hub_fixtures import change_weights

import pnc_hub
from hostile.harness import bounded, change, everything, harmless, read_config, refused, untouched
from pnc_hub import Clone
from pnc_hub.artifact.files import CONFIG, WEIGHTS
from pnc_hub.errors import ArtifactError, CloneNotFoundError, IntegrityError, PublishError

FILES = pytest.mark.parametrize("file", [CONFIG, WEIGHTS])


@FILES
def test_f106_a_link_to_a_file_elsewhere(clone_folder, saved_clone, target, tmp_path, file):
    """The Hub's cache consists of links. What they lead to is read as data and checked as ever."""
    (clone_folder / file).rename(tmp_path / "outside")
    (clone_folder / file).symlink_to(tmp_path / "outside")
    harmless(target, clone_folder, saved_clone)
    (clone_folder / file).unlink()
    (clone_folder / file).symlink_to("/etc/passwd")
    error = refused(target, clone_folder, ArtifactError, file)
    assert "root:" not in str(error)


@FILES
def test_f107_a_link_to_a_folder(clone_folder, target, file):
    (clone_folder / file).unlink()
    (clone_folder / file).symlink_to("/etc")
    refused(target, clone_folder, file=file)


@FILES
@pytest.mark.parametrize("kind", ["fifo", "endless device", *map(slow, ["socket", "device", "loop", "process"])])
def test_f108_what_is_no_regular_file(clone_folder, target, file, kind):
    """Opening some of these waits for ever, reading others never ends."""
    path = clone_folder / file
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        here = os.getcwd()
        os.chdir(clone_folder)  # the name of a socket may not be long
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(file)
        os.chdir(here)
    else:
        targets = {"device": "/dev/null", "endless device": "/dev/zero", "loop": path, "process": "/proc/self/mem"}
        path.symlink_to(targets[kind])
    refused(target, clone_folder, ArtifactError, file)


@FILES
def test_f109_a_hard_link(clone_folder, saved_clone, target, tmp_path, file):
    os.link(clone_folder / file, tmp_path / "outside")
    harmless(target, clone_folder, saved_clone)


@FILES
def test_f110_a_file_that_may_not_be_read(saved_clone, target, file):
    """Permissions do not hold for root, who takes another identity for the while."""
    with tempfile.TemporaryDirectory(dir="/tmp") as base:
        folder = Path(base) / "clone"
        Clone.from_pretrained(saved_clone).save_pretrained(folder)
        os.chmod(base, 0o755)
        os.chmod(folder, 0o755)
        os.chmod(folder / file, 0)
        identity = os.geteuid()
        if identity == 0:
            os.seteuid(65534)
        try:
            with pytest.raises(ArtifactError) as error:
                pnc_hub.attach(target, folder)
        finally:
            os.seteuid(identity)
        assert (error.value.file, error.value.repo_id) == (file, str(folder))


def test_f110_a_file_that_is_missing(clone_folder, target):
    (clone_folder / WEIGHTS).unlink()
    refused(target, clone_folder, CloneNotFoundError, WEIGHTS)


def test_f111_a_file_that_changes_after_the_configuration_was_read(clone_folder, target):
    clone = Clone.from_pretrained(clone_folder)
    data = (clone_folder / WEIGHTS).read_bytes()
    (clone_folder / WEIGHTS).write_bytes(data[:-4] + b"\0\0\0\1")
    with untouched(target), bounded(), pytest.raises(IntegrityError):
        pnc_hub.attach(target, clone)
    (clone_folder / WEIGHTS).write_bytes(data)
    with pnc_hub.attach(target, clone):
        pass


def test_f111_a_file_that_changes_before_it_is_published(api, clone_folder, repo, token):
    """What was there when the configuration was read is not there any more, so nothing is published."""
    clone = Clone.from_pretrained(clone_folder)
    (clone_folder / WEIGHTS).write_bytes((clone_folder / WEIGHTS).read_bytes()[:-4] + b"\0\0\0\1")
    with bounded(), pytest.raises(IntegrityError) as error:
        clone.push_to_hub(repo, token=token)
    assert (error.value.file, error.value.repo_id) == (WEIGHTS, str(clone_folder))
    assert not api.repo_exists(repo)


@pytest.mark.parametrize(
    "request_", ["PUT /lfs/", *map(slow, ["POST /api/validate-yaml", "POST .*/preupload/", "POST .*/commit/"])]
)
def test_f111_files_that_change_while_they_are_published(hub, clone_folder, target, repo, token, tmp_path, request_):
    """What is published is what was read, whole."""

    def change_all(request, answer):
        for path in clone_folder.rglob("*.*"):
            if path.is_file():
                path.write_bytes(b"\x80\x04cos\nsystem\n.")
        return answer()

    reference = Path(
        shutil.copytree(change_weights(clone_folder), tmp_path / "reference")
    )  # of which the Hub has nothing yet
    with hub.fail(request_, change_all) as fault:
        Clone.from_pretrained(clone_folder).push_to_hub(repo, token=token)
        assert fault.remaining == 0
    there = Clone.from_pretrained(repo, token=token, cache_dir=tmp_path / "cache")
    there.all_tensors()  # every file is what the configuration says
    harmless(target, there, reference)


def test_f112_other_files_in_the_folder(clone_folder, saved_clone, target, tmp_path):
    """They are not read; and what is not a clone's is never removed to make room for one."""
    for name in (".git/config", ".env", ".cache/huggingface/token", "evil.py", "model.pkl", "conftest.py", "libx.so"):
        (clone_folder / name).parent.mkdir(parents=True, exist_ok=True)
        (clone_folder / name).write_text("raise SystemExit")
    harmless(target, clone_folder, saved_clone)
    with pytest.raises(PublishError, match="something else"):
        Clone.from_pretrained(saved_clone).save_pretrained(clone_folder)
    assert (clone_folder / ".git/config").read_text() == "raise SystemExit"
    Clone.from_pretrained(clone_folder).save_pretrained(tmp_path / "again")
    assert not any(path.name in ("evil.py", "model.pkl", ".env") for path in (tmp_path / "again").rglob("*"))


def test_f103_names_that_differ_in_case(clone_folder, target):
    config = read_config(clone_folder)
    twin = {**config["adapters"][0], "name": config["adapters"][0]["name"].upper()}
    change(clone_folder, "adapters/2", twin)
    refused(target, clone_folder, file=CONFIG)


class Interrupting:
    """Raises an exception where the n-th function of pnc_hub would begin."""

    def __init__(self, at: int, error: type[BaseException]) -> None:
        self.at, self.error, self.calls = at, error, 0

    def __enter__(self) -> "Interrupting":
        sys.setprofile(self)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def __call__(self, frame, event, _argument) -> None:
        if (
            event == "call"
            and "/pnc_hub/" in frame.f_code.co_filename
            and frame.f_code.co_name not in ("detach", "__init__")
        ):
            self.calls += 1
            if self.calls == self.at:
                raise self.error


@pytest.mark.parametrize(
    "error", [pytest.param(KeyboardInterrupt, id="F115-interrupt"), slow(MemoryError, id="G118-error")]
)
def test_an_exception_at_any_step_of_attach(saved_clone, target, error):
    """Wherever attaching is interrupted, the model is what it was, or the clone is attached whole."""
    clone = Clone.from_pretrained(saved_clone)
    with Interrupting(0, error) as counting:
        pnc_hub.attach(target, clone).detach()
    before, last = everything(target), counting.calls
    assert last > 20
    for at in sorted(
        {*range(1, last, max(1, last // 20)), *range(max(1, last - 30), last + 1)}
    ):  # the last have effects
        with Interrupting(at, error), suppress(error):
            pnc_hub.attach(target, clone)
        if not pnc_hub.attachments(target):
            assert everything(target) == before, at
        pnc_hub.detach(target)
        assert everything(target) == before, at
