"""The loopback Hub behaves towards huggingface_hub as the real one does."""

import base64
import hashlib
import http.client
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from email.message import Message
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    BadRequestError,
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.sha import git_hash
from loopback_hub import LoopbackHub

REPO = "alice/resnet"
CONFIG = b'{"width": 64}\n'
WEIGHTS = b"\x08\0\0\0\0\0\0\0{}      "
CARD = """---
library_name: pnc-hub
pipeline_tag: image-classification
language: en
license: mit
tags: [partial-network-cloning]
datasets: [cifar100]
base_model: bob/teacher
base_model_relation: adapter
---
# A model
"""


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        yield hub


@pytest.fixture
def api(hub: LoopbackHub) -> HfApi:
    """The client of `alice`, who owns one empty repository."""
    api = HfApi(endpoint=hub.endpoint, token=hub.add_user("alice", orgs=["lab"]))
    api.create_repo(REPO)
    return api


def put(api: HfApi, files: dict[str, bytes], repo_id: str = REPO, **options):
    operations = [CommitOperationAdd(path, content) for path, content in files.items()]
    return api.create_commit(repo_id, operations, commit_message="add files", **options)


class Answer(NamedTuple):
    status: int
    headers: Message
    content: bytes


def send(method: str, url: str, *, headers: dict[str, str] | None = None, body=None) -> Answer:
    """Send one request without huggingface_hub; redirects are not followed."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port)
    connection.request(method, parts.path, body=body, headers=headers or {}, encode_chunked=True)
    response = connection.getresponse()
    answer = Answer(response.status, response.headers, response.read())
    connection.close()
    return answer


def file_line(path: str, content: bytes) -> dict[str, Any]:
    value = {"path": path, "content": base64.b64encode(content).decode(), "encoding": "base64"}
    return {"key": "file", "value": value}


def send_commit(api: HfApi, operation: dict[str, Any]) -> Answer:
    """Commit to `main` without the checks that huggingface_hub makes first."""
    header = {"key": "header", "value": {"summary": "unchecked", "description": ""}}
    body = b"".join(json.dumps(line).encode() + b"\n" for line in (header, operation))
    url = f"{api.endpoint}/api/models/{REPO}/commit/main"
    return send("POST", url, headers={"Authorization": f"Bearer {api.token}"}, body=body)


def status_of(error: pytest.ExceptionInfo[HfHubHTTPError]) -> int:
    return error.value.response.status_code


class TestAccounts:
    def test_the_token_tells_who_asks(self, api):
        identity = api.whoami()
        assert identity["name"] == "alice"
        assert [org["name"] for org in identity["orgs"]] == ["lab"]
        assert identity["auth"]["accessToken"]["role"] == "write"

    def test_a_bad_token_is_refused(self, hub, api):
        with pytest.raises(HfHubHTTPError, match="Invalid credentials in Authorization header") as error:
            api.model_info(REPO, token="hf_nobody")
        assert status_of(error) == 401
        assert not isinstance(error.value, RepositoryNotFoundError)
        with pytest.raises(HfHubHTTPError, match="Invalid credentials"):
            list(api.list_models(token="hf_nobody"))

    def test_repositories_are_created_once_and_deleted(self, hub, api):
        url = api.create_repo(REPO, exist_ok=True)
        assert (url.repo_id, str(url)) == (REPO, f"{hub.endpoint}/{REPO}")
        with pytest.raises(HfHubHTTPError) as error:
            api.create_repo(REPO)
        assert status_of(error) == 409
        assert api.create_repo("lab/vit").repo_id == "lab/vit"
        api.delete_repo("lab/vit")
        assert not api.repo_exists("lab/vit")
        with pytest.raises(RepositoryNotFoundError):
            api.delete_repo("lab/vit")

    def test_private_repositories_are_refused_rather_than_made_public(self, api):
        with pytest.raises(BadRequestError, match="public repositories only"):
            api.create_repo("alice/secret", private=True)

    @pytest.mark.parametrize(("name", "role"), [("bob", "write"), ("alice", "read")])
    def test_only_writers_of_the_namespace_may_write(self, hub, api, name, role):
        stranger = HfApi(endpoint=hub.endpoint, token=hub.add_user(name, role=role))
        stranger.auth_check(REPO)
        refused = [
            lambda: stranger.auth_check(REPO, write=True),
            lambda: stranger.create_repo("alice/other"),
            lambda: stranger.delete_repo(REPO),
            lambda: stranger.create_tag(REPO, tag="v1"),
            lambda: put(stranger, {"config.json": CONFIG}),
        ]
        for request in refused:
            with pytest.raises(HfHubHTTPError) as error:
                request()
            assert status_of(error) == 403

    def test_anonymous_users_read_but_do_not_write(self, hub, api):
        anonymous = HfApi(endpoint=hub.endpoint, token=False)
        assert anonymous.model_info(REPO).id == REPO
        with pytest.raises(HfHubHTTPError) as error:
            put(anonymous, {"config.json": CONFIG})
        assert status_of(error) == 401


class TestReading:
    def test_model_info(self, api):
        commit = put(api, {"README.md": CARD.encode(), "config.json": CONFIG, "model.safetensors": WEIGHTS})
        info = api.model_info(REPO, files_metadata=True)
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
        expanded = api.model_info(REPO, expand=["sha", "tags"])
        assert (expanded.sha, expanded.siblings) == (commit.oid, None)

    def test_tree_and_paths_info(self, api):
        put(api, {"a/b/config.json": CONFIG})
        second = put(api, {"a/model.safetensors": WEIGHTS})
        assert [entry.path for entry in api.list_repo_tree(REPO)] == [".gitattributes", "a"]
        assert [entry.path for entry in api.list_repo_tree(REPO, "a")] == ["a/b", "a/model.safetensors"]
        recursive = {entry.path: entry for entry in api.list_repo_tree(REPO, recursive=True, expand=True)}
        assert list(recursive) == [".gitattributes", "a", "a/b", "a/b/config.json", "a/model.safetensors"]
        assert recursive["a"].last_commit.oid == second.oid
        assert recursive["a/b"].last_commit.oid != second.oid
        assert recursive["a/model.safetensors"].lfs.size == len(WEIGHTS)
        known = api.get_paths_info(REPO, ["a/b/config.json", "a", "missing"])
        assert [entry.path for entry in known] == ["a/b/config.json", "a"]
        with pytest.raises(RemoteEntryNotFoundError):
            list(api.list_repo_tree(REPO, "missing"))

    def test_branches_tags_and_history(self, api):
        first = put(api, {"config.json": CONFIG})
        api.create_tag(REPO, tag="v1", tag_message="first")
        api.create_branch(REPO, branch="next/big", revision="v1")
        second = put(api, {"config.json": b"{}"}, revision="next/big")
        refs = api.list_repo_refs(REPO)
        assert {ref.name: ref.target_commit for ref in refs.branches} == {
            "main": first.oid,
            "next/big": second.oid,
        }
        (tag,) = refs.tags
        assert (tag.name, tag.ref, tag.target_commit) == ("v1", "refs/tags/v1", first.oid)
        history = [commit.commit_id for commit in api.list_repo_commits(REPO, revision="next/big")]
        assert history[:2] == [second.oid, first.oid]
        assert len(history) == 3
        for taken in (lambda: api.create_tag(REPO, tag="v1"), lambda: api.create_branch(REPO, branch="main")):
            with pytest.raises(HfHubHTTPError) as error:
                taken()
            assert status_of(error) == 409
        api.delete_tag(REPO, tag="v1")
        api.delete_branch(REPO, branch="next/big")
        assert [ref.name for ref in api.list_repo_refs(REPO).branches] == ["main"]

    def test_what_is_missing_raises_what_the_real_hub_raises(self, hub, api, tmp_path):
        for token, status in ((api.token, 404), (False, 401)):
            with pytest.raises(RepositoryNotFoundError) as error:
                api.model_info("alice/missing", token=token)
            assert status_of(error) == status
        with pytest.raises(RevisionNotFoundError):
            api.model_info(REPO, revision="v9")
        with pytest.raises(RevisionNotFoundError):
            put(api, {"config.json": CONFIG}, revision="v9")
        options = {"endpoint": hub.endpoint, "token": api.token, "cache_dir": tmp_path}
        with pytest.raises(RepositoryNotFoundError):
            hf_hub_download("alice/missing", "config.json", **options)
        with pytest.raises(RevisionNotFoundError):
            hf_hub_download(REPO, "config.json", revision="v9", **options)
        with pytest.raises(RemoteEntryNotFoundError):
            hf_hub_download(REPO, "config.json", **options)
        head = api.model_info(REPO).sha
        assert (tmp_path / "models--alice--resnet" / ".no_exist" / head / "config.json").exists()

    def test_routes_that_the_hub_lacks_are_named(self, api):
        with pytest.raises(HfHubHTTPError, match="no route POST /api/repos/move"):
            api.move_repo(REPO, "alice/renamed")


class TestSearching:
    @pytest.fixture
    def models(self, hub, api):
        api.create_repo("lab/vit")
        api.create_repo("lab/empty")
        put(api, {"README.md": CARD.encode()})
        put(api, {"README.md": CARD.replace("mit", "apache-2.0").encode()}, "lab/vit")

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
            ({"filter": "nothing"}, []),
        ],
    )
    def test_models_are_found(self, api, models, query, found):
        assert [model.id for model in api.list_models(**query)] == found

    def test_how_much_is_told_of_each(self, api, models):
        brief, full, expanded = (
            next(iter(api.list_models(author="alice", **options)))
            for options in ({}, {"full": True, "cardData": True}, {"expand": ["sha"]})
        )
        assert (brief.sha, brief.siblings, brief.card_data) == (None, None, None)
        assert "pnc-hub" in brief.tags
        assert full.sha == expanded.sha == api.model_info(REPO).sha
        assert full.card_data.license == "mit"
        assert [sibling.rfilename for sibling in full.siblings] == [".gitattributes", "README.md"]
        assert expanded.tags is None

    def test_unknown_parameters_are_not_ignored(self, api, models):
        with pytest.raises(BadRequestError, match="num_parameters"):
            list(api.list_models(num_parameters="min:1"))

    def test_listings_come_in_pages(self):
        with LoopbackHub(page_size=2) as hub:
            api = HfApi(endpoint=hub.endpoint, token=hub.add_user("alice"))
            names = [f"alice/model-{index}" for index in range(5)]
            for name in names:
                api.create_repo(name)
            hub.requests.clear()
            assert [model.id for model in api.list_models(search="model", author="alice")] == names
            assert len(hub.requests) == 3
            put(api, {f"{index}.txt": b"text" for index in range(4)}, names[0])
            assert len(list(api.list_repo_tree(names[0], recursive=True))) == 5


class TestPublishing:
    def test_small_text_is_regular_and_the_rest_is_lfs(self, hub, api):
        files = {
            "config.json": CONFIG,
            "model.safetensors": WEIGHTS,
            "table.txt": b"\0binary",
            "big.txt": b"x" * 10_000_001,
            "empty.bin": b"",
        }
        put(api, files)
        entries = {entry.path: entry for entry in api.list_repo_tree(REPO)}
        large = {path for path, entry in entries.items() if entry.lfs}
        assert large == {"model.safetensors", "table.txt", "big.txt"}
        assert all(entries[path].size == len(content) for path, content in files.items())
        uploads = [record for record in hub.requests if record.method == "PUT"]
        assert len(uploads) == 3
        assert not any(record.authenticated for record in uploads)

    def test_known_contents_are_not_uploaded_again(self, hub, api):
        put(api, {"model.safetensors": WEIGHTS})
        api.create_repo("lab/copy")
        hub.requests.clear()
        put(api, {"other.safetensors": WEIGHTS}, "lab/copy")
        assert "PUT" not in [record.method for record in hub.requests]

    def test_an_unchanged_folder_makes_no_commit(self, hub, api, tmp_path):
        (tmp_path / "config.json").write_bytes(CONFIG)
        (tmp_path / "model.safetensors").write_bytes(WEIGHTS)
        first = api.upload_folder(repo_id=REPO, folder_path=tmp_path)
        hub.requests.clear()
        second = api.upload_folder(repo_id=REPO, folder_path=tmp_path)
        assert second.oid == first.oid
        assert not any("/commit/" in record.path for record in hub.requests)
        (tmp_path / "config.json").write_bytes(b"{}")
        assert api.upload_folder(repo_id=REPO, folder_path=tmp_path).oid != first.oid

    def test_files_and_folders_are_deleted(self, api):
        put(api, {"config.json": CONFIG, "old/a.txt": b"a", "old/b/c.txt": b"c", "older.txt": b"older"})
        api.delete_folder("old", REPO)
        api.delete_file("config.json", REPO)
        assert api.list_repo_files(REPO) == [".gitattributes", "older.txt"]
        with pytest.raises(RemoteEntryNotFoundError, match="A file with this name doesn't exist"):
            api.create_commit(REPO, [CommitOperationDelete("config.json")], commit_message="again")

    def test_one_of_several_racing_commits_wins(self, api):
        parent = api.model_info(REPO).sha
        barrier = threading.Barrier(6)

        def race(index: int) -> int:
            barrier.wait()
            try:
                put(api, {"winner.txt": b"%d" % index}, parent_commit=parent)
            except HfHubHTTPError as error:
                return error.response.status_code
            return 200

        with ThreadPoolExecutor(6) as pool:
            statuses = sorted(pool.map(race, range(6)))
        assert statuses == [200, 412, 412, 412, 412, 412]

    def test_a_stale_parent_is_refused(self, api):
        stale = api.model_info(REPO).sha
        put(api, {"config.json": CONFIG})
        with pytest.raises(HfHubHTTPError, match="A commit has happened since") as error:
            put(api, {"config.json": b"{}"}, parent_commit=stale)
        assert status_of(error) == 412

    def test_readers_may_open_pull_requests(self, hub, api, tmp_path):
        head = api.model_info(REPO).sha
        bob = HfApi(endpoint=hub.endpoint, token=hub.add_user("bob"))
        proposal = put(bob, {"model.safetensors": WEIGHTS}, create_pr=True)
        assert (proposal.pr_num, proposal.pr_revision) == (1, "refs/pr/1")
        assert api.model_info(REPO).sha == head
        amended = put(bob, {"config.json": CONFIG}, revision="refs/pr/1")
        refs = api.list_repo_refs(REPO, include_pull_requests=True)
        assert [(ref.ref, ref.target_commit) for ref in refs.pull_requests] == [("refs/pr/1", amended.oid)]
        path = snapshot_download(REPO, revision="refs/pr/1", endpoint=hub.endpoint, cache_dir=tmp_path)
        assert (Path(path) / "model.safetensors").read_bytes() == WEIGHTS

    def test_lfs_files_without_content_are_refused(self, api):
        pointer = {"path": "model.safetensors", "algo": "sha256", "oid": "0" * 64, "size": 1}
        refused = send_commit(api, {"key": "lfsFile", "value": pointer})
        assert refused.status == 400
        assert "never uploaded" in refused.headers["X-Error-Message"]

    def test_uploads_with_other_content_than_announced_are_refused(self, hub, api):
        put(api, {"model.safetensors": WEIGHTS})
        location = send("HEAD", f"{hub.endpoint}/{REPO}/resolve/main/model.safetensors").headers["Location"]
        assert send("PUT", location, body=b"other").status == 400
        assert send("GET", location).content == WEIGHTS

    @pytest.mark.parametrize("path", ["../up", "a//b", "a/./b", ".git/config", "a/../b", "/root", "nul\0"])
    def test_unsafe_paths_are_refused(self, api, path):
        refused = send_commit(api, file_line(path, b"text"))
        assert refused.status == 400
        assert refused.headers["X-Error-Message"].startswith("Unsafe path")

    def test_a_path_is_not_both_file_and_folder(self, api):
        with pytest.raises(BadRequestError, match="both a file and a folder"):
            put(api, {"a": b"file", "a/b": b"inside"})

    def test_unreadable_cards_are_refused(self, hub, api):
        unreadable = b"---\ntags: [open\n---\n"
        with pytest.raises(ValueError, match="Invalid metadata in README"):
            put(api, {"README.md": unreadable})
        refused = send_commit(api, file_line("README.md", unreadable))
        assert (refused.status, refused.headers["X-Error-Message"][:10]) == (400, "README.md:")
        with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
            put(api, {"README.md": b"# No metadata\n"})


class TestDownloading:
    @pytest.fixture
    def commit(self, api):
        return put(api, {"config.json": CONFIG, "a b/model.safetensors": WEIGHTS})

    @pytest.mark.parametrize("filename", ["config.json", "a b/model.safetensors"])
    def test_a_second_download_costs_one_head_by_branch_and_nothing_by_commit(
        self, hub, api, commit, tmp_path, filename
    ):
        def methods_of_download(revision: str) -> list[str]:
            hub.requests.clear()
            options = {"endpoint": hub.endpoint, "token": api.token, "cache_dir": tmp_path}
            path = Path(hf_hub_download(REPO, filename, revision=revision, **options))
            assert path.read_bytes() == {"config.json": CONFIG, "a b/model.safetensors": WEIGHTS}[filename]
            return [record.method for record in hub.requests]

        assert methods_of_download("main") == ["HEAD", "GET"]
        assert methods_of_download("main") == ["HEAD"]
        assert methods_of_download(commit.oid) == []

    def test_a_snapshot_by_tag_survives_later_commits(self, hub, api, commit, tmp_path):
        api.create_tag(REPO, tag="v1")
        put(api, {"config.json": b"{}"})
        folder = snapshot_download(REPO, revision="v1", endpoint=hub.endpoint, cache_dir=tmp_path)
        assert Path(folder).name == commit.oid
        assert (Path(folder) / "config.json").read_bytes() == CONFIG
        assert (Path(folder) / "a b" / "model.safetensors").read_bytes() == WEIGHTS
        hub.requests.clear()
        snapshot_download(REPO, revision="v1", endpoint=hub.endpoint, cache_dir=tmp_path)
        assert [record.path for record in hub.requests] == [f"/api/models/{REPO}/revision/v1"]

    def test_the_cdn_never_sees_a_token(self, hub, api, commit, tmp_path):
        hub.requests.clear()
        api.hf_hub_download(REPO, "a b/model.safetensors", cache_dir=tmp_path)
        on_hub, on_cdn = hub.requests
        assert (on_hub.status, on_hub.authenticated) == (302, True)
        assert (on_cdn.status, on_cdn.authenticated, on_cdn.bytes) == (200, False, len(WEIGHTS))
        redirect = send("HEAD", f"{hub.endpoint}/{REPO}/resolve/main/a%20b/model.safetensors")
        location = redirect.headers["Location"]
        assert location.startswith("http://localhost:")
        assert send("GET", location, headers={"Authorization": f"Bearer {api.token}"}).status == 400

    @pytest.mark.parametrize(
        ("asked", "status", "part"),
        [
            ("bytes=2-4", 206, slice(2, 5)),
            ("bytes=4-", 206, slice(4, None)),
            ("bytes=-3", 206, slice(-3, None)),
            ("bytes=2-900", 206, slice(2, None)),
            ("lines=1-2", 200, slice(None)),
        ],
    )
    def test_a_range_is_served(self, hub, commit, asked, status, part):
        url = f"{hub.endpoint}/{REPO}/resolve/main/config.json"
        answer = send("GET", url, headers={"Range": asked})
        assert (answer.status, answer.content) == (status, CONFIG[part])
        assert (hub.requests[-1].range, hub.requests[-1].bytes) == (asked, len(CONFIG[part]))
        assert send("GET", url, headers={"Range": f"bytes={len(CONFIG)}-"}).status == 416


class TestTraffic:
    def test_a_planned_fault_answers_the_given_number_of_requests(self, hub, api):
        fault = hub.fail(r"GET /api/models/alice/resnet$", status=503, times=2)
        for _ in range(2):
            with pytest.raises(HfHubHTTPError) as error:
                api.model_info(REPO)
            assert status_of(error) == 503
        assert api.model_info(REPO).id == REPO
        assert fault.remaining == 0
        assert [record.status for record in hub.requests[-3:]] == [503, 503, 200]

    def test_a_planned_fault_may_carry_headers(self, hub, api):
        hub.fail("GET .*/revision/main", status=403, headers={"X-Error-Code": "GatedRepo"})
        with pytest.raises(GatedRepoError):
            api.model_info(REPO, revision="main")

    def test_bodies_may_come_in_chunks(self, hub, api):
        chunks = iter([b'{"content": "---\\nlicense: ', b'mit\\n---\\n"}'])
        answer = send("POST", f"{hub.endpoint}/api/validate-yaml", body=chunks)
        assert (answer.status, answer.content) == (200, b'{"errors": [], "warnings": []}')

    def test_nothing_answers_after_the_end(self):
        def list_models() -> bytes:
            connection.request("GET", "/api/models")
            return connection.getresponse().read()

        with LoopbackHub() as hub:
            connection = http.client.HTTPConnection(urlsplit(hub.endpoint).netloc)
            assert list_models() == b"[]"
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            list_models()
        with pytest.raises(ConnectionError):
            send("GET", f"{hub.endpoint}/api/models")
