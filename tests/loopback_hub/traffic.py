"""What went over the wire, and what must go wrong on it."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import NamedTuple

from .messages import Request, Response

Effect = Callable[[Request, Callable[[], Response]], Response | None]
"""Makes the answer of a request, of which the second argument gives the real one (and only then does it happen);
`None` where the real answer has nothing to damage."""


class RequestRecord(NamedTuple):
    """One answered request.

    Attributes:
        method: HTTP method.
        path: Request target as sent: still percent-encoded, with its query.
        status: HTTP status of the answer, 0 where the connection was closed without one.
        authenticated: Whether the request carried an `Authorization` header.
        range: Value of the `Range` header, or `None`.
        bytes: How much of the answer's body was sent.
    """

    method: str
    path: str
    status: int
    authenticated: bool
    range: str | None
    bytes: int


@dataclass
class Fault:
    """What happens to the next requests that match; in a `with` block, until its end at the latest.

    Attributes:
        pattern: Searched in `"METHOD path"`, with the path as in `RequestRecord`.
        effect: What it does to them.
        remaining: How many more requests it will meet; 0 ends it.
        after: How many more requests that match it will let pass before.
    """

    pattern: re.Pattern[str]
    effect: Effect
    remaining: int
    after: int = 0

    def __enter__(self) -> "Fault":
        return self

    def __exit__(self, *error: object) -> None:
        self.remaining = 0


class Traffic:
    """The request log and the fault list, shared by the Hub and its CDN."""

    def __init__(self) -> None:
        self.requests: list[RequestRecord] = []
        self._faults: list[Fault] = []
        self._lock = Lock()

    def add_fault(self, fault: Fault) -> None:
        """Plan a fault; faults are tried in the order in which they were planned."""
        with self._lock:
            self._faults = [earlier for earlier in self._faults if earlier.remaining > 0]
            self._faults.append(fault)

    def take_fault(self, request: Request) -> Fault | None:
        """Use up one occurrence of the first fault that matches a request."""
        with self._lock:
            for fault in self._faults:
                if fault.remaining > 0 and fault.pattern.search(f"{request.method} {request.target}"):
                    if fault.after == 0:
                        fault.remaining -= 1
                        return fault
                    fault.after -= 1
        return None

    def give_back(self, fault: Fault) -> None:
        """Make up for an occurrence that found nothing to damage."""
        with self._lock:
            fault.remaining += 1
