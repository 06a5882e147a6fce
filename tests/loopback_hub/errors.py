"""The refusals of the Hub, with the status, code and text that the client tells them apart by."""

from collections.abc import Mapping
from typing import Any


class HubError(Exception):
    """A request that the Hub refuses.

    Args:
        status: HTTP status.
        message: Text for a reader, sent as `X-Error-Message` and as `error` in the JSON body.
        code: `X-Error-Code`, from which the client chooses its exception.
        headers: Further headers.
        fields: Further fields of the JSON body.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
        fields: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.headers = dict(headers or {})
        self.fields = dict(fields or {})


def bad_request(message: str) -> HubError:
    """Return the refusal of a request that makes no sense."""
    return HubError(400, message)


def bad_token() -> HubError:
    """Return the refusal of a token that belongs to nobody."""
    return HubError(401, "Invalid credentials in Authorization header")


def not_authenticated() -> HubError:
    """Return the refusal of an anonymous request where a user is needed."""
    return HubError(401, "Invalid username or password.")


def forbidden(message: str) -> HubError:
    """Return the refusal of a user who lacks the right."""
    return HubError(403, message)


def repository_not_found(*, anonymous: bool, bare: bool = False) -> HubError:
    """Return the refusal of a repository that is missing, or that the user may not know of.

    Args:
        anonymous: Whether nobody knows who asks.
        bare: Whether to tell anonymous users nothing, as the real Hub does; the client understands that over https
            only.
    """
    if anonymous and bare:
        return not_authenticated()
    return HubError(401 if anonymous else 404, "Repository not found", code="RepoNotFound")


def gated(*, anonymous: bool) -> HubError:
    """Return the refusal of the files of a gated repository."""
    message = "Access to this model is restricted. You must have access to it and be authenticated to access it."
    return HubError(401 if anonymous else 403, message, code="GatedRepo")


def disabled() -> HubError:
    """Return the refusal of everything in a repository that the Hub has taken down."""
    return HubError(403, "Access to this resource is disabled.")


def moved(location: str) -> HubError:
    """Return the answer for a repository that has another name now."""
    return HubError(307, f"Temporary Redirect. Redirecting to {location}", headers={"Location": location})


def revision_not_found(revision: str) -> HubError:
    """Return the refusal of a revision that names no commit."""
    return HubError(404, f"Invalid rev id: {revision}", code="RevisionNotFound")


def entry_not_found(message: str = "Entry not found", *, commit_id: str | None = None) -> HubError:
    """Return the refusal of a path that the commit does not have."""
    headers = {"X-Repo-Commit": commit_id} if commit_id else None
    return HubError(404, message, code="EntryNotFound", headers=headers)
