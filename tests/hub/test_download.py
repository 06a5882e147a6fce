"""Attaching from a Hub, over HTTP and through the real client: what is asked for, and how often."""

import pickle

import pytest
import torch
from common import images, sha256, tiny_clone, tiny_model
from hub_fixtures import requested
from huggingface_hub import CommitOperationAdd, CommitOperationDelete

import pnc_hub
from pnc_hub import Clone
from pnc_hub.errors import CloneNotFoundError, PublishError
from pnc_hub.hub.download import is_repo_id, split_revision


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

    @pytest.mark.parametrize("form", ["tag", "tag=", "branch", "pull request", "commit", "commit="])
    def test_by_revision(self, api, repo, published, target, token, tmp_path, form):
        api.create_tag(repo, tag="v1.0", revision=published)
        api.create_branch(repo, branch="old", revision=published)
        notes = CommitOperationAdd("notes.md", b"please")
        proposed = api.create_commit(repo, [notes], commit_message="notes", create_pr=True).oid
        api.create_commit(repo, [CommitOperationDelete("config.json")], commit_message="main has no clone any more")
        forms = {"tag": "v1.0", "branch": "old", "pull request": "refs/pr/1", "commit": published}
        revision, expected = forms[form.rstrip("=")], proposed if form == "pull request" else published
        options = {"token": token, "cache_dir": tmp_path}
        if form.endswith("="):
            options["revision"] = revision
        with pnc_hub.attach(target, repo if form.endswith("=") else f"{repo}@{revision}", **options) as attachment:
            assert attachment.clone.revision == attachment.revision == expected
            assert expected in repr(attachment)
        assert attachment.revision == expected

    def test_only_what_is_needed_is_fetched_and_only_once(
        self, hub, repo, published, target, saved_clone, token, tmp_path
    ):
        def fetched() -> list[str]:
            hub.requests.clear()
            pnc_hub.attach(target, repo, token=token, cache_dir=tmp_path).detach()
            assert sum(record.bytes for record in hub.requests) < 400_000
            return requested(hub, "GET")

        adapter = next(path for path in (saved_clone / "adapters").iterdir() if path.stem != "universal")
        assert fetched() == sorted(["config.json", *map(sha256, (saved_clone / "model.safetensors", adapter))])
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
        clone.build(clone.config.adapters[0], clone.config.preprocess)

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

    def test_offline(self, hub, repo, published, target, token, tmp_path, monkeypatch):
        pnc_hub.attach(target, repo, token=token, cache_dir=tmp_path).detach()
        hub.requests.clear()
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # HF_HUB_OFFLINE=1
        for name in (repo, f"{repo}@main", f"{repo}@{published}"):
            with pnc_hub.attach(target, name, token=token, cache_dir=tmp_path) as attachment:
                assert attachment.revision == published
        with pytest.raises(CloneNotFoundError, match=r"not in the local cache.*fetch it once while connected"):
            pnc_hub.attach(target, "alice/another", token=token, cache_dir=tmp_path)
        assert hub.requests == []

    def test_a_hub_that_fails_does_not_matter_once_it_is_in_the_cache(
        self, hub, repo, published, target, token, tmp_path
    ):
        pnc_hub.attach(target, repo, token=token, cache_dir=tmp_path).detach()
        fault = hub.fail(f"{repo}/resolve", status=503, times=100)
        pnc_hub.attach(target, repo, token=token, cache_dir=tmp_path).detach()
        assert fault.remaining < 100
        fault.remaining = 0


def test_a_pickled_model_does_not_carry_the_token(tmp_path, hub):
    token = hub.add_user("keeper")
    repo = (
        tiny_clone(tiny_model("resnet"), tiny_model("mobilenet")).push_to_hub("keeper/secretive", token=token).repo_url
    )
    model = tiny_model("mobilenet")
    with pnc_hub.attach(model, repo.repo_id, token=token, cache_dir=tmp_path):
        assert token.encode() not in pickle.dumps(model)
