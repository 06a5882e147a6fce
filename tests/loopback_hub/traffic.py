"""What went over the wire, and what must go wrong on it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from threading import Lock
from typing import NamedTuple


class RequestRecord(NamedTuple):
    """One answered request.

    Attributes:
        method: HTTP method.
        path: Request target as sent: still percent-encoded, with its query.
        status: HTTP status of the answer.
        authenticated: Whether the request carried an `Authorization` header.
        range: Value of the `Range` header, or `None`.
        bytes: Size of the answer's body.
    """

    method: str
    path: str
    status: int
    authenticated: bool
    range: str | None
    bytes: int


@dataclass
class Fault:
    """An answer given in place of the real one to the next requests that match.

    Attributes:
        pattern: Searched in `"METHOD path"`, with the path as in `RequestRecord`.
        status: HTTP status to answer.
        remaining: How many more requests it will answer.
        headers: Headers to answer.
    """

    pattern: re.Pattern[str]
    status: int
    remaining: int
    headers: Mapping[str, str] = field(default_factory=dict)


class Traffic:
    """The request log and the fault list, shared by the Hub and its CDN."""

    def __init__(self) -> None:
        self.requests: list[RequestRecord] = []
        self._faults: list[Fault] = []
        self._lock = Lock()

    def add_fault(self, fault: Fault) -> None:
        """Plan a fault; faults are tried in the order in which they were planned."""
        with self._lock:
            self._faults.append(fault)

    def take_fault(self, method: str, path: str) -> Fault | None:
        """Use up one occurrence of the first fault that matches a request."""
        with self._lock:
            for fault in self._faults:
                if fault.remaining > 0 and fault.pattern.search(f"{method} {path}"):
                    fault.remaining -= 1
                    return fault
        return None
