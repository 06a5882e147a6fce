"""Photos whose answer the clone changed, small, for the report of a clone that was just learned. Never part of an artifact."""

from __future__ import annotations

import base64
from dataclasses import dataclass

# What happened to a photo, in the order of the page.
KINDS = {
    "recognised": "Photos of new classes that are recognised now",
    "mixed": "Photos of new classes that got another new class",
    "missed": "Photos of new classes that the target still answers",
    "diverted": "Photos of old classes that moved to a new class",
}
# Of the last kind, where no image of the target was seen but those of the source's other classes (regime R2).
OTHERS = "Photos of other classes that got a new class"


@dataclass(frozen=True)
class ShownPhoto:
    """One held-out image, before and after.

    Attributes:
        kind: one of ``KINDS``.
        picture: a PNG or JPEG of at most 112 pixels.
        shows: name of its class, or None where it is not known.
        before: what the target alone answers, and its probability.
        after: what the target answers with the clone attached, and its probability.
    """

    kind: str
    picture: bytes
    shows: str | None
    before: tuple[str, float]
    after: tuple[str, float]

    @property
    def uri(self) -> str:
        """The picture as part of a page."""
        kind = "png" if self.picture.startswith(b"\x89PNG") else "jpeg"
        return f"data:image/{kind};base64,{base64.b64encode(self.picture).decode()}"
