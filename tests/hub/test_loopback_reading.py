"""Information, trees, references and searches, as from the real Hub."""

import hashlib

import pytest
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    BadRequestError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.sha import git_hash
from loopback_client import CARD, CONFIG, REPO, WEIGHTS, put, send, status_of
from loopback_hub import LoopbackHub

pytest_plugins = ("loopback_client",)


class TestReading:
    def test_model_info(self, alice):
        commit = put(alice, {"README.md": CARD.encode(), "config.json": CONFIG, "model.safetensors": WEIGHTS})
        info = alice.model_info(REPO, files_metadata=True)
        assert (info.sha, info.author, info.private) == (commit.oid, "alice", False)
        assert (info.library_name, info.pipeline_tag) == ("pnc-hub", "image-classification")
        assert info.card_data.base_model == "bob/teacher"
        assert {
            "pnc-hub",
            "safetensors",
            "partial-network-cloning",
            "image-classification",
            "en",
            "license:mit",
            "dataset:cifar100",
            "base_model:bob/teacher",
            "base_model:adapter:bob/teacher",
        } == set(info.tags)
        siblings = {sibling.rfilename: sibling for sibling in info.siblings}
        assert set(siblings) == {".gitattributes", "README.md", "config.json", "model.safetensors"}
        assert siblings["config.json"].blob_id == git_hash(CONFIG)
        assert siblings["config.json"].lfs is None
        assert siblings["model.safetensors"].lfs.sha256 == hashlib.sha256(WEIGHTS).hexdigest()
        assert alice.model_info(REPO, securityStatus=True).security_repo_status["filesWithIssues"] == []
        assert send("GET", f"{alice.endpoint}/api/models/{REPO}/revision/HEAD").status == 200
        expanded = alice.model_info(REPO, expand=["sha", "tags"])
        assert (expanded.sha, expanded.siblings) == (commit.oid, None)

    def test_tree_and_paths_info(self, alice):
        put(alice, {"a/b/config.json": CONFIG})
        second = put(alice, {"a/model.safetensors": WEIGHTS})
        assert [entry.path for entry in alice.list_repo_tree(REPO)] == [".gitattributes", "a"]
        assert [entry.path for entry in alice.list_repo_tree(REPO, "a")] == ["a/b", "a/model.safetensors"]
        recursive = {entry.path: entry for entry in alice.list_repo_tree(REPO, recursive=True, expand=True)}
        assert list(recursive) == [".gitattributes", "a", "a/b", "a/b/config.json", "a/model.safetensors"]
        assert recursive["a"].last_commit.oid == second.oid
        assert recursive["a/b"].last_commit.oid != second.oid
        assert recursive["a/model.safetensors"].lfs.size == len(WEIGHTS)
        assert recursive["a/model.safetensors"].security.safe
        known = alice.get_paths_info(REPO, ["a/b/config.json", "a", "missing"])
        assert [entry.path for entry in known] == ["a/b/config.json", "a"]
        with pytest.raises(RemoteEntryNotFoundError):
            list(alice.list_repo_tree(REPO, "missing"))

    def test_branches_tags_and_history(self, alice):
        first = put(alice, {"config.json": CONFIG})
        alice.create_tag(REPO, tag="v1", tag_message="first")
        alice.create_branch(REPO, branch="next/big", revision="v1")
        second = put(alice, {"config.json": b"{}"}, revision="next/big")
        refs = alice.list_repo_refs(REPO)
        assert {ref.name: ref.target_commit for ref in refs.branches} == {
            "main": first.oid,
            "next/big": second.oid,
        }
        (tag,) = refs.tags
        assert (tag.name, tag.ref, tag.target_commit) == ("v1", "refs/tags/v1", first.oid)
        history = [commit.commit_id for commit in alice.list_repo_commits(REPO, revision="next/big")]
        assert history[:2] == [second.oid, first.oid]
        assert len(history) == 3
        for taken in (lambda: alice.create_tag(REPO, tag="v1"), lambda: alice.create_branch(REPO, branch="main")):
            with pytest.raises(HfHubHTTPError) as error:
                taken()
            assert status_of(error) == 409
        alice.delete_tag(REPO, tag="v1")
        alice.delete_branch(REPO, branch="next/big")
        assert [ref.name for ref in alice.list_repo_refs(REPO).branches] == ["main"]

    def test_what_is_missing_raises_what_the_real_hub_raises(self, own_hub, alice, tmp_path):
        for token, status in ((alice.token, 404), (False, 401)):
            with pytest.raises(RepositoryNotFoundError) as error:
                alice.model_info("alice/missing", token=token)
            assert status_of(error) == status
        with pytest.raises(RevisionNotFoundError):
            alice.model_info(REPO, revision="v9")
        with pytest.raises(RevisionNotFoundError):
            put(alice, {"config.json": CONFIG}, revision="v9")
        options = {"endpoint": own_hub.endpoint, "token": alice.token, "cache_dir": tmp_path}
        with pytest.raises(RepositoryNotFoundError):
            hf_hub_download("alice/missing", "config.json", **options)
        with pytest.raises(RevisionNotFoundError):
            hf_hub_download(REPO, "config.json", revision="v9", **options)
        with pytest.raises(RemoteEntryNotFoundError):
            hf_hub_download(REPO, "config.json", **options)
        head = alice.model_info(REPO).sha
        assert (tmp_path / "models--alice--resnet" / ".no_exist" / head / "config.json").exists()

    def test_routes_that_the_hub_lacks_are_named(self, alice):
        with pytest.raises(HfHubHTTPError, match="no route POST /api/models/alice/resnet/super-squash/main"):
            alice.super_squash_history(REPO)


class TestSearching:
    @pytest.fixture
    def models(self, own_hub, alice):
        alice.create_repo("lab/vit")
        alice.create_repo("lab/empty")
        put(alice, {"README.md": CARD.encode()})
        put(alice, {"README.md": CARD.replace("mit", "apache-2.0").encode()}, "lab/vit")

    @pytest.mark.parametrize(
        ("query", "found"),
        [
            ({}, [REPO, "lab/vit", "lab/empty"]),
            ({"filter": "pnc-hub"}, [REPO, "lab/vit"]),
            ({"filter": ["pnc-hub", "license:apache-2.0"]}, ["lab/vit"]),
            ({"filter": "base_model:adapter:bob/teacher", "author": "alice"}, [REPO]),
            ({"author": "lab"}, ["lab/vit", "lab/empty"]),
            ({"search": "RESN"}, [REPO]),
            ({"pipeline_tag": "image-classification", "limit": 1}, [REPO]),
            ({"sort": "created_at"}, ["lab/empty", "lab/vit", REPO]),
            ({"filter": "nothing"}, []),
        ],
    )
    def test_models_are_found(self, alice, models, query, found):
        assert [model.id for model in alice.list_models(**query)] == found

    def test_how_much_is_told_of_each(self, alice, models):
        brief, full, expanded = (
            next(iter(alice.list_models(author="alice", **options)))
            for options in ({}, {"full": True, "cardData": True}, {"expand": ["sha"]})
        )
        assert (brief.sha, brief.siblings, brief.card_data) == (None, None, None)
        assert "pnc-hub" in brief.tags
        assert full.sha == expanded.sha == alice.model_info(REPO).sha
        assert full.card_data.license == "mit"
        assert [sibling.rfilename for sibling in full.siblings] == [".gitattributes", "README.md"]
        assert expanded.tags is None

    def test_unknown_parameters_are_not_ignored(self, alice, models):
        with pytest.raises(BadRequestError, match="num_parameters"):
            list(alice.list_models(num_parameters="min:1"))

    def test_listings_come_in_pages(self):
        with LoopbackHub(page_size=2) as own_hub:
            alice = HfApi(endpoint=own_hub.endpoint, token=own_hub.add_user("alice"))
            names = [f"alice/model-{index}" for index in range(5)]
            for name in names:
                alice.create_repo(name)
            own_hub.requests.clear()
            assert [model.id for model in alice.list_models(search="model", author="alice")] == names
            assert len(own_hub.requests) == 3
            put(alice, {f"{index}.txt": b"text" for index in range(4)}, names[0])
            assert len(list(alice.list_repo_tree(names[0], recursive=True))) == 5
