"""The routes that lead clients with hf_xet to a store in a folder, and what the Hub reads there."""

import time

from .errors import HubError
from .messages import Request, Response, json_response
from .publishing import committer
from .routing import Routes
from .state import HubState

routes = Routes()


@routes.add("GET", "/api/models/{repo_id}/xet-read-token/{revision}")
def read_token(state: HubState, request: Request, repo_id: str, revision: str) -> Response:
    """Let a reader into the store."""
    state.readable_repository(request, repo_id).resolve(revision)
    return _token(state, "read")


@routes.add("GET", "/api/models/{repo_id}/xet-write-token/{revision}")
def write_token(state: HubState, request: Request, repo_id: str, revision: str) -> Response:
    """Let a writer, or who opens a pull request, into the store."""
    committer(state, request, repo_id, revision)
    return _token(state, "write")


def _token(state: HubState, kind: str) -> Response:
    if state.xet_store is None:
        raise HubError(404, "The loopback Hub was started without a xet store")
    url, expires = f"local://{state.xet_store}", int(time.time()) + 3600
    headers = {"X-Xet-Cas-Url": url, "X-Xet-Access-Token": kind, "X-Xet-Token-Expiration": str(expires)}
    return json_response({"accessToken": kind, "exp": expires, "casUrl": url}, headers=headers)
