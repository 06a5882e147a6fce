"""Listings that come in pages, joined by `Link` headers."""

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

from .messages import Request, Response, json_response
from .state import HubState


def page_response(
    state: HubState, request: Request, entries: Sequence[Any], *, page_size: int | None = None
) -> Response:
    """Return the page of a listing that the request's `cursor` points to.

    Args:
        state: The Hub.
        request: The request; its query is carried over to the next page.
        entries: The whole listing.
        page_size: Entries per page, the Hub's where it is not given.
    """
    start = int(request.query.get("cursor", ["0"])[0])
    end = start + (page_size or state.page_size)
    headers = {}
    if end < len(entries):
        query = urlencode({**request.query, "cursor": [end]}, doseq=True)
        headers["Link"] = f'<{state.endpoint}{request.path}?{query}>; rel="next"'
    return json_response(entries[start:end], headers=headers)
