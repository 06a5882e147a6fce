"""Requests and responses, as the routes see them."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from email.message import Message
from typing import Any
from urllib.parse import parse_qs, urlsplit

from .errors import HubError, bad_request


@dataclass(frozen=True)
class Request:
    """An HTTP request whose body has been read.

    Attributes:
        method: HTTP method.
        target: Path and query as sent.
        headers: Headers, found by name in any case.
        body: Whole body, after chunked decoding.
    """

    method: str
    target: str
    headers: Message
    body: bytes

    @property
    def path(self) -> str:
        """Path as sent, still percent-encoded."""
        return urlsplit(self.target).path

    @property
    def query(self) -> dict[str, list[str]]:
        """Query parameters; each may repeat."""
        return parse_qs(urlsplit(self.target).query)

    def json(self) -> Any:
        """Return the JSON body."""
        try:
            return json.loads(self.body)
        except ValueError as error:
            raise bad_request(f"The body is not JSON: {error}") from error

    def form(self) -> dict[str, list[str]]:
        """Return the form-encoded body."""
        return parse_qs(self.body.decode())

    def accept_only(self, *parameters: str) -> None:
        """Refuse query parameters that would otherwise be ignored without a word."""
        if unknown := set(self.query) - set(parameters):
            raise bad_request(f"Unknown query parameters {sorted(unknown)}; known: {sorted(parameters)}")


@dataclass(frozen=True)
class Response:
    """An HTTP response.

    Attributes:
        status: HTTP status; 0 closes the connection without an answer.
        body: Whole body.
        headers: Headers; a `Content-Length` among them is sent even if it is not that of the body.
        cut_after: How much of the body to send before the connection is closed; `None` is all.
        stream: A body too large for memory, sent in the place of `body`, chunk by chunk.
    """

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    stream: Iterable[bytes] = ()


HUNG_UP = Response(0)


def is_true(values: list[str] | None) -> bool:
    """Whether a query or form parameter is set, in any of the client's spellings."""
    return bool(values) and values[-1].lower() in {"1", "true"}


def json_response(data: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a response with a JSON body."""
    headers = {"Content-Type": "application/json", **(headers or {})}
    return Response(status, json.dumps(data).encode(), headers)


def error_response(error: HubError) -> Response:
    """Return a refusal; its text goes into a header too, because an answer to HEAD has no body."""
    headers = {
        "X-Error-Message": " ".join(error.message.split()).encode("ascii", "replace").decode(),
        **error.headers,
    }
    if error.code:
        headers["X-Error-Code"] = error.code
    return json_response({"error": error.message, **error.fields}, error.status, headers)
