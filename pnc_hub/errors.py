"""Every error of pnc_hub.

Each message says what was asked, what was found and what to do. Errors that a caller may already catch by a builtin type
keep that type as a base (``CloneNotFoundError`` is a ``FileNotFoundError``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class PncHubError(Exception):
    """Base of every error that pnc_hub raises on purpose."""


class ArtifactError(PncHubError):
    """An artifact cannot be used; the model was not touched.

    Attributes:
        reason: what is wrong, in one sentence.
        repo_id: the Hub repository, or the folder, that was asked for.
        revision: the revision that was asked for, or the commit that was found.
        file: the file inside the artifact, when one is to blame.
        code: a short stable word for programs (``"malformed"``, ``"not_found"`` ...).
    """

    code = "artifact"

    def __init__(
        self, reason: str, *, repo_id: str | None = None, revision: str | None = None, file: str | None = None
    ) -> None:
        self.reason = reason
        self.repo_id, self.revision, self.file = repo_id, revision, file
        super().__init__(reason)

    def __str__(self) -> str:
        name = (self.repo_id or "") + (f"@{self.revision}" if self.revision else "")
        place = ", ".join(part for part in (name, self.file) if part)
        return f"{place}: {self.reason}" if place else self.reason


@contextmanager
def located(*, repo_id: str | None = None, revision: str | None = None, file: str | None = None) -> Iterator[None]:
    """Errors of an artifact from within say where they happened, unless they say so already."""
    try:
        yield
    except ArtifactError as error:
        error.repo_id, error.revision = error.repo_id or repo_id, error.revision or revision
        error.file = error.file or file
        raise


def one_line(error: object, most: int = 300) -> str:
    """What ``error`` says, on one line and shortened."""
    return " ".join(str(error).split())[:most] or type(error).__name__


class CloneNotFoundError(ArtifactError, FileNotFoundError):
    """No clone at this id, folder or revision, or it cannot be reached."""

    code = "not_found"


class MalformedArtifactError(ArtifactError, ValueError):
    """A file of the artifact is missing, damaged, or says something that cannot be true."""

    code = "malformed"


class LockError(ArtifactError):
    """A clone is not in the lock, or not the one that was locked."""

    code = "lock"


class IntegrityError(MalformedArtifactError):
    """A file does not have the sha256 that the artifact's configuration records for it."""

    code = "integrity"


class FormatVersionError(ArtifactError):
    """The artifact was written in a format that this version of pnc_hub does not read."""

    code = "format_version"


class HubError(ArtifactError):
    """The Hub refused or failed a request."""

    code = "hub"


class TargetError(PncHubError):
    """The model cannot take a clone (its type, its head or its output)."""


class NoClassifierError(TargetError):
    """The model has no classifier head (``num_classes=0``), so there are no logits to extend."""


class FingerprintMismatchError(TargetError):
    """The clone was made for a target with other weights before the insertion point."""


class InsertionPointError(PncHubError, LookupError):
    """The module named as insertion point or cut does not exist or cannot serve as one."""


class ClassCollisionError(PncHubError, ValueError):
    """A cloned class has the name of a class that the model already has."""


class ProbeError(PncHubError):
    """A clone does not answer its probe as recorded, or its hooks do not run where the caller runs the model."""


class ImageError(PncHubError, ValueError):
    """Images of the wrong type, rank, number of channels or size."""


class SourceError(PncHubError, ValueError):
    """The source cannot be cloned from (unknown classes, no single linear classifier, unknown arguments)."""


class DataError(PncHubError, ValueError):
    """The training images do not fit what was asked (no such class, too few images, unreadable folder)."""


class PublishError(PncHubError):
    """A clone could not be written or uploaded; what was there before is unchanged."""
