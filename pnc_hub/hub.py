"""The only file that talks to the Hugging Face Hub."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pnc_hub import files
from pnc_hub.errors import CloneNotFoundError, HubError, IntegrityError, PublishError

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

_REPO_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*/[A-Za-z0-9_][A-Za-z0-9_.\-]*")


def split_revision(name: str, revision: str | None) -> tuple[str, str | None]:
    """``"user/name@revision"`` -> (``"user/name"``, ``"revision"``); a ``revision`` given apart must agree.

    Example:
        >>> split_revision("user/birds@v1.0", None)
        ('user/birds', 'v1.0')
    """
    base, at, inside = name.partition("@")
    if not at or not is_repo_id(base):
        return name, revision
    if revision is not None and revision != inside:
        raise CloneNotFoundError(
            f"two revisions were given: {inside!r} in the name and revision={revision!r}; give one", repo_id=base
        )
    return base, inside


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
        config = self._download(files.CONFIG, revision)
        self.commit = config.parent.name
        self.root = config.parents[2].resolve()

    def __call__(self, file: str) -> Path:
        """Download ``file`` unless it is in the cache; its path."""
        path = self._download(file, self.commit)
        if not path.resolve().is_relative_to(self.root):
            raise IntegrityError("its file in the cache leads outside the cache", repo_id=self.repo_id, file=file)
        return path

    def _download(self, file: str, revision: str | None) -> Path:
        from huggingface_hub import hf_hub_download

        with _explained(self.repo_id, revision, file):
            path = hf_hub_download(self.repo_id, file, revision=revision, library_name="pnc-hub", **self.options)
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
    """Upload exactly the files that ``save_pretrained`` wrote, as one commit.

    Raises:
        PublishError: the Hub refused or failed; the repository holds what it held before.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError

    if not is_repo_id(repo_id):
        raise PublishError(f"{repo_id!r} is no Hub repository; give 'user/name'")
    api = HfApi(token=token, library_name="pnc-hub")
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    operations = [CommitOperationAdd(path.relative_to(folder).as_posix(), path) for path in paths]
    try:
        repo = api.create_repo(repo_id, private=private, exist_ok=True)
        return api.create_commit(
            repo.repo_id,
            operations,
            commit_message=commit_message,
            revision=revision,
            create_pr=create_pr,
        )
    except (HfHubHTTPError, OSError, RuntimeError, ValueError) as error:
        raise PublishError(
            f"{repo_id}: the clone was not published, the repository is as before ({_first_line(error)})."
            " Check the name and that you are logged in with write access (hf auth login)."
        ) from error


@contextmanager
def _explained(repo_id: str, revision: str | None, file: str) -> Iterator[None]:
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where = {"repo_id": repo_id, "revision": revision, "file": file}
    try:
        yield
    except GatedRepoError as error:
        raise HubError(
            "the repository is gated: ask for access on its page, then log in (hf auth login)", **where
        ) from error
    except RepositoryNotFoundError as error:
        reason = "no such repository on the Hub, or it is private: check the name, or log in (hf auth login)"
        raise CloneNotFoundError(reason, **where) from error
    except RevisionNotFoundError as error:
        raise CloneNotFoundError("the repository has no such revision (branch, tag or commit)", **where) from error
    except LocalEntryNotFoundError as error:
        reason = "not in the local cache, and the Hub was not asked or could not be reached"
        raise CloneNotFoundError(reason, **where) from error
    except EntryNotFoundError as error:
        raise CloneNotFoundError("the repository has no such file, so it holds no clone", **where) from error
    except HFValidationError as error:
        raise CloneNotFoundError(f"not a valid Hub id ({_first_line(error)})", **where) from error
    except (HfHubHTTPError, OSError, RuntimeError) as error:
        raise HubError(f"the Hub did not deliver it ({_first_line(error)}); try again later", **where) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
