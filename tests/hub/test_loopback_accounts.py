"""Who may see, read and change what, as towards the real Hub."""

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from loopback_client import CONFIG, REPO, WEIGHTS, client, put, status_of

pytest_plugins = ("loopback_client",)


class TestAccounts:
    def test_the_token_tells_who_asks(self, alice):
        identity = alice.whoami()
        assert identity["name"] == "alice"
        assert [org["name"] for org in identity["orgs"]] == ["lab"]
        assert identity["auth"]["accessToken"]["role"] == "write"

    def test_a_bad_token_is_refused(self, own_hub, alice):
        with pytest.raises(HfHubHTTPError, match="Invalid credentials in Authorization header") as error:
            alice.model_info(REPO, token="hf_nobody")
        assert status_of(error) == 401
        assert not isinstance(error.value, RepositoryNotFoundError)
        with pytest.raises(HfHubHTTPError, match="Invalid credentials"):
            list(alice.list_models(token="hf_nobody"))

    def test_repositories_are_created_once_and_deleted(self, own_hub, alice):
        url = alice.create_repo(REPO, exist_ok=True)
        assert (url.repo_id, str(url)) == (REPO, f"{own_hub.endpoint}/{REPO}")
        with pytest.raises(HfHubHTTPError) as error:
            alice.create_repo(REPO)
        assert status_of(error) == 409
        assert alice.create_repo("lab/vit").repo_id == "lab/vit"
        alice.delete_repo("lab/vit")
        assert not alice.repo_exists("lab/vit")
        with pytest.raises(RepositoryNotFoundError):
            alice.delete_repo("lab/vit")

    @pytest.mark.parametrize(("name", "role"), [("bob", "write"), ("alice", "read")])
    def test_only_writers_of_the_namespace_may_write(self, own_hub, alice, name, role):
        stranger = client(own_hub, name, role=role)
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

    def test_anonymous_users_read_but_do_not_write(self, own_hub, alice):
        anonymous = HfApi(endpoint=own_hub.endpoint, token=False)
        assert anonymous.model_info(REPO).id == REPO
        with pytest.raises(HfHubHTTPError) as error:
            put(anonymous, {"config.json": CONFIG})
        assert status_of(error) == 401


class TestAccess:
    def test_private_repositories_are_known_to_members_only(self, own_hub, alice, tmp_path):
        alice.create_repo("lab/secret", private=True)
        put(alice, {"config.json": CONFIG}, "lab/secret")
        member, bob = client(own_hub, "carol", orgs=["lab"]), client(own_hub, "bob")
        anonymous = HfApi(endpoint=own_hub.endpoint, token=False)
        assert member.model_info("lab/secret").private
        assert [model.id for model in member.list_models()] == [REPO, "lab/secret"]
        for stranger, status in ((bob, 404), (anonymous, 401)):
            assert [model.id for model in stranger.list_models()] == [REPO]
            for request in (
                lambda who: who.model_info("lab/secret"),
                lambda who: who.hf_hub_download("lab/secret", "config.json", cache_dir=tmp_path),
                lambda who: who.list_repo_refs("lab/secret"),
            ):
                with pytest.raises(RepositoryNotFoundError) as error:
                    request(stranger)
                assert status_of(error) == status
        alice.update_repo_settings("lab/secret", private=False)
        assert not anonymous.model_info("lab/secret").private

    def test_files_of_gated_repositories_are_for_the_admitted(self, own_hub, alice, tmp_path, monkeypatch):
        put(alice, {"config.json": CONFIG, "model.safetensors": WEIGHTS})
        alice.update_repo_settings(REPO, gated="manual")
        bob, anonymous = client(own_hub, "bob"), HfApi(endpoint=own_hub.endpoint, token=False)
        for stranger, status in ((bob, 403), (anonymous, 401)):
            assert stranger.model_info(REPO).gated == "manual"
            assert len(stranger.list_repo_files(REPO)) == 3
            for name in ("config.json", "model.safetensors"):
                with pytest.raises(GatedRepoError) as error:
                    stranger.hf_hub_download(REPO, name, cache_dir=tmp_path)
                assert status_of(error) == status
            with pytest.raises(GatedRepoError):
                stranger.auth_check(REPO)
        assert [model.id for model in bob.list_models(gated=False)] == []
        assert [model.id for model in bob.list_models(gated=True)] == [REPO]
        with monkeypatch.context() as patch:
            patch.setattr("huggingface_hub.constants.ENDPOINT", own_hub.endpoint)  # all that older clients know here
            alice.grant_access(REPO, "bob")
        bob.auth_check(REPO)
        bob.hf_hub_download(REPO, "model.safetensors", cache_dir=tmp_path)

    def test_disabled_repositories_are_closed_to_everybody(self, own_hub, alice, tmp_path):
        put(alice, {"config.json": CONFIG})
        own_hub.disable(REPO)
        for request in (
            lambda: alice.model_info(REPO),
            lambda: put(alice, {"config.json": b"{}"}),
        ):
            with pytest.raises(DisabledRepoError) as error:
                request()
            assert status_of(error) == 403
        with pytest.raises(LocalEntryNotFoundError) as wrapped:
            alice.hf_hub_download(REPO, "config.json", cache_dir=tmp_path)
        assert isinstance(wrapped.value.__cause__, DisabledRepoError)

    def test_moved_repositories_are_found_under_both_names(self, own_hub, alice, tmp_path):
        commit = put(alice, {"config.json": CONFIG, "model.safetensors": WEIGHTS})
        alice.move_repo(REPO, "lab/renamed")
        assert alice.model_info(REPO).id == "lab/renamed"
        folder = alice.snapshot_download(REPO, cache_dir=tmp_path)
        assert folder.endswith(commit.oid)
        assert put(alice, {"config.json": b"{}"}).oid == alice.model_info("lab/renamed").sha
        alice.move_repo("lab/renamed", "lab/again")
        assert alice.model_info(REPO).id == alice.model_info("lab/renamed").id == "lab/again"
        alice.create_repo(REPO)
        assert alice.model_info(REPO).id == REPO
        with pytest.raises(HfHubHTTPError) as error:
            alice.move_repo("lab/again", REPO)
        assert status_of(error) == 409
        with pytest.raises(HfHubHTTPError) as error:
            client(own_hub, "bob").move_repo(REPO, "bob/taken")
        assert status_of(error) == 403
