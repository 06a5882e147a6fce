"""The only file that talks to the Hugging Face Hub."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pnc_hub import files
from pnc_hub.errors import ArtifactError, CloneNotFoundError, HubError, IntegrityError, PublishError

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

_COMMIT = re.compile(r"[0-9a-f]{40}")
_REPO_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*/[A-Za-z0-9_][A-Za-z0-9_.\-]*")


def split_revision(name: str, revision: str | None) -> tuple[str, str | None]:
    """``"user/name@revision"`` -> (``"user/name"``, ``"revision"``); a ``revision`` given apart must agree.

    Example:
        >>> split_revision("user/birds@v1.0", None)
        ('user/birds', 'v1.0')
    """
    base, at, inside = name.partition("@")
    if not is_repo_id(base):
        return name, revision
    if at and revision not in (None, inside):
        raise CloneNotFoundError(
            f"two revisions were given: {inside!r} in the name and revision={revision!r}; give one", repo_id=base
        )
    revision = inside if at else revision
    if revision == "":
        raise CloneNotFoundError("an empty revision was given; give a branch, tag or commit, or none", repo_id=base)
    return base, revision


def is_repo_id(name: str) -> bool:
    """Whether ``name`` has the form ``user/name`` of a Hub repository."""
    return _REPO_ID.fullmatch(name) is not None and ".." not in name and "--" not in name


@dataclass(frozen=True)
class FolderFiles:
    """Where the files of a clone in a folder are."""

    folder: Path

    def __call__(self, file: str) -> Path:
        """The path of ``file``, whether it exists or not."""
        return self.folder / file


class HubFiles:
    """Where the files of a clone on the Hub are, once downloaded: all from the commit at which config.json was found."""

    def __init__(self, repo_id: str, revision: str | None, **options: Any) -> None:
        """Resolve ``revision`` to a commit by fetching config.json.

        Args:
            repo_id: ``user/name``.
            revision: branch, tag, commit or None.
            **options: ``token``, ``cache_dir``, ``local_files_only`` and ``force_download`` of huggingface_hub.

        Raises:
            CloneNotFoundError: no such repository, revision or file, or it can not be reached and is not in the cache.
            HubError: the Hub refused or failed.
        """
        self.repo_id, self.options = repo_id, options
        self.config = self._download(files.CONFIG, revision)
        self.commit = self.config.parent.name
        self.root = self.config.parents[2].resolve()

    def __getstate__(self) -> dict[str, Any]:
        """A pickled model must not carry the token of whoever attached the clone; a copy uses the stored one."""
        return {**self.__dict__, "options": {**self.options, "token": None}}

    def __call__(self, file: str) -> Path:
        """Download ``file`` unless it is in the cache; its path."""
        path = self.config if file == files.CONFIG else self._download(file, self.commit)
        if not path.resolve().is_relative_to(self.root):
            raise IntegrityError("its file in the cache leads outside the cache", repo_id=self.repo_id, file=file)
        return path

    def _cached(self, file: str, revision: str | None) -> str | None:
        """Its path in the cache, if it may be taken from there."""
        from huggingface_hub import try_to_load_from_cache

        settled = self.options.get("local_files_only") or _COMMIT.fullmatch(revision or "")
        if not settled or self.options.get("force_download"):
            return None
        path = try_to_load_from_cache(self.repo_id, file, self.options.get("cache_dir"), revision)
        return path if isinstance(path, str) else None

    def _download(self, file: str, revision: str | None) -> Path:
        from huggingface_hub import hf_hub_download

        with _explained(self.repo_id, revision, file):
            # hf_hub_download would find the same, but prepare a request first, and for its headers ask the Hub
            path = self._cached(file, revision) or hf_hub_download(
                self.repo_id, file, revision=revision, library_name="pnc-hub", **self.options
            )
        return Path(path)


def push(
    folder: Path,
    repo_id: str,
    *,
    private: bool | None,
    token: str | bool | None,
    revision: str | None,
    create_pr: bool,
    commit_message: str,
) -> CommitInfo:
    """Upload exactly the files that ``save_pretrained`` wrote, as one commit; none is made where nothing has changed.

    Files of the clone that was there before and that this one lacks are deleted; those of others stay.

    Raises:
        PublishError: the Hub refused or failed; the repository holds what it held before.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    if not is_repo_id(repo_id):
        raise PublishError(f"{repo_id!r} is no Hub repository; give 'user/name'")
    api = HfApi(token=token, library_name="pnc-hub")
    added = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    try:
        repo = api.create_repo(repo_id, private=private, exist_ok=True)
        present = api.list_repo_files(repo.repo_id, revision=revision)
        return api.create_commit(
            repo.repo_id,
            [
                *(CommitOperationAdd(name, path) for name, path in added.items()),
                *(CommitOperationDelete(name) for name in present if files.is_ours(name) and name not in added),
            ],
            commit_message=commit_message,
            revision=revision,
            create_pr=create_pr,
        )
    except Exception as error:  # huggingface_hub, its HTTP client and hf_xet each raise errors of their own
        raise PublishError(
            f"{repo_id}: the clone was not published, the repository is as before ({_first_line(error)})."
            " Check the name and that you are logged in with write access (hf auth login)."
        ) from error


@contextmanager
def _explained(repo_id: str, revision: str | None, file: str) -> Iterator[None]:
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except Exception as error:  # huggingface_hub, its HTTP client and hf_xet each raise errors of their own
        # where a copy in the cache would have served, the client wraps what the Hub answered
        answer = error.__cause__ if isinstance(error.__cause__, HfHubHTTPError) else error
        kind, reason = _explanation(answer)
        raise kind(reason, repo_id=repo_id, revision=revision, file=file) from error


def _explanation(error: BaseException) -> tuple[type[ArtifactError], str]:
    from huggingface_hub import errors as client

    known: tuple[tuple[type[Exception], type[ArtifactError], str], ...] = (  # a class stands before its bases
        (
            client.GatedRepoError,
            HubError,
            "the repository is gated: ask for access on its page, then log in (hf auth login)",
        ),
        (
            client.RepositoryNotFoundError,
            CloneNotFoundError,
            "no such repository on the Hub, or it is private: check the name, or log in (hf auth login)",
        ),
        (
            client.RevisionNotFoundError,
            CloneNotFoundError,
            "the repository has no such revision (branch, tag or commit)",
        ),
        (
            client.LocalEntryNotFoundError,
            CloneNotFoundError,
            "not in the local cache, and the Hub was not asked or could not be reached",
        ),
        (
            client.EntryNotFoundError,
            CloneNotFoundError,
            "the repository has no such file, so it holds no clone",
        ),
        (client.HFValidationError, CloneNotFoundError, f"not a valid Hub id ({_first_line(error)})"),
    )
    for met, kind, reason in known:
        if isinstance(error, met):
            return kind, reason
    return HubError, f"the Hub did not deliver it ({_first_line(error)}); try again later, or check your token"


def _first_line(error: BaseException) -> str:
    text = getattr(error, "server_message", None) or str(error)
    return (text.strip().splitlines() or [type(error).__name__])[0][:300]
