"""The large-file store: contents by sha256, under another host name, never with a token."""

import hashlib
import re

from .errors import HubError, bad_request
from .messages import Request, Response
from .resolving import content_response
from .state import HubState


class Cdn:
    """Serves `/lfs/{sha256}`, wherever its content is, and accepts it, whole or in parts.

    Args:
        state: What the Hub knows.
    """

    def __init__(self, state: HubState) -> None:
        self._state = state
        self._parts: dict[tuple[str, int], bytes] = {}

    def respond(self, request: Request) -> Response:
        """Answer one request."""
        if "Authorization" in request.headers:
            raise bad_request("The token was sent to the CDN")
        for method, path, respond in (
            ("GET", "/lfs/([0-9a-f]{64})", self._serve),
            ("PUT", "/lfs/([0-9a-f]{64})", self._store),
            ("PUT", "/lfs/([0-9a-f]{64})/([0-9]+)", self._store_part),
            ("POST", "/lfs/([0-9a-f]{64})", self._join_parts),
        ):
            found = re.fullmatch(path, request.path)
            if found and method == ("GET" if request.method == "HEAD" else request.method):
                return respond(request, *found.groups())
        raise HubError(404, "No such object")

    def _serve(self, request: Request, sha256: str) -> Response:
        content = self._state.content(sha256)
        if content is None:
            raise HubError(404, "No such object")
        return content_response(request, content, etag=sha256)

    def _store(self, request: Request, sha256: str) -> Response:
        return self._keep(sha256, request.body)

    def _store_part(self, request: Request, sha256: str, number: str) -> Response:
        self._parts[sha256, int(number)] = request.body
        return Response(200, headers={"ETag": _part_etag(request.body)})

    def _join_parts(self, request: Request, sha256: str) -> Response:
        """Make one content of the parts that the client lists with the ETags it was given."""
        listed = [(part["partNumber"], part["etag"]) for part in request.json()["parts"]]
        parts = [self._parts.pop((sha256, number), b"") for number, _ in listed]
        if [etag for _, etag in listed] != [_part_etag(part) for part in parts]:
            raise bad_request("Some parts are missing or have other ETags")
        return self._keep(sha256, b"".join(parts))

    def _keep(self, sha256: str, content: bytes) -> Response:
        if hashlib.sha256(content).hexdigest() != sha256:
            raise bad_request("The content does not have this sha256")
        self._state.large_files[sha256] = content
        return Response(200)


def _part_etag(part: bytes) -> str:
    return f'"{hashlib.md5(part).hexdigest()}"'
