"""Everything the Hub knows: users, repositories, large files, and who may do what."""

import secrets
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

from .errors import bad_token, disabled, forbidden, gated, moved, not_authenticated, repository_not_found
from .messages import Request
from .repository import FileEntry, Repository
from .xet_store import find_large_file, read_large_file


@dataclass(frozen=True)
class User:
    """An account.

    Attributes:
        name: User name, also the namespace of the user's repositories.
        orgs: Organizations in which the user may write.
        role: Role of the user's token, `"write"` or `"read"`.
    """

    name: str
    orgs: tuple[str, ...] = ()
    role: str = "write"

    def belongs_to(self, namespace: str) -> bool:
        """Whether the user may read the private repositories of a namespace."""
        return namespace in (self.name, *self.orgs)

    def may_write_in(self, namespace: str) -> bool:
        """Whether the user's token may change repositories of a namespace."""
        return self.role == "write" and self.belongs_to(namespace)


@dataclass
class HubState:
    """The Hub's memory; hold `lock` while you read or change repositories.

    Attributes:
        page_size: Entries per page of a listing.
        part_size: LFS files above this size are uploaded in parts of it.
        endpoint: URL of the Hub.
        cdn_endpoint: URL of the large-file store.
        users: Users by token.
        bare_refusals: Whether anonymous users are not told that a repository is missing.
        xet_store: Folder of the xet store; `None` is a Hub without one.
        repositories: Repositories by id, in order of creation.
        moved: New ids of repositories by their former ones.
        large_files: Contents of LFS files by sha256, but for those in the xet store.
        lock: Makes every request to the Hub atomic.
    """

    page_size: int
    part_size: int
    bare_refusals: bool = False
    xet_store: Path | None = None
    endpoint: str = ""
    cdn_endpoint: str = ""
    users: dict[str, User] = field(default_factory=dict)
    repositories: dict[str, Repository] = field(default_factory=dict)
    moved: dict[str, str] = field(default_factory=dict)
    large_files: dict[str, bytes] = field(default_factory=dict)
    lock: Lock = field(default_factory=Lock)

    def add_user(self, user: User) -> str:
        """Record a user and return a new token."""
        token = f"hf_{secrets.token_hex(16)}"
        self.users[token] = user
        return token

    def user_of(self, request: Request) -> User | None:
        """Return the user of a request's token, or `None` for an anonymous request."""
        authorization = request.headers["Authorization"]
        if authorization is None:
            return None
        user = self.users.get(authorization.removeprefix("Bearer "))
        if user is None:
            raise bad_token()
        return user

    def require_user(self, request: Request) -> User:
        """Return the user of a request; anonymous requests are refused."""
        user = self.user_of(request)
        if user is None:
            raise not_authenticated()
        return user

    def require_writer(self, request: Request, namespace: str) -> User:
        """Return the user of a request; users who may not write in the namespace are refused."""
        user = self.require_user(request)
        if not user.may_write_in(namespace):
            raise forbidden(f"You don't have the rights to write in the namespace {namespace!r}")
        return user

    def repository(self, request: Request, repo_id: str) -> Repository:
        """Return the repository that a request is about; requests to former names are sent on."""
        user = self.user_of(request)
        repository = self.repositories.get(self.moved.get(repo_id, repo_id))
        if repository is None or not self.is_visible(repository, user):
            raise repository_not_found(anonymous=user is None, bare=self.bare_refusals)
        if repository.id != repo_id:
            raise moved(request.target.replace(f"/{repo_id}", f"/{repository.id}", 1))
        if repository.disabled:
            raise disabled()
        return repository

    def readable_repository(self, request: Request, repo_id: str) -> Repository:
        """Return the repository whose files a request wants to read."""
        repository, user = self.repository(request, repo_id), self.user_of(request)
        is_admitted = user is not None and (user.name in repository.admitted or user.belongs_to(repository.namespace))
        if repository.gated and not is_admitted:
            raise gated(anonymous=user is None)
        return repository

    def large_file(self, sha256: str) -> FileEntry | None:
        """Return the LFS file with a sha256, `None` where its content was never uploaded."""
        in_xet = find_large_file(self.xet_store, sha256) if self.xet_store else None
        if in_xet or sha256 not in self.large_files:
            return in_xet
        return FileEntry.large(sha256, len(self.large_files[sha256]))

    def content(self, sha256: str) -> bytes | None:
        """Return the content of the LFS file with a sha256, `None` where it was never uploaded."""
        in_xet = find_large_file(self.xet_store, sha256) if self.xet_store else None
        return read_large_file(self.xet_store, in_xet) if in_xet else self.large_files.get(sha256)

    def is_visible(self, repository: Repository, user: User | None) -> bool:
        """Whether a user (`None` is anybody) may know of a repository."""
        return not repository.private or (user is not None and user.belongs_to(repository.namespace))

    def writable_repository(self, request: Request, repo_id: str) -> tuple[Repository, User]:
        """Return the repository that a request wants to change, and the user, who may change it."""
        repository = self.repository(request, repo_id)
        return repository, self.require_writer(request, repository.namespace)
