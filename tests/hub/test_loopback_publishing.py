"""Commits, large files and pull requests, as on the real Hub."""

import base64
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import CommitOperationDelete, HfApi, snapshot_download
from huggingface_hub.errors import BadRequestError, HfHubHTTPError, RemoteEntryNotFoundError
from loopback_client import CONFIG, REPO, WEIGHTS, Answer, client, put, send, status_of
from loopback_hub import LoopbackHub

pytest_plugins = ("loopback_client",)


def file_line(path: str, content: bytes) -> dict[str, Any]:
    value = {"path": path, "content": base64.b64encode(content).decode(), "encoding": "base64"}
    return {"key": "file", "value": value}


def send_commit(alice: HfApi, operation: dict[str, Any]) -> Answer:
    """Commit to `main` without the checks that huggingface_hub makes first."""
    header = {"key": "header", "value": {"summary": "unchecked", "description": ""}}
    body = b"".join(json.dumps(line).encode() + b"\n" for line in (header, operation))
    url = f"{alice.endpoint}/api/models/{REPO}/commit/main"
    return send("POST", url, headers={"Authorization": f"Bearer {alice.token}"}, body=body)


class TestPublishing:
    def test_small_text_is_regular_and_the_rest_is_lfs(self, own_hub, alice):
        files = {
            "config.json": CONFIG,
            "model.safetensors": WEIGHTS,
            "table.txt": b"\0binary",
            "big.txt": b"x" * 10_000_001,
            "empty.bin": b"",
        }
        put(alice, files)
        entries = {entry.path: entry for entry in alice.list_repo_tree(REPO)}
        large = {path for path, entry in entries.items() if entry.lfs}
        assert large == {"model.safetensors", "table.txt", "big.txt"}
        assert all(entries[path].size == len(content) for path, content in files.items())
        uploads = [record for record in own_hub.requests if record.method == "PUT"]
        assert len(uploads) == 3
        assert not any(record.authenticated for record in uploads)

    def test_very_large_files_are_uploaded_in_parts(self, tmp_path):
        content = bytes(range(250)) * 1000
        with LoopbackHub(part_size=100_000) as hub:
            alice = client(hub, "alice")
            alice.create_repo(REPO)
            put(alice, {"model.safetensors": content, "small.safetensors": WEIGHTS})
            uploads = [record for record in hub.requests if record.path.startswith("/lfs/")]
            assert sorted(record.method for record in uploads) == ["POST", "PUT", "PUT", "PUT", "PUT"]
            assert not any(record.authenticated for record in uploads)
            path = alice.hf_hub_download(REPO, "model.safetensors", cache_dir=tmp_path)
            assert Path(path).read_bytes() == content

    def test_parts_that_did_not_all_arrive_are_refused(self):
        with LoopbackHub(part_size=100_000) as hub:
            alice = client(hub, "alice")
            alice.create_repo(REPO)
            part_is_lost = hub.fail("PUT /lfs/.*/2$", status=200, headers={"ETag": '"lost"'})
            with part_is_lost, pytest.raises(RuntimeError, match="Error while uploading") as error:
                put(alice, {"model.safetensors": bytes(250_000)})
            assert "Some parts are missing" in str(error.value.__cause__)
            assert alice.list_repo_files(REPO) == [".gitattributes"]

    def test_known_contents_are_not_uploaded_again(self, own_hub, alice):
        put(alice, {"model.safetensors": WEIGHTS})
        alice.create_repo("lab/copy")
        own_hub.requests.clear()
        put(alice, {"other.safetensors": WEIGHTS}, "lab/copy")
        assert "PUT" not in [record.method for record in own_hub.requests]

    def test_an_unchanged_folder_makes_no_commit(self, own_hub, alice, tmp_path):
        (tmp_path / "config.json").write_bytes(CONFIG)
        (tmp_path / "model.safetensors").write_bytes(WEIGHTS)
        first = alice.upload_folder(repo_id=REPO, folder_path=tmp_path)
        own_hub.requests.clear()
        second = alice.upload_folder(repo_id=REPO, folder_path=tmp_path)
        assert second.oid == first.oid
        assert not any("/commit/" in record.path for record in own_hub.requests)
        (tmp_path / "config.json").write_bytes(b"{}")
        assert alice.upload_folder(repo_id=REPO, folder_path=tmp_path).oid != first.oid

    def test_files_and_folders_are_deleted(self, alice):
        put(alice, {"config.json": CONFIG, "old/a.txt": b"a", "old/b/c.txt": b"c", "older.txt": b"older"})
        alice.delete_folder("old", REPO)
        alice.delete_file("config.json", REPO)
        assert alice.list_repo_files(REPO) == [".gitattributes", "older.txt"]
        with pytest.raises(RemoteEntryNotFoundError, match="A file with this name doesn't exist"):
            alice.create_commit(REPO, [CommitOperationDelete("config.json")], commit_message="again")

    def test_one_of_several_racing_commits_wins(self, alice):
        parent = alice.model_info(REPO).sha
        barrier = threading.Barrier(6)

        def race(index: int) -> int:
            barrier.wait()
            try:
                put(alice, {"winner.txt": b"%d" % index}, parent_commit=parent)
            except HfHubHTTPError as error:
                return error.response.status_code
            return 200

        with ThreadPoolExecutor(6) as pool:
            statuses = sorted(pool.map(race, range(6)))
        assert statuses == [200, 412, 412, 412, 412, 412]

    def test_a_stale_parent_is_refused(self, alice):
        stale = alice.model_info(REPO).sha
        put(alice, {"config.json": CONFIG})
        with pytest.raises(HfHubHTTPError, match="A commit has happened since") as error:
            put(alice, {"config.json": b"{}"}, parent_commit=stale)
        assert status_of(error) == 412

    def test_readers_may_open_pull_requests(self, own_hub, alice, tmp_path):
        head = alice.model_info(REPO).sha
        bob = client(own_hub, "bob")
        proposal = put(bob, {"model.safetensors": WEIGHTS}, create_pr=True)
        assert (proposal.pr_num, proposal.pr_revision) == (1, "refs/pr/1")
        assert alice.model_info(REPO).sha == head
        amended = put(bob, {"config.json": CONFIG}, revision="refs/pr/1")
        refs = alice.list_repo_refs(REPO, include_pull_requests=True)
        assert [(ref.ref, ref.target_commit) for ref in refs.pull_requests] == [("refs/pr/1", amended.oid)]
        path = snapshot_download(REPO, revision="refs/pr/1", endpoint=own_hub.endpoint, cache_dir=tmp_path)
        assert (Path(path) / "model.safetensors").read_bytes() == WEIGHTS

    def test_pull_requests_may_be_opened_before_they_have_commits(self, own_hub, alice):
        head = alice.model_info(REPO).sha
        bob = client(own_hub, "bob")
        opened = bob.create_pull_request(REPO, "Moths", description="and wasps")
        assert (opened.num, opened.git_reference, opened.target_branch) == (1, "refs/pr/1", "refs/heads/main")
        assert (opened.author, opened.events[0].content) == ("bob", "and wasps")
        assert alice.model_info(REPO, revision="refs/pr/1").sha == head
        proposed = put(bob, {"config.json": CONFIG}, revision=opened.git_reference)
        assert alice.model_info(REPO, revision="refs/pr/1").sha == proposed.oid
        with pytest.raises(HfHubHTTPError) as error:
            put(client(own_hub, "carol"), {"config.json": b"{}"}, revision=opened.git_reference)
        assert status_of(error) == 403

    def test_what_gitignore_names_is_left_out(self, alice, tmp_path):
        for name in (".gitignore", "config.json", "notes.tmp", "cache/a.txt"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text("*.tmp\n# config.json\n/cache/\n")
        alice.upload_folder(repo_id=REPO, folder_path=tmp_path)
        assert set(alice.list_repo_files(REPO)) == {".gitattributes", ".gitignore", "config.json"}

    def test_lfs_files_without_content_are_refused(self, alice):
        pointer = {"path": "model.safetensors", "algo": "sha256", "oid": "0" * 64, "size": 1}
        refused = send_commit(alice, {"key": "lfsFile", "value": pointer})
        assert refused.status == 400
        assert "never uploaded" in refused.headers["X-Error-Message"]

    def test_uploads_with_other_content_than_announced_are_refused(self, own_hub, alice):
        put(alice, {"model.safetensors": WEIGHTS})
        location = send("HEAD", f"{own_hub.endpoint}/{REPO}/resolve/main/model.safetensors").headers["Location"]
        assert send("PUT", location, body=b"other").status == 400
        assert send("GET", location).content == WEIGHTS

    @pytest.mark.parametrize("path", ["../up", "a//b", "a/./b", ".git/config", "a/../b", "/root", "nul\0"])
    def test_unsafe_paths_are_refused(self, alice, path):
        refused = send_commit(alice, file_line(path, b"text"))
        assert refused.status == 400
        assert refused.headers["X-Error-Message"].startswith("Unsafe path")

    def test_a_path_is_not_both_file_and_folder(self, alice):
        with pytest.raises(BadRequestError, match="both a file and a folder"):
            put(alice, {"a": b"file", "a/b": b"inside"})

    def test_unreadable_cards_are_refused(self, own_hub, alice):
        unreadable = b"---\ntags: [open\n---\n"
        with pytest.raises(ValueError, match="Invalid metadata in README"):
            put(alice, {"README.md": unreadable})
        refused = send_commit(alice, file_line("README.md", unreadable))
        assert (refused.status, refused.headers["X-Error-Message"][:10]) == (400, "README.md:")
        with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
            put(alice, {"README.md": b"# No metadata\n"})
