"""Publishing to a Hub and attaching from it, over HTTP and through the real client."""

import itertools
import json
import pickle
import shutil
import time
from pathlib import Path

import pytest
import torch
from common import images, tiny_clone, tiny_model
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard
from loopback_hub import LoopbackHub

import pnc_hub
from pnc_hub import Clone, files
from pnc_hub.errors import ArtifactError, CloneNotFoundError, HubError, IntegrityError, PublishError
from pnc_hub.hub import is_repo_id, split_revision

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
    """The client waits between its retries; not here."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def requested(hub: LoopbackHub, method: str) -> list[str]:
    """What has been asked for by ``method``: names of files, and sha256 of those at the CDN."""
    found = [record.path for record in hub.requests if record.method == method and record.status < 300]
    return sorted(path.partition("/resolve/")[2].partition("/")[2] or path.rpartition("/")[2] for path in found)


def heads(api: HfApi, repo: str) -> list[str]:
    return [commit.commit_id for commit in api.list_repo_commits(repo)]


class TestNames:
    @pytest.mark.parametrize(
        ("name", "revision", "expected"),
        [
            ("user/birds", None, ("user/birds", None)),
            ("user/birds", "v1", ("user/birds", "v1")),
            ("user/birds@v1.0", None, ("user/birds", "v1.0")),
            ("user/birds@refs/pr/1", None, ("user/birds", "refs/pr/1")),
            ("user/birds@v1", "v1", ("user/birds", "v1")),
            ("some folder@home/x", None, ("some folder@home/x", None)),
        ],
    )
    def test_a_revision_in_the_name(self, name, revision, expected):
        assert split_revision(name, revision) == expected

    @pytest.mark.parametrize(("name", "revision"), [("user/birds@v1", "v2"), ("user/birds@", None), ("user/birds", "")])
    def test_two_revisions_or_an_empty_one(self, name, revision):
        with pytest.raises(CloneNotFoundError, match=r"revisions? (were|was) given.*; give") as error:
            split_revision(name, revision)
        assert error.value.repo_id == "user/birds"

    @pytest.mark.parametrize(
        "name", ["birds", "a/b/c", "../b", "a/..", "a--b/c", "a/b\n", "", "a/", "/b", "a b/c", "-a/b", ".a/b"]
    )
    def test_what_is_no_id(self, hub, saved_clone, name):
        assert not is_repo_id(name)
        with pytest.raises(PublishError, match="give 'user/name'"):
            Clone.from_pretrained(saved_clone).push_to_hub(name)
        assert hub.requests == []


class TestPublishing:
    def test_one_commit_of_exactly_the_saved_files(self, hub, api, repo, published, saved_clone, tmp_path):
        assert heads(api, repo)[0] == published
        assert len(heads(api, repo)) == 2  # the first is the Hub's own, with its .gitattributes
        folder = Path(api.snapshot_download(repo, local_dir=tmp_path / "all"))
        shutil.rmtree(folder / ".cache")
        (folder / ".gitattributes").unlink()
        assert contents(folder) == contents(saved_clone)

    def test_it_can_be_found_by_its_card(self, api, repo, published):
        info = api.model_info(repo)
        assert (info.library_name, info.pipeline_tag) == ("pnc-hub", "image-classification")
        assert {"pnc-class:ant", "pnc-class:bee", "pnc-class:wasp", "license:apache-2.0"} <= set(info.tags)
        assert [found.id for found in api.list_models(filter=["pnc-hub", "pnc-class:wasp"], search=repo)] == [repo]
        ModelCard.load(repo).validate()

    def test_unchanged_content_makes_no_commit(self, hub, api, repo, published, saved_clone, token):
        again = Clone.from_pretrained(saved_clone).push_to_hub(repo, token=token)
        assert again.oid == published
        assert len(heads(api, repo)) == 2
        assert not requested(hub, "PUT")

    def test_a_clone_can_be_published_again_from_the_hub(self, api, repo, published, token, tmp_path):
        clone = Clone.from_pretrained(repo, token=token, cache_dir=tmp_path)
        assert clone.push_to_hub(repo, token=token).oid == published

    def test_what_the_new_clone_lacks_is_deleted_and_what_is_not_ours_stays(
        self, api, repo, published, clone_folder, token, tmp_path
    ):
        theirs = {
            "notes.md": b"mine",
            "adapters/notes.txt": b"mine",
            "adapters/old.safetensors": b"",
            "figures/a.png": b"",
        }
        api.create_commit(repo, [CommitOperationAdd(*item) for item in theirs.items()], commit_message="notes")
        Clone.from_pretrained(clone_folder).push_to_hub(repo, token=token)
        expected = {*contents(clone_folder), ".gitattributes", "notes.md", "adapters/notes.txt"}
        assert set(api.list_repo_files(repo)) == expected
        assert len(heads(api, repo)) == 4

    def test_branches_and_pull_requests(self, hub, api, repo, published, clone_folder, token):
        config = json.loads((clone_folder / "config.json").read_text())
        config["classes"][0]["label"] = "moth"
        (clone_folder / "config.json").write_text(json.dumps(config))
        clone = Clone.from_pretrained(clone_folder)
        api.create_branch(repo, branch="next")
        moved = clone.push_to_hub(repo, token=token, revision="next", commit_message="Moths")
        assert api.model_info(repo, revision="next").sha == moved.oid
        assert api.list_repo_commits(repo, revision="next")[0].title == "Moths"
        proposed = clone.push_to_hub(repo, token=hub.add_user("bob"), create_pr=True)
        assert proposed.pr_revision == "refs/pr/1"
        assert Clone.from_pretrained(f"{repo}@refs/pr/1", token=token).labels == ("moth", "bee", "wasp")
        assert api.model_info(repo).sha == published

    @pytest.mark.parametrize(
        ("request_", "status"),
        [
            ("POST /api/repos/create", 503),
            ("GET /api/models/.*/tree", 403),
            ("POST .*/preupload/", 403),
            ("POST .*/objects/batch", 403),
            ("PUT /lfs/", 403),
            ("POST .*/commit/", 503),
            ("POST .*/commit/", 429),
            ("POST .*/commit/", 412),
            ("POST /api/validate-yaml", 400),
        ],
    )
    def test_what_the_hub_refuses_leaves_the_repository_as_it_was(
        self, hub, api, repo, published, target, clone_folder, token, impatient, request_, status
    ):
        tensors = files.safetensors.torch.load_file(clone_folder / "model.safetensors")
        tensors["head.bias"] += next(_numbers)  # content that the Hub has not seen
        files.write_tensors(clone_folder / "model.safetensors", tensors)
        config = json.loads((clone_folder / "config.json").read_text())
        config["files"]["model.safetensors"] = files.sha256(clone_folder / "model.safetensors")
        (clone_folder / "config.json").write_text(json.dumps(config))
        fault = hub.fail(request_, status=status, times=10)
        try:
            with pytest.raises(PublishError, match=f"{repo}: the clone was not published"):
                Clone.from_pretrained(clone_folder).push_to_hub(repo, token=token)
            assert fault.remaining < 10
        finally:
            fault.remaining = 0
        assert heads(api, repo)[0] == published

    def test_who_may_not_write(self, hub, api, repo, published, saved_clone):
        clone = Clone.from_pretrained(saved_clone)
        for token in (hub.add_user("bob"), "hf_nobody", False):
            with pytest.raises(PublishError, match="logged in with write access"):
                clone.push_to_hub(repo, token=token)
        assert heads(api, repo)[0] == published

    def test_a_hub_that_can_not_be_reached(self, saved_clone, repo, token, monkeypatch, impatient):
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
        with pytest.raises(PublishError, match="was not published"):
            Clone.from_pretrained(saved_clone).push_to_hub(repo, token=token)


class TestAttaching:
    def test_by_id(self, repo, published, target, saved_clone, token, tmp_path):
        batch = images()
        with torch.no_grad():
            with pnc_hub.attach(target, saved_clone):
                expected = target(batch)
            with pnc_hub.attach(target, repo, token=token, cache_dir=tmp_path) as attachment:
                assert torch.equal(target(batch), expected)
                assert (attachment.clone.repo_id, attachment.clone.revision) == (repo, published)
                assert f"{repo}@{published}" in repr(attachment)

    @pytest.mark.parametrize("form", ["tag", "tag=", "branch", "commit", "commit="])
    def test_by_revision(self, api, repo, published, target, token, tmp_path, form):
        api.create_tag(repo, tag="v1.0", revision=published)
        api.create_branch(repo, branch="old", revision=published)
        api.create_commit(repo, [CommitOperationDelete("config.json")], commit_message="main has no clone any more")
        revision = {"tag": "v1.0", "branch": "old", "commit": published}[form.rstrip("=")]
        options = {"token": token, "cache_dir": tmp_path}
        if form.endswith("="):
            options["revision"] = revision
        with pnc_hub.attach(target, repo if form.endswith("=") else f"{repo}@{revision}", **options) as attachment:
            assert attachment.clone.revision == published

    def test_only_what_is_needed_is_fetched_and_only_once(
        self, hub, repo, published, target, saved_clone, token, tmp_path
    ):
        def fetched() -> list[str]:
            hub.requests.clear()
            pnc_hub.attach(target, repo, token=token, cache_dir=tmp_path).detach()
            assert sum(record.bytes for record in hub.requests) < 400_000
            return requested(hub, "GET")

        adapter = next(path for path in (saved_clone / "adapters").iterdir() if path.stem != "universal")
        assert fetched() == sorted(["config.json", *map(files.sha256, (saved_clone / "model.safetensors", adapter))])
        assert fetched() == []
        hub.requests.clear()
        pnc_hub.attach(target, f"{repo}@{published}", token=token, cache_dir=tmp_path).detach()
        assert hub.requests == []

    def test_forced_downloads_fetch_every_file_once(self, hub, repo, published, target, token, tmp_path):
        def fetched(**options) -> list[str]:
            hub.requests.clear()
            pnc_hub.attach(target, repo, token=token, cache_dir=tmp_path, **options).detach()
            return requested(hub, "GET")

        assert fetched(force_download=True) == fetched(force_download=True) != fetched() == []
        assert fetched(force_download=True).count("config.json") == 1

    @pytest.mark.parametrize("pinned", [True, False])
    def test_nobody_is_asked_for_what_is_in_the_cache(
        self, hub, repo, published, target, token, tmp_path, monkeypatch, pinned
    ):
        pnc_hub.attach(target, repo, token=token, cache_dir=tmp_path).detach()
        hub.requests.clear()
        # what huggingface_hub asks the Hub for once per process, to fill in a header
        monkeypatch.setattr("huggingface_hub.utils._detect_agent._registry", None, raising=False)
        name = f"{repo}@{published}" if pinned else repo
        pnc_hub.attach(target, name, token=token, cache_dir=tmp_path, local_files_only=not pinned).detach()
        assert hub.requests == []

    def test_the_commit_found_first_is_the_one_that_is_read(self, api, repo, published, token, tmp_path):
        """A push between two downloads must not mix two clones."""
        clone = Clone.from_pretrained(repo, token=token, cache_dir=tmp_path)
        api.create_commit(repo, [CommitOperationAdd("model.safetensors", b"other")], commit_message="moved on")
        clone.build(clone.config.adapters[0], clone.config.preprocess.value())

    def test_the_token_is_for_the_hub_alone(self, hub, repo, published, target, token, tmp_path):
        pnc_hub.attach(target, repo, token=token, cache_dir=tmp_path).detach()
        at_cdn = [record.authenticated for record in hub.requests if record.path.startswith("/lfs/")]
        at_hub = [record.authenticated for record in hub.requests if "/resolve/" in record.path]
        assert at_cdn == [False, False]
        assert at_hub
        assert all(at_hub)

    def test_without_the_hub(self, hub, repo, published, target, token, tmp_path):
        options = {"token": token, "cache_dir": tmp_path, "local_files_only": True}
        with pytest.raises(CloneNotFoundError, match="not in the local cache"):
            pnc_hub.attach(target, repo, **options)
        pnc_hub.attach(target, repo, token=token, cache_dir=tmp_path).detach()
        hub.requests.clear()
        with pnc_hub.attach(target, repo, **options) as attachment:
            assert attachment.clone.revision == published
            with pytest.raises(CloneNotFoundError, match="not in the local cache") as error:
                attachment.clone.probe(attachment.clone.config.adapters[0])
        assert (error.value.file, error.value.repo_id, error.value.revision) == ("probe.safetensors", repo, published)
        assert hub.requests == []

    def test_a_hub_that_fails_does_not_matter_once_it_is_in_the_cache(
        self, hub, repo, published, target, token, tmp_path
    ):
        pnc_hub.attach(target, repo, token=token, cache_dir=tmp_path).detach()
        fault = hub.fail(f"{repo}/resolve", status=503, times=100)
        pnc_hub.attach(target, repo, token=token, cache_dir=tmp_path).detach()
        assert fault.remaining < 100
        fault.remaining = 0


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
    @pytest.mark.parametrize("status", [403, 429, 500, 503])
    @pytest.mark.parametrize("force_download", [False, True])
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

    def test_a_cdn_that_does_not_deliver(self, hub, repo, published, target, token, tmp_path, impatient):
        fault = hub.fail("GET /lfs/", status=503, times=100)
        with pytest.raises(HubError) as error:
            pnc_hub.attach(target, repo, token=token, cache_dir=tmp_path)
        fault.remaining = 0
        assert error.value.revision == published

    def test_a_gated_repository(self, hub, repo, published, target, token, tmp_path):
        fault = hub.fail(f"{repo}/resolve", status=403, times=9, headers={"X-Error-Code": "GatedRepo"})
        with pytest.raises(HubError, match="ask for access"):
            pnc_hub.attach(target, repo, token=token, cache_dir=tmp_path)
        fault.remaining = 0

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

    def test_content_that_changed_on_the_way(self, hub, repo, published, target, saved_clone, token, tmp_path):
        """The client compares sizes alone."""
        digest = files.sha256(saved_clone / "model.safetensors")
        stored = hub._state.large_files
        whole = stored[digest]
        stored[digest] = whole[:-1] + bytes([whole[-1] ^ 1])
        try:
            with pytest.raises(IntegrityError, match="force_download=True") as error:
                pnc_hub.attach(target, repo, token=token, cache_dir=tmp_path)
        finally:
            stored[digest] = whole
        assert (error.value.file, error.value.revision) == ("model.safetensors", published)
        with pytest.raises(IntegrityError):  # the cache holds it now
            pnc_hub.attach(target, repo, token=token, cache_dir=tmp_path)
        pnc_hub.attach(target, repo, token=token, cache_dir=tmp_path, force_download=True).detach()

    @pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
    def test_a_cache_that_leads_elsewhere(self, repo, published, target, saved_clone, token, tmp_path, file):
        pnc_hub.attach(target, repo, token=token, cache_dir=tmp_path / "cache").detach()
        (link,) = (tmp_path / "cache").glob(f"models--*/snapshots/{published}/{file}")
        link.unlink()
        link.symlink_to(saved_clone / file)
        with pytest.raises(IntegrityError, match="outside the cache") as error:
            pnc_hub.attach(target, f"{repo}@{published}", token=token, cache_dir=tmp_path / "cache")
        assert (error.value.file, error.value.repo_id) == (file, repo)


def test_a_pickled_model_does_not_carry_the_token(tmp_path, hub):
    token = hub.add_user("keeper")
    repo = (
        tiny_clone(tiny_model("resnet"), tiny_model("mobilenet")).push_to_hub("keeper/secretive", token=token).repo_url
    )
    model = tiny_model("mobilenet")
    with pnc_hub.attach(model, repo.repo_id, token=token, cache_dir=tmp_path):
        assert token.encode() not in pickle.dumps(model)
