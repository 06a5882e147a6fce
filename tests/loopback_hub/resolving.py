"""The route that serves files, and the byte ranges it shares with the CDN."""

import re
from collections.abc import Mapping
from urllib.parse import quote

from .errors import HubError, entry_not_found
from .messages import Request, Response
from .routing import Routes
from .state import HubState

routes = Routes()


@routes.add("GET", "/{repo_id}/resolve/{revision}/{path}")
def resolve(state: HubState, request: Request, repo_id: str, revision: str, path: str) -> Response:
    """Point to where the content of a file is: on the Hub itself for a regular file, else at the CDN."""
    commit = state.readable_repository(request, repo_id).resolve(revision)
    if path not in commit.files:
        raise entry_not_found(commit_id=commit.id)
    entry = commit.files[path]
    headers = {"X-Repo-Commit": commit.id}
    if not entry.sha256:
        location = f"/api/resolve-cache/models/{repo_id}/{commit.id}/{quote(path, safe='')}"
        # The length of this text is not that of the file, and clients must not take it for that.
        text = f"Temporary Redirect. Redirecting to {location}".encode()
        return Response(307, text, {**headers, "Location": location, "Content-Type": "text/plain; charset=utf-8"})
    headers |= {
        "X-Linked-Etag": f'"{entry.sha256}"',
        "X-Linked-Size": str(entry.size),
        "Location": f"{state.cdn_endpoint}/lfs/{entry.sha256}",
    }
    if entry.xet_hash:
        token_url = f"{state.endpoint}/api/models/{repo_id}/xet-read-token/{commit.id}"
        headers |= {"X-Xet-Hash": entry.xet_hash, "Link": f'<{token_url}>; rel="xet-auth"'}
    return Response(302, headers=headers)


@routes.add("GET", "/api/resolve-cache/models/{repo_id}/{revision}/{path}")
def serve_regular_file(state: HubState, request: Request, repo_id: str, revision: str, path: str) -> Response:
    """Serve a regular file of a commit."""
    entry = state.readable_repository(request, repo_id).resolve(revision).files[path]
    return content_response(request, entry.content, etag=entry.blob_id, headers={"X-Repo-Commit": revision})


def content_response(
    request: Request, content: bytes, *, etag: str, headers: Mapping[str, str] | None = None
) -> Response:
    """Return a file, or the part of it that the request's `Range` names.

    Raises:
        HubError: 416 for a range that starts behind the end.
    """
    headers = {"ETag": f'"{etag}"', "Accept-Ranges": "bytes", **(headers or {})}
    headers["Content-Type"] = "application/octet-stream"
    asked = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("Range", ""))
    if not asked or asked[0] == "bytes=-":
        return Response(200, content, headers)
    size = len(content)
    start = int(asked[1]) if asked[1] else max(size - int(asked[2]), 0)
    end = min(int(asked[2]) + 1, size) if asked[1] and asked[2] else size
    if start >= end:
        raise HubError(416, "Range not satisfiable", headers={"Content-Range": f"bytes */{size}"})
    headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    return Response(206, content[start:end], headers)
