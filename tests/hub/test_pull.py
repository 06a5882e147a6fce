"""What can go wrong between a Hub and a model: it is told apart, said with its remedy, and nothing half stays behind."""

import json
import multiprocessing
import os
import resource
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from common import images, slow, tiny_model
from huggingface_hub import CommitOperationAdd, CommitOperationDelete
from loopback_hub import faults

import pnc_hub
from pnc_hub.artifact import files
from pnc_hub.errors import ArtifactError, CloneNotFoundError, HubError, IntegrityError, MalformedArtifactError


class TestNotThere:
    @pytest.mark.parametrize("force_download", [False, True])
    def test_unknown_repositories_and_revisions(self, hub, repo, published, target, token, tmp_path, force_download):
        options = {"cache_dir": tmp_path, "force_download": force_download}
        for name, who, reason in (
            ("alice/nothing", token, "no such repository"),
            ("alice/nothing", False, "no such repository"),
            (f"{repo}@v9", token, "no such revision"),
            (f"{repo}@{'0' * 40}", token, "no such revision"),
        ):
            with pytest.raises(CloneNotFoundError, match=reason) as error:
                pnc_hub.attach(target, name, token=who, **options)
            assert error.value.repo_id == name.partition("@")[0]
            assert error.value.revision == (name.partition("@")[2] or None)

    @pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
    def test_repositories_that_lack_a_file(self, api, repo, published, target, token, tmp_path, name):
        commit = api.create_commit(repo, [CommitOperationDelete(name)], commit_message="delete").oid
        with pytest.raises(CloneNotFoundError, match="no such file") as error:
            pnc_hub.attach(target, repo, token=token, cache_dir=tmp_path)
        assert (error.value.file, error.value.repo_id) == (name, repo)
        assert error.value.revision == (None if name == "config.json" else commit)

    def test_repositories_of_other_libraries(self, api, repo, target, token, tmp_path):
        api.create_repo(repo)
        config = json.dumps({"architecture": "resnet18", "num_classes": 1000}).encode()
        api.create_commit(repo, [CommitOperationAdd("config.json", config)], commit_message="a timm model")
        with pytest.raises(ArtifactError, match="not a clone") as error:
            pnc_hub.attach(target, repo, token=token, cache_dir=tmp_path)
        assert (error.value.file, error.value.repo_id) == ("config.json", repo)
        assert len(error.value.revision) == 40


class TestFailures:
    @pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
    @pytest.mark.parametrize("status", [403, 503, *map(slow, [429, 500])])
    @pytest.mark.parametrize("force_download", [False, slow(True)])
    def test_a_hub_that_does_not_deliver(
        self, hub, repo, published, target, token, tmp_path, impatient, file, status, force_download
    ):
        fault = hub.fail(f"{repo}/resolve/.*/{file}", status=status, times=100)
        with pytest.raises(HubError, match="did not deliver") as error:
            pnc_hub.attach(target, repo, token=token, cache_dir=tmp_path, force_download=force_download)
        assert fault.remaining < 100
        fault.remaining = 0
        assert (error.value.file, error.value.repo_id, error.value.code) == (file, repo, "hub")
        pnc_hub.attach(target, repo, token=token, cache_dir=tmp_path).detach()  # nothing half is left behind

    def test_a_bad_token(self, repo, published, target, tmp_path):
        with pytest.raises(HubError, match="Invalid credentials"):
            pnc_hub.attach(target, repo, token="hf_nobody", cache_dir=tmp_path)

    def test_a_hub_that_can_not_be_reached(self, repo, target, token, tmp_path, monkeypatch, impatient):
        template = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.file_download.HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        with pytest.raises(CloneNotFoundError, match="could not be reached"):
            pnc_hub.attach(target, repo, token=token, cache_dir=tmp_path)

    def test_a_cache_that_can_not_be_written(self, repo, published, target, token, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(HubError):
            pnc_hub.attach(target, repo, token=token, cache_dir=tmp_path / "file")

    def test_what_fails_once_is_asked_for_again(self, hub, repo, published, target, token, tmp_path, impatient):
        for number, effect in enumerate([faults.refuse(503), faults.cut(100), faults.replace(b"short"), faults.drop()]):
            for pattern in ("GET .*/config.json", "GET /lfs/"):
                with hub.fail(pattern, effect) as fault:
                    cache = tmp_path / f"{number}-{len(pattern)}"
                    pnc_hub.attach(target, repo, token=token, cache_dir=cache).detach()
                    assert fault.remaining == 0

    @pytest.mark.parametrize("effect", [faults.cut(100), faults.drop(), faults.replace(b"short"), faults.refuse(502)])
    def test_what_goes_on_failing_is_given_up(self, hub, repo, published, target, token, tmp_path, impatient, effect):
        with hub.fail("GET /lfs/", effect, times=100) as fault:
            with pytest.raises(HubError, match=r"did not deliver.*try again later") as error:
                pnc_hub.attach(target, repo, token=token, cache_dir=tmp_path)
            assert fault.remaining > 50
        assert (error.value.repo_id, error.value.revision) == (repo, published)
        pnc_hub.attach(target, repo, token=token, cache_dir=tmp_path).detach()

    def test_a_rate_limit(self, hub, repo, published, target, token, tmp_path, impatient):
        with hub.fail(f"{repo}/resolve", faults.rate_limit(), times=2):
            pnc_hub.attach(target, repo, token=token, cache_dir=tmp_path).detach()
        with (
            hub.fail(f"{repo}/resolve", faults.rate_limit(), times=100),
            pytest.raises(HubError, match="limits how often it is asked: wait"),
        ):
            pnc_hub.attach(target, repo, token=token, cache_dir=tmp_path, force_download=True)


class TestAccess:
    def test_private(self, hub, api, repo, published, target, token, tmp_path):
        api.update_repo_settings(repo, private=True)
        with pytest.raises(CloneNotFoundError, match=r"or it is private.*log in") as error:
            pnc_hub.attach(target, repo, token=hub.add_user("bob"), cache_dir=tmp_path)
        assert (error.value.repo_id, error.value.file) == (repo, "config.json")
        pnc_hub.attach(target, repo, token=token, cache_dir=tmp_path).detach()

    @pytest.mark.parametrize("anonymous", [True, False])
    def test_gated(self, hub, api, repo, published, target, tmp_path, anonymous):
        api.update_repo_settings(repo, gated="manual")
        bob = hub.add_user("bob")
        with pytest.raises(HubError, match="gated: ask for access on its page") as error:
            pnc_hub.attach(target, repo, token=False if anonymous else bob, cache_dir=tmp_path)
        assert (error.value.repo_id, error.value.file) == (repo, "config.json")
        api.grant_access(repo, "bob")
        pnc_hub.attach(target, repo, token=bob, cache_dir=tmp_path).detach()

    def test_disabled(self, hub, repo, published, target, token, tmp_path):
        hub.disable(repo)
        with pytest.raises(HubError, match=r"disabled access.*its page") as error:
            pnc_hub.attach(target, f"{repo}@main", token=token, cache_dir=tmp_path)
        assert (error.value.repo_id, error.value.revision) == (repo, "main")

    def test_moved(self, api, repo, published, target, token, tmp_path):
        """The Hub sends clients on from the former name; the commit tells that it is the same clone."""
        api.move_repo(repo, f"{repo}-moved")
        with pnc_hub.attach(target, repo, token=token, cache_dir=tmp_path) as attachment:
            assert attachment.revision == published
        api.delete_repo(f"{repo}-moved")
        with pytest.raises(CloneNotFoundError, match="no such repository"):
            pnc_hub.attach(target, repo, token=token, cache_dir=tmp_path / "other")


class TestContent:
    """The client compares sizes alone."""

    @pytest.mark.parametrize(
        ("pattern", "effect", "file"),
        [
            ("GET .*/config.json", faults.corrupt(at=1000), "config.json"),
            ("GET /lfs/", faults.corrupt(), None),
            ("HEAD .*/config.json", faults.wrong_etag(), "config.json"),
            ("HEAD .*/model.safetensors", faults.wrong_etag("0" * 64), "model.safetensors"),
        ],
    )
    def test_it_is_not_what_the_hub_has_on_record(
        self, hub, repo, published, target, token, tmp_path, pattern, effect, file
    ):
        options = {"token": token, "cache_dir": tmp_path}
        with hub.fail(pattern, effect), pytest.raises(IntegrityError, match="force_download=True") as error:
            pnc_hub.attach(target, f"{repo}@{published}", **options)
        assert (error.value.repo_id, error.value.revision) == (repo, published)
        assert file in (None, error.value.file)
        with pytest.raises(IntegrityError):  # the cache holds it now
            pnc_hub.attach(target, f"{repo}@{published}", **options)
        if pattern.startswith("GET"):
            pnc_hub.attach(target, repo, force_download=True, **options).detach()
            pnc_hub.attach(target, f"{repo}@{published}", **options).detach()
        pnc_hub.attach(target, repo, token=token, cache_dir=tmp_path / "other").detach()

    @pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
    def test_too_much_is_not_downloaded(self, hub, repo, published, target, token, tmp_path, monkeypatch, file):
        monkeypatch.setattr(files, "MAX_FILE_BYTES", 5000)  # the adapter has less, the weights more
        monkeypatch.setattr(files, "MAX_CONFIG_BYTES", 1000 if file == "config.json" else 1 << 20)
        with pytest.raises(MalformedArtifactError, match="are allowed") as error:
            pnc_hub.attach(target, repo, token=token, cache_dir=tmp_path)
        assert (error.value.file, error.value.repo_id) == (file, repo)
        assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size > 5000]

    def test_too_much_of_small_files_is_not_downloaded(self, repo, published, token, tmp_path, monkeypatch):
        clone = pnc_hub.Clone.from_pretrained(repo, token=token, cache_dir=tmp_path)
        monkeypatch.setattr(files, "MAX_TOTAL_BYTES", 20_000)  # each of them has less
        with pytest.raises(MalformedArtifactError, match="are allowed") as error:
            clone.all_tensors()
        assert error.value.repo_id == repo
        assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 20_000


class TestCache:
    @pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
    def test_a_cache_that_leads_elsewhere(self, repo, published, target, saved_clone, token, tmp_path, file):
        pnc_hub.attach(target, repo, token=token, cache_dir=tmp_path / "cache").detach()
        (link,) = (tmp_path / "cache").glob(f"models--*/snapshots/{published}/{file}")
        link.unlink()
        link.symlink_to(saved_clone / file)
        with pytest.raises(IntegrityError, match="outside the cache") as error:
            pnc_hub.attach(target, f"{repo}@{published}", token=token, cache_dir=tmp_path / "cache")
        assert (error.value.file, error.value.repo_id) == (file, repo)

    def test_blobs_that_repositories_share(self, hub, repo, published, target, token, tmp_path):
        """As the client stores what came through xet: the blob is a link to elsewhere in the cache."""
        options = {"token": token, "cache_dir": tmp_path / "cache"}
        pnc_hub.attach(target, repo, **options).detach()
        (tmp_path / "cache" / "blobs").mkdir()
        for blob in tmp_path.glob("cache/models--*/blobs/*"):
            shared = blob.rename(tmp_path / "cache" / "blobs" / f"{len(blob.name)}{blob.name[::-1]}")
            blob.symlink_to(shared)
        hub.requests.clear()
        pnc_hub.attach(target, f"{repo}@{published}", **options).detach()
        assert hub.requests == []

    def test_one_that_can_only_be_read(self, hub, repo, published, target, token, readable):
        pnc_hub.attach(target, repo, token=token, cache_dir=readable.folder).detach()
        with readable:
            for name in (repo, f"{repo}@{published}"):
                pnc_hub.attach(target, name, token=token, cache_dir=readable.folder).detach()
            with pytest.raises(HubError, match=r"the cache cannot be written.*cache_dir=") as error:
                pnc_hub.attach(target, repo, token=token, cache_dir=readable.folder / "new")
        assert (error.value.repo_id, error.value.file) == (repo, "config.json")

    def test_one_that_is_full(self, repo, published, target, token, tmp_path):
        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, most))  # the weights have more
            with pytest.raises(HubError, match=r"the cache is full.*make room.*cache_dir=") as error:
                pnc_hub.attach(target, repo, token=token, cache_dir=tmp_path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        assert (error.value.repo_id, error.value.revision, error.value.file) == (repo, published, "model.safetensors")
        pnc_hub.attach(target, repo, token=token, cache_dir=tmp_path).detach()

    @pytest.mark.slow
    def test_many_processes_fill_it_at_the_same_moment(
        self, repo, published, target, token, tmp_path, saved_clone, monkeypatch
    ):
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])  # imported once, for all
        start, answers = context.Barrier(PROCESSES), context.Queue()
        options = {"token": token, "cache_dir": tmp_path}
        processes = [
            context.Process(target=attach_and_answer, args=(repo, options, start, answers)) for _ in range(PROCESSES)
        ]
        for process in processes:
            process.start()
        found = [answers.get(timeout=120) for _ in processes]
        for process in processes:
            process.join(timeout=60)
        with pnc_hub.attach(target, saved_clone), torch.no_grad():
            expected = target(images()).tolist()
        assert found == PROCESSES * [(published, expected)]


PROCESSES = 8


def attach_and_answer(repo: str, options: dict, start, answers) -> None:
    """In a process of its own: attach a clone at the moment when all others do."""
    torch.set_num_threads(1)
    model = tiny_model("mobilenet")
    start.wait()
    try:
        with pnc_hub.attach(model, repo, **options) as attachment, torch.no_grad():
            answers.put((attachment.revision, model(images()).tolist()))
    except Exception as error:
        answers.put((type(error).__name__, str(error)))
        raise


class Readable:
    """A folder that cannot be written within the block, not even by root, who gives up being that."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.is_root = folder, os.geteuid() == 0

    def __enter__(self) -> None:
        self._allow(0o555)
        if self.is_root:
            os.seteuid(65534)

    def __exit__(self, *_: object) -> None:
        if self.is_root:
            os.seteuid(0)
        self._allow(0o755)

    def _allow(self, mode: int) -> None:
        for path in [self.folder, *self.folder.rglob("*")]:
            if path.is_dir():
                path.chmod(mode)


@pytest.fixture
def readable() -> Iterator[Readable]:
    with tempfile.TemporaryDirectory() as folder:  # other users cannot enter that of pytest
        yield Readable(Path(folder))
