"""A model repository: references, commits and files, as git has them."""

import hashlib
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from .errors import HubError, bad_request, revision_not_found
from .gitattributes import DEFAULT_GITATTRIBUTES

BRANCH = "refs/heads/"
TAG = "refs/tags/"
PULL_REQUEST = "refs/pr/"


@dataclass(frozen=True)
class FileEntry:
    """One file of a commit; build it with `regular` or `large`.

    Attributes:
        size: Size of the content.
        blob_id: Git id of the content, or of the LFS pointer that stands for it.
        content: Content of a regular file.
        sha256: Name of the content of an LFS file in the large-file store.
        pointer_size: Size of the LFS pointer.
        xet_hash: Name of the content of an LFS file in the xet store, if it is there.
    """

    size: int
    blob_id: str
    content: bytes = b""
    sha256: str | None = None
    pointer_size: int | None = None
    xet_hash: str | None = None

    @classmethod
    def regular(cls, content: bytes) -> "FileEntry":
        """Return a file that git itself holds."""
        return cls(len(content), _git_blob_id(content), content)

    @classmethod
    def large(cls, sha256: str, size: int, *, xet_hash: str | None = None) -> "FileEntry":
        """Return a file that git holds an LFS pointer to."""
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
        return cls(size, _git_blob_id(pointer), sha256=sha256, pointer_size=len(pointer), xet_hash=xet_hash)


@dataclass(frozen=True)
class Commit:
    """A commit and all files it has, by path."""

    id: str
    parent: str | None
    title: str
    description: str
    author: str
    date: datetime
    files: Mapping[str, FileEntry]

    def below(self, folder: str) -> dict[str, FileEntry]:
        """Return the files at any depth in a folder (`""` is the root)."""
        prefix = f"{folder}/" if folder else ""
        return {path: entry for path, entry in self.files.items() if path.startswith(prefix)}


@dataclass(frozen=True)
class PullRequest:
    """A proposed change; its commits are those of its reference."""

    number: int
    title: str
    description: str
    author: str
    created_at: datetime

    @property
    def reference(self) -> str:
        """Full reference name, `refs/pr/1`."""
        return f"{PULL_REQUEST}{self.number}"


@dataclass
class Repository:
    """A repository, born with a first commit on `main`.

    Attributes:
        id: `namespace/name`.
        author: Name of the user who created it.
        created_at: When it was created.
        references: Commit ids by full reference name (`refs/heads/main`, `refs/tags/v1`, `refs/pr/1`).
        commits: Commits by id.
        pull_requests: Pull requests by reference.
        private: Whether only the members of its namespace know of it.
        gated: `"auto"` or `"manual"` where only admitted users may read its files, else `False`.
        admitted: Names of users who may read the files of a gated repository.
        disabled: Whether the Hub has taken it down.
    """

    id: str
    author: str
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    references: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)
    pull_requests: dict[str, PullRequest] = field(default_factory=dict)
    private: bool = False
    gated: str | bool = False
    admitted: set[str] = field(default_factory=set)
    disabled: bool = False

    def __post_init__(self) -> None:
        files = {".gitattributes": FileEntry.regular(DEFAULT_GITATTRIBUTES.encode())}
        first = self.add_commit(None, files, title="initial commit", author=self.author)
        self.references[f"{BRANCH}main"] = first.id

    @property
    def namespace(self) -> str:
        """The user or organization that owns it."""
        return self.id.split("/")[0]

    def resolve(self, revision: str) -> Commit:
        """Return the commit of a branch, tag, full reference name or commit id.

        Raises:
            HubError: 404 RevisionNotFound.
        """
        revision = "main" if revision == "HEAD" else revision
        for reference in (f"{BRANCH}{revision}", f"{TAG}{revision}", revision):
            if reference in self.references:
                return self.commits[self.references[reference]]
        if revision not in self.commits:
            raise revision_not_found(revision)
        return self.commits[revision]

    def writable_reference(self, revision: str) -> str:
        """Return the full name of the branch or pull request that a commit to `revision` moves.

        Raises:
            HubError: 404 RevisionNotFound, also for tags and commit ids.
        """
        for reference in (f"{BRANCH}{revision}", revision):
            if reference in self.references and not reference.startswith(TAG):
                return reference
        raise revision_not_found(revision)

    def history(self, commit: Commit) -> Iterator[Commit]:
        """Yield a commit and its ancestors, newest first."""
        yield commit
        while commit.parent:
            commit = self.commits[commit.parent]
            yield commit

    def last_change(self, commit: Commit, path: str) -> Commit:
        """Return the newest commit, from `commit` back, that changed the file or folder at `path`."""
        changed = commit
        for ancestor in self.history(commit):
            if (ancestor.files.get(path), ancestor.below(path)) != (
                commit.files.get(path),
                commit.below(path),
            ):
                break
            changed = ancestor
        return changed

    def add_commit(
        self,
        parent: Commit | None,
        files: Mapping[str, FileEntry],
        *,
        title: str,
        author: str,
        description: str = "",
    ) -> Commit:
        """Record a commit; no reference moves.

        Commit ids are random, so that two Hubs with the same content never share entries of a client's cache.
        """
        commit = Commit(
            id=secrets.token_hex(20),
            parent=parent.id if parent else None,
            title=title,
            description=description,
            author=author,
            date=datetime.now(UTC),
            files=dict(files),
        )
        self.commits[commit.id] = commit
        return commit

    def add_reference(self, reference: str, commit: Commit) -> None:
        """Create a branch or tag.

        Raises:
            HubError: 400 for a name that git refuses, 409 for a name that is taken.
        """
        name = reference.removeprefix(BRANCH).removeprefix(TAG)
        if not re.fullmatch(r"(?!refs/)(?!.*\.\.)[^\s~^:?*\[\\]+", name):
            raise bad_request(f"Invalid reference name: {name!r}")
        if reference in self.references:
            raise HubError(409, f"Reference {reference} already exists")
        self.references[reference] = commit.id

    def remove_reference(self, reference: str) -> None:
        """Delete a branch or tag.

        Raises:
            HubError: 403 for `main`, 404 RevisionNotFound.
        """
        if reference == f"{BRANCH}main":
            raise HubError(403, "Cannot delete the default branch")
        if self.references.pop(reference, None) is None:
            raise revision_not_found(reference)

    def open_pull_request(self, commit: Commit, *, title: str, description: str, author: str) -> PullRequest:
        """Open a pull request that stands at `commit`."""
        number = len(self.pull_requests) + 1
        pull_request = PullRequest(number, title, description, author, datetime.now(UTC))
        self.references[pull_request.reference] = commit.id
        self.pull_requests[pull_request.reference] = pull_request
        return pull_request


def _git_blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
