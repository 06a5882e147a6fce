"""Everything the Hub knows: users, repositories, large files, and who may do what."""

import secrets
from dataclasses import dataclass, field
from threading import Lock

from .errors import bad_token, forbidden, not_authenticated, repository_not_found
from .messages import Request
from .repository import Repository


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

    def may_write_in(self, namespace: str) -> bool:
        """Whether the user's token may change repositories of a namespace."""
        return self.role == "write" and namespace in (self.name, *self.orgs)


@dataclass
class HubState:
    """The Hub's memory; hold `lock` while you read or change repositories.

    Attributes:
        page_size: Entries per page of a listing.
        endpoint: URL of the Hub.
        cdn_endpoint: URL of the large-file store.
        users: Users by token.
        repositories: Repositories by id, in order of creation.
        large_files: Contents of LFS files by sha256.
        lock: Makes every request to the Hub atomic.
    """

    page_size: int
    endpoint: str = ""
    cdn_endpoint: str = ""
    users: dict[str, User] = field(default_factory=dict)
    repositories: dict[str, Repository] = field(default_factory=dict)
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
        """Return the repository that a request is about."""
        user = self.user_of(request)
        if repo_id not in self.repositories:
            raise repository_not_found(anonymous=user is None)
        return self.repositories[repo_id]

    def writable_repository(self, request: Request, repo_id: str) -> tuple[Repository, User]:
        """Return the repository that a request wants to change, and the user, who may change it."""
        repository = self.repository(request, repo_id)
        return repository, self.require_writer(request, repository.namespace)
