"""Clients that read their settings once, so each has a process of its own: hf_xet, https; and timm."""

import hashlib
import json

import pytest
import timm
import torch
from loopback_client import REPO, client, run_client, send
from loopback_hub import LoopbackHub, make_certificate

pytest_plugins = ("loopback_client",)

DATA = bytes(range(250)) * 800


class TestXet:
    @pytest.fixture
    def hub(self, tmp_path):
        with LoopbackHub(xet_store=tmp_path / "store") as hub:
            hub.token = hub.add_user("alice")
            yield hub

    def test_what_was_published_comes_back(self, hub, tmp_path):
        code = """
api.create_repo("alice/resnet")
data = bytes(range(250)) * 800
files = {"model.safetensors": data, "config.json": b"{}"}
commit = api.create_commit("alice/resnet", [CommitOperationAdd(*file) for file in files.items()], commit_message="add")
folder = pathlib.Path(api.snapshot_download("alice/resnet"))
entries = {entry.path: entry for entry in api.list_repo_tree("alice/resnet")}
result = [
    {name: (folder / name).read_bytes() == content for name, content in files.items()},
    {name: [entry.xet_hash, entry.lfs and entry.lfs.sha256] for name, entry in entries.items()},
]
"""
        same, hashes = run_client(hub, code, tmp_path, TOKEN=hub.token)
        assert same == {"model.safetensors": True, "config.json": True}
        xet_hash, sha256 = hashes["model.safetensors"]
        assert (len(xet_hash), sha256) == (64, hashlib.sha256(DATA).hexdigest())
        assert hashes["config.json"] == [None, None]
        paths = [record.path for record in hub.requests]
        assert any("xet-write-token" in path for path in paths)
        assert any("xet-read-token" in path for path in paths)
        assert not any("lfs" in path for path in paths)
        found = send("HEAD", f"{hub.endpoint}/{REPO}/resolve/main/model.safetensors").headers["Location"]
        part = send("GET", found, headers={"Range": "bytes=3-9"})  # of what is in the store, as from the real CDN
        assert (part.status, part.content) == (206, DATA[3:10])
        assert send("GET", found).content == DATA

    def test_folders_are_proposed_and_unchanged_ones_make_no_commit(self, hub, tmp_path):
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "model.safetensors").write_bytes(DATA)
        (tmp_path / "folder" / "config.json").write_bytes(b"{}")
        owner = client(hub, "alice")
        owner.create_repo(REPO)
        code = """
upload = dict(repo_id="alice/resnet", folder_path=os.environ["FOLDER"])
proposed = api.upload_folder(**upload, create_pr=True)
api.upload_folder(**upload, revision="refs/pr/1")
result = [commit.commit_id for commit in api.list_repo_commits("alice/resnet", revision="refs/pr/1")]
"""
        bob = hub.add_user("bob")
        history = run_client(hub, code, tmp_path, TOKEN=bob, FOLDER=str(tmp_path / "folder"))
        assert len(history) == 2
        assert owner.model_info(REPO).sha == history[1]
        assert owner.model_info(REPO, revision="refs/pr/1").sha == history[0]

    def test_a_hub_without_a_store_says_so(self, tmp_path):
        code = """
api.create_repo("alice/resnet")
try:
    api.create_commit("alice/resnet", [CommitOperationAdd("model.safetensors", b"0" * 99)], commit_message="add")
except Exception as error:
    result = [type(error).__name__, str(error)]
"""
        with LoopbackHub() as hub:
            name, text = run_client(hub, code, tmp_path, TOKEN=hub.add_user("alice"))
        assert name == "ConnectionError"
        assert "/xet-write-token/" in text


class TestHttps:
    @pytest.fixture
    def hub(self, tmp_path):
        certificate = make_certificate(tmp_path)
        if certificate is None:
            pytest.skip("openssl is not installed")
        with LoopbackHub(certificate=certificate) as hub:
            hub.trust = {"SSL_CERT_FILE": str(certificate), "HF_HUB_DISABLE_XET": "1"}
            yield hub

    def test_anonymous_users_can_not_tell_private_from_missing(self, hub, tmp_path):
        code = """
api.create_repo("alice/secret", private=True)
api.create_commit("alice/secret", [CommitOperationAdd("a.safetensors", b"0" * 99)], commit_message="add")
api.snapshot_download("alice/secret", local_dir=os.environ["FOLDER"])
result = []
for repo in ("alice/secret", "alice/missing"):
    for request in (api.model_info, lambda repo, **who: api.hf_hub_download(repo, "a.safetensors", **who)):
        try:
            request(repo, token=False)
        except Exception as error:
            answer = error.response
            result.append([type(error).__name__, answer.status_code, answer.headers.get("X-Error-Code"), answer.text])
"""
        token, folder = hub.add_user("alice"), str(tmp_path / "folder")
        refusals = run_client(hub, code, tmp_path / "home", TOKEN=token, FOLDER=folder, **hub.trust)
        assert [refusal[:3] for refusal in refusals] == [["RepositoryNotFoundError", 401, None]] * 4
        assert {refusal[3] for refusal in refusals} <= {"", '{"error": "Invalid username or password."}'}
        at_cdn = [record for record in hub.requests if record.path.startswith("/lfs/")]
        assert [(record.method, record.authenticated) for record in at_cdn] == [("PUT", False), ("GET", False)]

    def test_nobody_trusts_it_unasked(self, hub, tmp_path):
        code = """
try:
    result = api.model_info("alice/resnet").id
except Exception as error:
    result = str(error)
"""
        assert "certificate" in run_client(hub, code, tmp_path, HF_HUB_DISABLE_XET="1")


class TestTimm:
    """The client of this process, whose Hub is that of all tests."""

    def test_its_models_are_published_and_loaded(self, hub, tmp_path):
        token = hub.add_user("timm-user")
        model = timm.create_model("test_resnet", num_classes=3).eval()
        timm.models.push_to_hf_hub(model, "timm-user/tiny", token=token, private=False)
        hub.requests.clear()
        loaded = timm.create_model("hf-hub:timm-user/tiny", pretrained=True, cache_dir=tmp_path).eval()
        image = torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            assert torch.equal(loaded(image), model(image))
        assert any(record.path.startswith("/lfs/") for record in hub.requests)
        assert not any(record.authenticated for record in hub.requests)
        config = json.loads(next(tmp_path.rglob("config.json")).read_text())
        assert (config["architecture"], config["num_classes"]) == ("test_resnet", 3)
