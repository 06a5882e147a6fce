"""Publishing a clone: one commit of exactly its files, on top of what was looked at, or none."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pnc_hub.artifact import files
from pnc_hub.artifact.config import LIBRARY_NAME, AdapterConfig, CloneConfig
from pnc_hub.artifact.contents import Contents
from pnc_hub.artifact.storage import fill
from pnc_hub.errors import FormatVersionError, MalformedArtifactError, PublishError
from pnc_hub.hub import card, client, download

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, HfApi


# Files by whose names a model of any library is known.
_WEIGHTS = re.compile(r"\.(safetensors|bin|pt|pth|ckpt|pkl|h5|keras|msgpack|onnx|gguf|tflite)$")


@dataclass(frozen=True)
class _Published:
    """What a branch holds at one commit: the names of its files, and the clone that they are, if they are one."""

    commit: str
    names: frozenset[str]
    clone: Contents | None

    def adapters(self) -> dict[str, AdapterConfig]:
        """The entries of those adapters whose files are there, by name."""
        entries = self.clone.config.adapters if self.clone else []
        return {entry.name: entry for entry in entries if entry.file in self.names}


def push(
    clone: Contents,
    repo_id: str,
    private: bool | None,
    token: str | bool | None,
    revision: str | None,
    create_pr: bool,
    message: str,
) -> CommitInfo:
    """Publish ``clone``, as ``Clone.push_to_hub`` says.

    Files of the clone that was there before and that this one lacks are deleted; those of others stay.

    Raises:
        PublishError: the repository holds what it held before, or a whole clone that somebody else published meanwhile.
    """
    if not download.is_repo_id(repo_id):
        raise PublishError(f"{repo_id!r} is no Hub repository; give 'user/name'")
    clone.load()  # every file is verified
    with tempfile.TemporaryDirectory(prefix="pnc-hub-") as folder:
        publication = _Publication(clone, client.api(token), repo_id, revision, Path(folder))
        try:
            publication.create(private)
            # A pull request can be opened twice, so it is tried once. A commit whose answer was lost is in: the next attempt
            # then finds nothing to change.
            return client.retried(
                lambda: publication.commit(create_pr, message),
                # 412: there is a newer commit than the one that was looked at
                lambda error: not create_pr and (client.status(error) == 412 or client.is_transient(error)),
            )
        except PublishError:
            raise
        except Exception as error:  # huggingface_hub, its HTTP client and hf_xet each raise errors of their own
            raise PublishError(f"{repo_id}: {publication.outcome(error)}") from error


class _Publication:
    """One clone on its way to one branch."""

    def __init__(self, clone: Contents, api: HfApi, repo_id: str, revision: str | None, folder: Path) -> None:
        self.clone, self.api, self.repo_id, self.revision, self.folder = clone, api, repo_id, revision, folder
        self.config, self.files = clone.serialized()
        self.seen: _Published | None = None

    def create(self, private: bool | None) -> None:
        """Create the repository if it is not there; a card that the Hub refuses creates none."""
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

        try:
            client.retried(self._head)
        except GatedRepoError:
            raise
        except RepositoryNotFoundError:
            if self.revision not in (None, "main"):
                raise PublishError(
                    f"{self.repo_id}: there is no such repository, and a new one has no branch {self.revision!r}, so nothing"
                    " was published; publish to its main branch first"
                ) from None
            page = card.render(self.config, self.repo_id)
            # what create_commit asks first; ModelCard.validate asks huggingface.co in clients before 2, whatever the endpoint
            client.retried(lambda: self.api._validate_yaml(page))
            client.retried(lambda: self.api.create_repo(self.repo_id, private=private, exist_ok=True))

    def commit(self, create_pr: bool, message: str) -> CommitInfo:
        """Commit on top of what is there now, unless that takes away what was published since the last attempt."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        now = self._look()
        if self.seen is not None:
            self._check_nothing_is_lost(self.seen, now)
        self.seen = now
        config, written = self._joined(now)
        if now.clone is None or config != now.clone.config:
            written |= card.page(config, self.repo_id)
            kept = set(config.files)
        else:  # card and figures tell of a configuration that is there: as its publisher left them they stay
            kept = {*config.files, *filter(files.is_page, now.names)}
        stale = {name for name in now.names if files.is_ours(name)} - kept - written.keys()
        with tempfile.TemporaryDirectory(dir=self.folder) as upload:  # the client shows progress of files, not of bytes
            added = fill(Path(upload), written)
            return self.api.create_commit(
                self.repo_id,
                [
                    *(CommitOperationAdd(name, path) for name, path in added.items()),
                    *(CommitOperationDelete(name) for name in sorted(stale)),
                ],
                commit_message=message,
                revision=self.revision,
                create_pr=create_pr,
                parent_commit=now.commit,
            )

    def outcome(self, error: Exception) -> str:
        """What became of the publication that ``error`` ended, and what to do."""
        said = client.first_line(error)
        remedy = "Try again; what has been uploaded is not uploaded twice."
        if client.status(error) in (401, 403, 404):
            remedy = "Check the name and the branch, and that you are logged in with write access (hf auth login)."
        try:
            as_before = self.seen is None or self._head() == self.seen.commit
        except Exception:  # it failed, and goes on failing
            as_before = False
        if as_before:
            return f"the clone was not published, the repository is as before ({said}). {remedy}"
        return (
            f"the clone was not published, or its commit was not confirmed ({said}); the repository holds a whole clone,"
            " this one or the one before. Publish it again: where it is in, nothing is committed."
        )

    def _head(self) -> str | None:
        return self.api.model_info(self.repo_id, revision=self.revision).sha

    def _look(self) -> _Published:
        info = self.api.model_info(self.repo_id, revision=self.revision)
        names = frozenset(sibling.rfilename for sibling in info.siblings or ())
        options: dict[str, Any] = {"token": self.api.token, "cache_dir": self.folder / "cache"}
        try:
            clone = Contents.open(download.Hub(self.repo_id, info.sha, **options)) if files.CONFIG in names else None
        except (FormatVersionError, MalformedArtifactError) as error:
            raise self._occupied(error.reason) from error
        if clone is None:
            weights = sorted(name for name in names if _WEIGHTS.search(name))
            library = info.library_name
            if weights or library not in (None, LIBRARY_NAME):
                raise self._occupied(
                    f"{weights[0]} without {files.CONFIG}" if weights else f"a card of {library!r:.40}"
                )
        return _Published(str(info.sha), names, clone)

    def _occupied(self, reason: str) -> PublishError:
        return PublishError(
            f"{self.repo_id}: the repository holds something else than a clone ({reason}), so nothing was published;"
            " choose another repository, or delete those files first"
        )

    def _check_nothing_is_lost(self, before: _Published, now: _Published) -> None:
        """Raise ``PublishError`` if what was published since ``before`` would be overwritten with something else."""
        if now.clone is None or (before.clone is not None and now.clone.config == before.clone.config):
            return
        own, new = _recorded(self.config, self.config.adapters), _recorded(now.clone.config, now.adapters().values())
        old = _recorded(before.clone.config, before.adapters().values()) if before.clone else {}
        overwritten = [name for name in new if name in own and new[name] not in (own[name], old.get(name))]
        if overwritten or not _is_same_module(self.config, now.clone.config):
            what = f"adapter {overwritten[0]!r}" if overwritten else "another clone"
            raise PublishError(
                f"{self.repo_id}: somebody else has published {what} at the same moment (commit {now.commit}), so this clone"
                " was not published. Look at it; publish again if yours is to take its place."
            )

    def _joined(self, now: _Published) -> tuple[CloneConfig, dict[str, bytes]]:
        """The configuration with the adapters that were published of the same module, and the files that go with it."""
        own, there, published = self.config, now.clone, now.adapters()
        if there is None or not _is_same_module(own, there.config):
            return own, dict(self.files)
        entries = {entry.name: _with_datasets(entry, published.get(entry.name)) for entry in own.adapters}
        others = {name: entry for name, entry in published.items() if name not in entries}
        # those that are there come first, in their order: the report is that of the first
        order = dict.fromkeys([*published, *entries])
        shared = {name: digest for name, digest in there.config.files.items() if name in now.names}
        config = replace(own, adapters=[(entries | others)[name] for name in order], files={**shared, **own.files})
        probe = dict(self.clone.tensors[files.PROBE])
        for name, entry in others.items():
            probe |= {f"{name}/{key}": value for key, value in there.probe(entry).items()}
        config, changed = Contents(config, {files.PROBE: probe}).serialized(kept=config.files)
        return config, {**self.files, **changed}


def _recorded(config: CloneConfig, entries: Iterable[AdapterConfig]) -> dict[str, tuple[AdapterConfig, str | None]]:
    """Name -> entry of an adapter, and the sha256 of its file."""
    return {entry.name: (entry, config.files.get(entry.file)) for entry in entries}


def _with_datasets(entry: AdapterConfig, published: AdapterConfig | None) -> AdapterConfig:
    """``entry``, with the data sets that its publisher has named before, unless others are named now."""
    named = published.metrics.get("datasets") if published else None
    return entry if named is None else replace(entry, metrics={"datasets": named, **entry.metrics})


def _is_same_module(one: CloneConfig, other: CloneConfig) -> bool:
    """Whether two clones differ in nothing but their adapters, what was measured, and what is said of the source."""
    parts = ("cut", "classes", "preprocess", "tail")
    source = ("architecture", "model_args", "fingerprint")
    both = one.files.keys() & other.files.keys() & {files.WEIGHTS, files.TRUNK}
    return (
        all(getattr(one, part) == getattr(other, part) for part in parts)
        and all(getattr(one.source, part) == getattr(other.source, part) for part in source)
        and all(one.files[file] == other.files[file] for file in both)
    )
