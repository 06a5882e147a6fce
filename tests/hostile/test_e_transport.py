"""E: what a repository, the Hub, its CDN or somebody between can do; at every request, for each of the functions that read."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from common import images, slow
from hub_fixtures import change_weights, requested
from huggingface_hub import CommitOperationAdd, CommitOperationDelete
from loopback_hub import LoopbackHub, faults
from loopback_hub.repository import BRANCH, FileEntry
from torch import nn

import pnc_hub
from hostile.harness import bounded, untouched
from pnc_hub import Clone
from pnc_hub.artifact import files
from pnc_hub.errors import (
    ArtifactError,
    CloneNotFoundError,
    HubError,
    IntegrityError,
    MalformedArtifactError,
    PncHubError,
)
from pnc_hub.hub.verification import FAILED, verify

HUGE = 2 << 30  # bytes
STATUSES = (400, 403, 404, 409, 412, 416, 429, 500, 503)

NO_NAMES = ("..", "../x", "alice/..", "alice/a--b", "a--b/x", "alice/x.git", f"alice/{'x' * 97}", "alice/x/y", "~/x")
NO_NAMES += (
    "/etc/passwd",
    "alice/%2e%2e",
    "alice/x\n",
    "alice/x ",
    "alice/-x",
    "//x",
    "hf-hub:alice/x",
    "http://[::1]/x",
)


def checked(model: nn.Module, name: str, **options: Any) -> None:
    """``check``, which returns what ``attach`` would raise."""
    problem = pnc_hub.check(model, name, **options).problem
    if problem:
        raise problem


def verified(model: nn.Module, name: str, **options: Any) -> None:
    """``verify``, which reports what of a file is wrong."""
    for finding in verify(name, **options).findings:
        if finding.outcome == FAILED:
            raise MalformedArtifactError(finding.detail, repo_id=name, file=finding.subject)


ACTS = {"attach": pnc_hub.attach, "check": checked, "verify": verified}
# what reads, and a request that it makes for it: one that is answered with content, or one that leads there
CONTENT = {
    "attach, config": (pnc_hub.attach, "/config.json"),
    "attach, weights": (pnc_hub.attach, "/lfs/"),
    "check, list": (checked, "/paths-info/"),
    "check, weights": (checked, "/lfs/"),
    "verify, list": (verified, "/tree/"),
}
REQUESTS = {
    **CONTENT,
    "attach, way to weights": (pnc_hub.attach, "/model.safetensors"),
    "check, way to weights": (checked, "/model.safetensors"),
}


class Reader:
    """Reads ``repo`` into a cache of its own."""

    def __init__(self, model: nn.Module, repo: str, options: dict[str, Any]) -> None:
        self.model, self.repo, self.options = model, repo, options

    def refused(
        self, act: Callable = pnc_hub.attach, name: str = "", kind: type[PncHubError] = ArtifactError
    ) -> ArtifactError:
        """The typed error that ``act`` raises within the budget; nothing is done to the model, or half in the cache."""
        try:
            with untouched(self.model), bounded(), pytest.raises(kind) as raised:
                act(self.model, name or self.repo, **self.options)
        finally:
            pnc_hub.detach(self.model)  # a failure is that of one case
        error = raised.value
        assert error.repo_id == (name or self.repo).partition("@")[0]
        assert error.reason in str(error)
        assert len(str(error)) < 2000
        assert not list(self.options["cache_dir"].rglob("*.incomplete"))
        return error

    def answers(self, reference: Any, name: str = "") -> str | None:
        """Attached within the budget, it answers as ``reference`` does; the commit that it was read at."""
        with torch.no_grad(), untouched(self.model):
            with pnc_hub.attach(self.model, reference):
                expected = self.model(images())
            with bounded(), pnc_hub.attach(self.model, name or self.repo, **self.options) as attachment:
                assert torch.equal(self.model(images()), expected)
            return attachment.revision


@pytest.fixture
def reader(published, repo, target, token, tmp_path, impatient) -> Reader:
    return Reader(target, repo, {"token": token, "cache_dir": tmp_path / "cache"})


def add(api, repo: str, contents: dict[str, bytes]) -> str:
    operations = [CommitOperationAdd(*item) for item in contents.items()]
    return api.create_commit(repo, operations, commit_message="add files").oid


def downloaded(hub: LoopbackHub, repo: str, commit: str) -> set[str]:
    """Names of the files of which anything was asked for."""
    names = {entry.sha256: name for name, entry in hub._state.repositories[repo].resolve(commit).files.items()}
    return {names.get(part, part).replace("%2F", "/") for part in requested(hub, "GET") if "?" not in part}


class TestRepositories:
    def test_e91_other_files(self, hub, api, reader, saved_clone):
        """Nothing reads them, whatever they would do to who does."""
        theirs = ("evil.py", "conftest.py", "model.pkl", "pytorch_model.bin", "libx.so", "adapters/x.pt", "__init__.py")
        commit = add(api, reader.repo, dict.fromkeys(theirs, b"cos\nsystem\n(S'touch /tmp/evil'\ntR."))
        hub.requests.clear()
        for act in ACTS.values():
            with untouched(reader.model), bounded():
                act(reader.model, reader.repo, **reader.options)
                pnc_hub.detach(reader.model)
        assert reader.answers(saved_clone) == commit
        own = {files.CONFIG, *Clone.from_pretrained(saved_clone).recorded}
        assert downloaded(hub, reader.repo, commit) == own
        present = {path.name for path in reader.options["cache_dir"].rglob("*") if not path.is_dir()}
        assert not present & {name.rpartition("/")[2] for name in theirs}

    @pytest.mark.slow
    def test_e92_five_thousand_files(self, hub, reader, saved_clone):
        """Attaching asks for its own alone, and for no list; verifying gets the list, and names five of them."""
        repository = hub._state.repositories[reader.repo]
        there = repository.resolve("main")
        many = {f"folder{n % 7}/file{n}.bin": FileEntry.regular(b"%d" % n) for n in range(5000)}
        commit = repository.add_commit(there, {**many, **there.files}, title="many", author="alice")
        repository.references[f"{BRANCH}main"] = commit.id
        assert reader.answers(saved_clone) == commit.id
        with bounded():
            assert pnc_hub.check(reader.model, reader.repo, **reader.options).attaches
        assert len(hub.requests) < 12
        assert not [
            record.path for record in hub.requests if "/api/models/" in record.path and "paths-info" not in record.path
        ]
        with bounded():
            found = verify(reader.repo, **reader.options)
        assert found.passed
        assert "and 4997 more: nothing reads them" in str(found)
        assert not any("folder" in path for path in requested(hub, "GET"))

    def test_e103_names_that_differ_in_case(self, api, reader, saved_clone):
        """A clone's files have one spelling each."""
        twins = {
            "Config.json": b"{}",
            "MODEL.safetensors": b"",
            "adapters/Universal.safetensors": b"",
            "readme.md": b"",
        }
        commit = add(api, reader.repo, twins)
        assert reader.answers(saved_clone) == commit
        gone = [CommitOperationDelete("config.json")]
        api.create_commit(reader.repo, gone, commit_message="leave the twin")
        assert reader.refused(kind=CloneNotFoundError).file == "config.json"

    @pytest.mark.parametrize("name", [*NO_NAMES[:5], *map(slow, NO_NAMES[5:])])
    def test_e104_names_of_no_repository(self, hub, target, tmp_path, monkeypatch, name):
        """The Hub is not even asked."""
        monkeypatch.chdir(tmp_path)
        hub.requests.clear()
        for act in ACTS.values():
            with untouched(target), bounded(), pytest.raises(ArtifactError) as error:
                act(target, name, cache_dir=tmp_path / "cache")
            assert error.value.repo_id == name
        assert hub.requests == []

    @pytest.mark.parametrize(
        "revision", ["..", "x" * 500, *map(slow, ["../../../../x", "refs/../../x", "a\nb", "a b", "%2e%2e%2fx"])]
    )
    def test_e104_names_of_no_revision(self, reader, tmp_path, revision):
        error = reader.refused(name=f"{reader.repo}@{revision}")
        assert error.revision == revision
        assert {path.name for path in tmp_path.iterdir()} <= {"cache", "clone"}


class TestSizes:
    """The Hub announces ten bytes, and sends more than fit."""

    @pytest.mark.parametrize("act", list(ACTS.values()), ids=list(ACTS))
    @pytest.mark.parametrize("file", [files.CONFIG, files.WEIGHTS])
    def test_e93_much_more_comes_than_was_announced(self, hub, reader, saved_clone, act, file):
        content = "GET .*/config.json" if file == files.CONFIG else "GET /lfs/"
        with (
            hub.fail(f"HEAD .*/{file}", faults.wrong_size(10), times=100),
            hub.fail(content, faults.flood(HUGE), times=100),
        ):
            assert reader.refused(act, kind=MalformedArtifactError).file == file
        held = sum(path.stat().st_size for path in reader.options["cache_dir"].rglob("*") if path.is_file())
        assert held < files.MAX_CONFIG_BYTES
        reader.answers(saved_clone)

    @pytest.mark.parametrize("file", [files.CONFIG, files.WEIGHTS])
    def test_e94_its_length_is_another_than_it_says(self, hub, reader, saved_clone, file):
        """As one request says ten bytes, or the other."""
        for method in ("HEAD", "GET"):
            where = f"{method} .*/{file}" if method == "HEAD" or file == files.CONFIG else "GET /lfs/"
            with hub.fail(where, faults.wrong_size(10), times=100):
                assert reader.refused(kind=(HubError, IntegrityError)).file == file
        reader.answers(saved_clone)


class TestAnswers:
    """What answers is no Hub, or says no."""

    @pytest.mark.parametrize(
        "effect",
        [
            slow(faults.drop(), id="E95-dropped"),
            pytest.param(faults.redirect(), id="E97-loop"),
            pytest.param(faults.redirect("file:///etc/passwd"), id="E98-file"),
            slow(faults.redirect("//"), id="E98-nowhere"),
            pytest.param(faults.refuse(401), id="E100-401"),
            *(slow(faults.refuse(status), id=f"E100-{status}") for status in STATUSES),
        ],
    )
    def test_nothing_is_delivered(self, hub, reader, tmp_path, effect):
        for error in self.refusals(hub, reader, tmp_path, effect, REQUESTS):
            assert isinstance(error, (HubError, CloneNotFoundError))
            assert "root:" not in str(error)

    @pytest.mark.parametrize(
        "effect",
        [
            pytest.param(faults.cut(9), id="E95-cut"),
            slow(faults.html(), id="E99-html"),
            slow(faults.replace(b"null", "application/json"), id="E99-null"),
            pytest.param(faults.replace(b"[" * 100_000, "application/json"), id="E99-nesting"),
        ],
    )
    def test_something_else_is_delivered(self, hub, reader, tmp_path, effect):
        assert len(list(self.refusals(hub, reader, tmp_path, effect, CONTENT))) == len(CONTENT)

    def refusals(self, hub, reader, tmp_path, effect, cases) -> Iterator[ArtifactError]:
        """What becomes of each of the ``cases`` while ``effect`` goes on; afterwards all is well."""
        commit = hub._state.repositories[reader.repo].resolve("main").id
        for name, (act, pattern) in cases.items():
            reader.options["cache_dir"] = tmp_path / name
            with hub.fail(pattern, effect, times=1000) as fault:
                error = reader.refused(act)
                assert fault.remaining < 1000, name
            assert error.file, name
            assert error.revision in (commit, None if pattern == "/config.json" else commit), name
            yield error
            pnc_hub.attach(reader.model, reader.repo, **reader.options).detach()  # nothing half is left behind

    def test_e96_a_download_that_goes_on_where_it_broke_off(self, hub, reader, saved_clone, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 10_000)
        with hub.fail("GET /lfs/", faults.cut(55_000)) as fault:
            reader.answers(saved_clone)
            assert fault.remaining == 0
        assert "bytes=50000-" in [record.range for record in hub.requests]

    def test_e96_a_download_that_goes_on_with_something_else(self, hub, reader, monkeypatch):
        """What comes after the break is of the right length, and of another file."""
        monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 10_000)
        with hub.fail("GET /lfs/", faults.cut(55_000)), hub.fail("GET /lfs/", faults.corrupt(), times=2):
            assert reader.refused(kind=IntegrityError).file == files.WEIGHTS

    def test_e98_another_host_is_not_shown_the_token(self, hub, reader, tmp_path):
        with LoopbackHub() as other:
            elsewhere = other.endpoint.replace("127.0.0.1", "localhost")  # older clients compare names alone
            for name, (act, pattern) in CONTENT.items():
                reader.options["cache_dir"] = tmp_path / name
                with hub.fail(
                    f"(GET|POST) .*{pattern}", faults.redirect(f"{elsewhere}/alice/x/resolve/main/x"), times=99
                ):
                    reader.refused(act)
                assert other.requests, name
                assert not any(record.authenticated for record in other.requests), name
                other.requests.clear()


class TestMoves:
    """A revision is resolved once; what happens to its name afterwards changes nothing, or is noticed."""

    @pytest.fixture
    def moved(self, clone_folder, repo, api, published, token) -> tuple[str, Clone]:
        """Another clone, which is published in the repository too, and its commit; ``v1`` is the one before."""
        api.create_tag(repo, tag="v1", revision=published)
        clone = Clone.from_pretrained(change_weights(clone_folder))
        return clone.push_to_hub(repo, token=token).oid, clone

    @pytest.mark.parametrize("request_", ["HEAD .*/model.safetensors", *map(slow, ["GET /lfs/", "HEAD .*/adapters"])])
    def test_e101_a_tag_that_moves(self, hub, api, repo, published, reader, moved, saved_clone, request_):
        def move(request, answer):
            api.delete_tag(repo, tag="v1")
            api.create_tag(repo, tag="v1", revision=moved[0])
            return answer()

        with hub.fail(request_, move) as fault:
            assert reader.answers(saved_clone, f"{repo}@v1") == published
            assert fault.remaining == 0
        assert reader.answers(moved[1], f"{repo}@v1") == moved[0]

    @pytest.mark.parametrize("is_kept", [slow(True, id="kept"), pytest.param(False, id="removed")])
    def test_e102_a_branch_that_is_pushed_over(self, hub, repo, published, reader, moved, saved_clone, is_kept):
        """Its history is another one now, and the Hub may have forgotten the commit that was resolved."""
        repository = hub._state.repositories[repo]
        there = repository.resolve("v1")
        repository.references[f"{BRANCH}main"] = published

        def push(request, answer):
            commit = repository.add_commit(None, repository.resolve(moved[0]).files, title="over", author="alice")
            repository.references[f"{BRANCH}main"] = commit.id
            if not is_kept:
                repository.remove_reference("refs/tags/v1")
                del repository.commits[there.id]
            return answer()

        with hub.fail("HEAD .*/model.safetensors", push) as fault:
            if is_kept:
                assert reader.answers(saved_clone) == published
            else:
                error = reader.refused(kind=CloneNotFoundError)
                assert (error.revision, error.file) == (published, files.WEIGHTS)
            assert fault.remaining == 0
        assert reader.answers(moved[1]) == repository.references[f"{BRANCH}main"]
