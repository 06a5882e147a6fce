"""The large-file store: contents by sha256, under another host name, never with a token."""

import hashlib
import re

from .errors import HubError, bad_request
from .messages import Request, Response
from .resolving import content_response


class Cdn:
    """Serves and accepts `/lfs/{sha256}`.

    Args:
        large_files: Contents by sha256, shared with the Hub.
    """

    def __init__(self, large_files: dict[str, bytes]) -> None:
        self._large_files = large_files

    def respond(self, request: Request) -> Response:
        """Answer one request."""
        if "Authorization" in request.headers:
            raise bad_request("The token was sent to the CDN")
        found = re.fullmatch("/lfs/([0-9a-f]{64})", request.path)
        if not found:
            raise HubError(404, "No such object")
        return self._store(request, found[1]) if request.method == "PUT" else self._serve(request, found[1])

    def _store(self, request: Request, sha256: str) -> Response:
        if hashlib.sha256(request.body).hexdigest() != sha256:
            raise bad_request("The content does not have this sha256")
        self._large_files[sha256] = request.body
        return Response(200)

    def _serve(self, request: Request, sha256: str) -> Response:
        if sha256 not in self._large_files:
            raise HubError(404, "No such object")
        return content_response(request, self._large_files[sha256], etag=sha256)
