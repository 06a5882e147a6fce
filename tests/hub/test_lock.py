"""What is locked is attached, and nothing else."""

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from common import sha256
from hub_fixtures import change_weights

import pnc_hub
from pnc_hub import Clone
from pnc_hub.errors import CloneNotFoundError
from pnc_hub.hub import lock
from pnc_hub.hub.lock import LockError
from pnc_hub.hub.verification import verify


@pytest.fixture
def options(token, tmp_path) -> dict:
    return {"token": token, "cache_dir": tmp_path / "cache"}


@pytest.fixture
def locked(hub, repo, published, options, tmp_path):
    """A lock file that holds the clone in ``repo``."""
    path = lock.write(Clone.from_pretrained(repo, **options), path=tmp_path / "pnc-hub.lock")
    hub.requests.clear()
    return path


@pytest.fixture
def moved_on(clone_folder, repo, published, token) -> str:
    """A later commit of ``repo``, with another clone."""
    return Clone.from_pretrained(change_weights(clone_folder)).push_to_hub(repo, token=token).oid


class TestWriting:
    def test_what_it_holds(self, locked, repo, published, saved_clone):
        held = json.loads(locked.read_text())
        assert list(held) == [repo]
        assert held[repo]["revision"] == published
        paths = {path.relative_to(saved_clone).as_posix(): path for path in saved_clone.rglob("*") if path.is_file()}
        del paths["README.md"]
        assert held[repo]["files"] == {name: sha256(path) for name, path in paths.items()}

    def test_others_stay_and_the_same_is_locked_anew(self, locked, repo, moved_on, options, saved_clone):
        lock.write(Clone.from_pretrained(saved_clone), Clone.from_pretrained(repo, **options), path=locked)
        held = lock.read(locked)
        folder = (Path("..") / os.path.relpath(saved_clone, locked.parent.parent)).as_posix()
        assert held.keys() == {repo, folder}
        assert held[repo].revision == moved_on
        assert held[folder].revision is None
        assert [path.name for path in locked.parent.iterdir() if "lock" in path.name] == ["pnc-hub.lock"]

    def test_another_file_is_not_overwritten(self, clone_folder, tmp_path):
        path = tmp_path / "package.json"
        path.write_text('{"name": "mine"}')
        with pytest.raises(LockError, match="not a lock"):
            lock.write(Clone.from_pretrained(clone_folder), path=path)
        assert path.read_text() == '{"name": "mine"}'

    def test_what_was_read_is_locked_not_what_is_there_by_then(self, clone_folder, tmp_path):
        clone = Clone.from_pretrained(clone_folder)
        read = sha256(clone_folder / "config.json")
        change_weights(clone_folder)
        held = lock.read(lock.write(clone, path=tmp_path / "pnc-hub.lock"))
        assert held["./clone"].files["config.json"] == read

    def test_nobody_loses_what_others_lock_at_the_same_moment(self, clone_folder, tmp_path):
        folders = [shutil.copytree(clone_folder, tmp_path / f"clone{number}") for number in range(8)]
        clones = [Clone.from_pretrained(folder) for folder in folders]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda clone: lock.write(clone, path=tmp_path / "pnc-hub.lock"), clones))
        assert lock.read(tmp_path / "pnc-hub.lock").keys() == {f"./{folder.name}" for folder in folders}

    def test_a_folder_that_is_not_there(self, clone_folder, tmp_path):
        with pytest.raises(LockError, match="cannot be written"):
            lock.write(Clone.from_pretrained(clone_folder), path=tmp_path / "missing" / "pnc-hub.lock")

    def test_a_clone_that_has_no_files(self, saved_clone, tmp_path):
        clone = Clone.from_pretrained(saved_clone)
        with pytest.raises(CloneNotFoundError, match="made without it"):
            lock.write(Clone(clone.config, clone.all_tensors()), path=tmp_path / "pnc-hub.lock")
        assert not (tmp_path / "pnc-hub.lock").exists()


class TestAttaching:
    def test_the_commit_that_is_locked_is_attached_and_nobody_is_asked(
        self, hub, locked, repo, published, moved_on, options, target
    ):
        pnc_hub.attach(target, repo, lock=locked, **options).detach()
        hub.requests.clear()
        with pnc_hub.attach(target, repo, lock=locked, **options) as attachment:
            assert attachment.revision == published
        assert hub.requests == []

    def test_a_mapping_serves_as_well(self, locked, repo, published, moved_on, options, target):
        with pnc_hub.attach(target, repo, lock=json.loads(locked.read_text()), **options) as attachment:
            assert attachment.revision == published

    def test_a_revision_that_is_the_locked_one(self, api, locked, repo, published, moved_on, options, target):
        api.create_tag(repo, tag="v1", revision=published)
        for revision in ("v1", published):
            pnc_hub.attach(target, f"{repo}@{revision}", lock=locked, **options).detach()

    def test_a_revision_that_is_another(self, hub, locked, repo, published, moved_on, options, target):
        hub.requests.clear()
        with pytest.raises(LockError, match=f"commit {published} is locked") as error:
            pnc_hub.attach(target, repo, revision=moved_on, lock=locked, **options)
        assert (error.value.repo_id, error.value.revision) == (repo, moved_on)
        assert hub.requests == []
        with pytest.raises(LockError, match=f"commit {published} is locked") as error:
            pnc_hub.attach(target, f"{repo}@main", lock=locked, **options)
        assert error.value.revision == moved_on

    @pytest.mark.parametrize("given", ["id", "clone"])
    def test_a_clone_that_is_not_in_it(self, locked, repo, options, target, given, saved_clone):
        name = "alice/other" if given == "id" else Clone.from_pretrained(saved_clone)
        with pytest.raises(LockError, match=f"not in the lock, which holds {repo}; look at it"):
            pnc_hub.attach(target, name, lock=locked, **options)
        with pytest.raises(LockError, match="which holds nothing"):
            pnc_hub.attach(target, name, lock={}, **options)

    @pytest.mark.parametrize("file", ["config.json", "model.safetensors", "new.safetensors"])
    def test_files_that_differ(self, locked, repo, options, target, file):
        held = json.loads(locked.read_text())
        held[repo]["files"][file] = "0" * 64
        for clone in (repo, Clone.from_pretrained(repo, **options)):
            for use in (partial(pnc_hub.attach, target), partial(pnc_hub.check, target), verify):
                with pytest.raises(LockError, match=f"{'0' * 64} is locked") as error:
                    use(clone, lock=held, **options)
                assert (error.value.repo_id, error.value.file) == (repo, file)

    def test_a_file_that_is_no_longer_locked(self, locked, repo, options, target):
        held = json.loads(locked.read_text())
        del held[repo]["files"]["model.safetensors"]
        with pytest.raises(LockError, match="None is locked"):
            pnc_hub.attach(target, repo, lock=held, **options)

    def test_a_folder_that_changed(self, clone_folder, target, tmp_path):
        path = lock.write(Clone.from_pretrained(clone_folder), path=tmp_path / "pnc-hub.lock")
        pnc_hub.attach(target, clone_folder, lock=path).detach()
        change_weights(clone_folder)
        with pytest.raises(LockError) as error:
            pnc_hub.attach(target, clone_folder, lock=path)
        assert error.value.repo_id == "./clone"

    @pytest.mark.parametrize("spelling", ["clone", "./clone", "../{}/clone", "{}"])
    def test_a_folder_by_any_name(self, clone_folder, target, tmp_path, monkeypatch, spelling):
        path = lock.write(Clone.from_pretrained(clone_folder), path=tmp_path / "pnc-hub.lock")
        monkeypatch.chdir(tmp_path)
        name = spelling.format(clone_folder if spelling == "{}" else tmp_path.name)
        for held in (path, "pnc-hub.lock", json.loads(path.read_text())):
            pnc_hub.attach(target, name, lock=held).detach()

    def test_lock_and_folder_may_move_together(self, clone_folder, target, tmp_path):
        path = lock.write(Clone.from_pretrained(clone_folder), path=tmp_path / "pnc-hub.lock")
        (tmp_path / "moved").mkdir()
        for here in (path, clone_folder):
            here.rename(tmp_path / "moved" / here.name)
        moved = tmp_path / "moved"
        pnc_hub.attach(target, moved / "clone", lock=moved / path.name).detach()

    def test_a_folder_that_is_called_like_a_repository(self, locked, repo, clone_folder, target, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        Path(repo).parent.mkdir()
        clone_folder.rename(repo)
        with pytest.raises(LockError, match=f"not in the lock, which holds {repo}"):
            pnc_hub.attach(target, repo, lock=locked)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"a/b": {}}',
        '{"a/b": {"revision": "main", "files": {"config.json": "%s"}}}' % ("0" * 64),
        '{"a/b": {"revision": null, "files": {}}}',
        '{"a/b": {"revision": null, "files": {"config.json": "0"}}}',
        '{"a/b": {"revision": null, "files": []}}',
        '{"a/b": {"revision": null, "files": {"config.json": "%s"}}, "a/b": {}}' % ("0" * 64),
    ],
)
def test_what_is_no_lock_locks_nothing_and_lets_nothing_through(tmp_path, target, saved_clone, text):
    path = tmp_path / "pnc-hub.lock"
    path.write_text(text)
    with pytest.raises(LockError, match="lock") as error:
        pnc_hub.attach(target, saved_clone, lock=path)
    assert error.value.file == str(path)


def test_a_lock_that_is_not_there(tmp_path, target, saved_clone):
    with pytest.raises(LockError, match="no such file"):
        pnc_hub.attach(target, saved_clone, lock=tmp_path / "pnc-hub.lock")
