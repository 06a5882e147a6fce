"""Files and parts of them, as from the real Hub and its CDN."""

from pathlib import Path

import pytest
from huggingface_hub import hf_hub_download, snapshot_download
from loopback_client import CONFIG, REPO, WEIGHTS, put, send

pytest_plugins = ("loopback_client",)


class TestDownloading:
    @pytest.fixture
    def commit(self, alice):
        return put(alice, {"config.json": CONFIG, "a b/model.safetensors": WEIGHTS})

    @pytest.mark.parametrize(
        ("filename", "first", "again"),
        [
            ("config.json", ["HEAD", "HEAD", "GET"], ["HEAD", "HEAD"]),  # the first leads to where the Hub keeps it
            ("a b/model.safetensors", ["HEAD", "GET"], ["HEAD"]),
        ],
    )
    def test_a_second_download_gets_nothing_by_branch_and_asks_nothing_by_commit(
        self, own_hub, alice, commit, tmp_path, filename, first, again
    ):
        def methods_of_download(revision: str) -> list[str]:
            own_hub.requests.clear()
            options = {"endpoint": own_hub.endpoint, "token": alice.token, "cache_dir": tmp_path}
            path = Path(hf_hub_download(REPO, filename, revision=revision, **options))
            assert path.read_bytes() == {"config.json": CONFIG, "a b/model.safetensors": WEIGHTS}[filename]
            return [record.method for record in own_hub.requests]

        assert methods_of_download("main") == first
        assert methods_of_download("main") == again
        assert methods_of_download(commit.oid) == []

    def test_a_snapshot_by_tag_survives_later_commits(self, own_hub, alice, commit, tmp_path):
        alice.create_tag(REPO, tag="v1")
        put(alice, {"config.json": b"{}"})
        folder = snapshot_download(REPO, revision="v1", endpoint=own_hub.endpoint, cache_dir=tmp_path)
        assert Path(folder).name == commit.oid
        assert (Path(folder) / "config.json").read_bytes() == CONFIG
        assert (Path(folder) / "a b" / "model.safetensors").read_bytes() == WEIGHTS
        own_hub.requests.clear()
        snapshot_download(REPO, revision="v1", endpoint=own_hub.endpoint, cache_dir=tmp_path)
        assert [record.path for record in own_hub.requests] == [f"/api/models/{REPO}/revision/v1"]

    def test_the_cdn_never_sees_a_token(self, own_hub, alice, commit, tmp_path):
        own_hub.requests.clear()
        alice.hf_hub_download(REPO, "a b/model.safetensors", cache_dir=tmp_path)
        on_hub, on_cdn = own_hub.requests
        assert (on_hub.status, on_hub.authenticated) == (302, True)
        assert (on_cdn.status, on_cdn.authenticated, on_cdn.bytes) == (200, False, len(WEIGHTS))
        redirect = send("HEAD", f"{own_hub.endpoint}/{REPO}/resolve/main/a%20b/model.safetensors")
        location = redirect.headers["Location"]
        assert location.startswith("http://localhost:")
        assert send("GET", location, headers={"Authorization": f"Bearer {alice.token}"}).status == 400

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
    def test_a_range_is_served(self, own_hub, commit, asked, status, part):
        url = f"{own_hub.endpoint}/api/resolve-cache/models/{REPO}/{commit.oid}/config.json"
        answer = send("GET", url, headers={"Range": asked})
        assert (answer.status, answer.content) == (status, CONFIG[part])
        assert (own_hub.requests[-1].range, own_hub.requests[-1].bytes) == (asked, len(CONFIG[part]))
        assert send("GET", url, headers={"Range": f"bytes={len(CONFIG)}-"}).status == 416

    def test_regular_files_are_elsewhere_on_the_hub(self, own_hub, alice, commit):
        put(alice, {"a b/notes.txt": CONFIG})
        answer = send("GET", f"{own_hub.endpoint}/{REPO}/resolve/main/a%20b%2Fnotes.txt")
        head = alice.model_info(REPO).sha
        assert answer.status == 307
        assert answer.headers["Location"] == f"/api/resolve-cache/models/{REPO}/{head}/a%20b%2Fnotes.txt"
        assert answer.headers["X-Repo-Commit"] == head
        assert int(answer.headers["Content-Length"]) != len(CONFIG)
        assert send("GET", f"{own_hub.endpoint}{answer.headers['Location']}").content == CONFIG
