"""What can go wrong on the wire; each function returns an effect for `LoopbackHub.fail`.

Effects on content (`cut`, `corrupt`, `html`, `replace`, `wrong_etag`, `wrong_size`) pass over answers that have none
of it, such as redirects, and are not used up by them.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace as changed
from itertools import repeat
from threading import Event

from .errors import HubError
from .messages import HUNG_UP, Request, Response, error_response
from .traffic import Effect

_PIECE = bytes(1 << 16)


def refuse(status: int, headers: Mapping[str, str] | None = None, message: str = "Planned fault") -> Effect:
    """Answer with a status and headers, e.g. `{"X-Error-Code": "GatedRepo"}`, and do nothing else."""
    response = error_response(HubError(status, message, headers=headers))
    return lambda request, answer: response


def rate_limit(seconds: int = 1, *, style: str = "ratelimit") -> Effect:
    """Answer 429.

    Args:
        seconds: When to come back.
        style: Which header tells so: `"ratelimit"` or `"retry-after"`.
    """
    styles = {
        "ratelimit": {
            "ratelimit": f'"api";r=0;t={seconds}',
            "ratelimit-policy": '"fixed window";"api";q=500;w=300',
        },
        "retry-after": {"Retry-After": str(seconds)},
    }
    return refuse(429, styles[style], "We had to rate limit your IP")


def drop() -> Effect:
    """Hang up at once: the request has no effect and no answer."""
    return lambda request, answer: HUNG_UP


def lose_answer() -> Effect:
    """Hang up too late: what was asked for is done, but the client never learns of it."""

    def effect(request: Request, answer: Callable[[], Response]) -> Response:
        answer()
        return HUNG_UP

    return effect


def sleep(seconds: float) -> Effect:
    """Answer rightly, but late."""

    def effect(request: Request, answer: Callable[[], Response]) -> Response:
        Event().wait(seconds)  # not time.sleep, which tests replace
        return answer()

    return effect


def redirect(location: str | None = None) -> Effect:
    """Send the client elsewhere, e.g. to `"file:///etc/passwd"`; without a location back to where it is."""
    return lambda request, answer: Response(302, headers={"Location": location or request.target})


def cut(after: int) -> Effect:
    """Announce the whole body, send its first `after` bytes and hang up."""
    return _on_content(lambda response: changed(response, cut_after=after))


def corrupt(at: int = -1) -> Effect:
    """Change one byte of the body, by default the last; its length stays."""

    def effect(response: Response) -> Response:
        body = bytearray(response.body)
        body[at] ^= 0xFF
        return changed(response, body=bytes(body))

    return _on_content(effect)


def html() -> Effect:
    """Answer 200 with a page for people, as captive portals and proxies do."""
    return replace(b"<!DOCTYPE html><html><body>Please log in</body></html>\n", "text/html; charset=utf-8")


def replace(content: bytes, content_type: str = "application/octet-stream") -> Effect:
    """Send another body, under the headers of the real one."""
    return _on_content(
        lambda response: changed(response, body=content, headers={**response.headers, "Content-Type": content_type})
    )


def flood(size: int) -> Effect:
    """Send `size` zero bytes (rounded down to 64 KiB) for the body, without announcing how many."""
    return _on_content(lambda response: changed(response, stream=repeat(_PIECE, size // len(_PIECE))))


def wrong_etag(etag: str = "0" * 40) -> Effect:
    """Announce another content hash for a file."""
    return _on_file(linked="X-Linked-Etag", plain="ETag", value=f'"{etag}"')


def wrong_size(size: int) -> Effect:
    """Announce another size for a file."""
    return _on_file(linked="X-Linked-Size", plain="Content-Length", value=str(size))


def _on_content(change: Callable[[Response], Response]) -> Effect:
    def effect(request: Request, answer: Callable[[], Response]) -> Response | None:
        response = answer()
        has_content = request.method != "HEAD" and response.status in (200, 206) and response.body
        return change(response) if has_content else None

    return effect


def _on_file(*, linked: str, plain: str, value: str) -> Effect:
    """Change a header of the answer that tells of a file: one that links to the CDN, or the file itself."""

    def effect(request: Request, answer: Callable[[], Response]) -> Response | None:
        response = answer()
        if linked in response.headers:
            return changed(response, headers={**response.headers, linked: value})
        if "ETag" in response.headers:
            return changed(response, headers={**response.headers, plain: value})
        return None

    return effect
