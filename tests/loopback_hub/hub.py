"""The Hub as tests see it."""

import re
from collections.abc import Iterable, Mapping
from types import TracebackType

from . import accounts, publishing, reading, references, resolving, searching
from .cdn import Cdn
from .messages import Request, Response
from .routing import Routes
from .server import Listener
from .state import HubState, User
from .traffic import Fault, RequestRecord, Traffic

_ROUTE_MODULES = (accounts, searching, reading, references, publishing, resolving)
_ROUTES = Routes(module.routes for module in _ROUTE_MODULES)


class LoopbackHub:
    """A Hugging Face Hub on 127.0.0.1, empty at first, that lives as long as the `with` block.

    Args:
        page_size: Entries per page of a listing.

    Attributes:
        endpoint: URL of the Hub, for `endpoint=` or `HF_ENDPOINT`.
        requests: Every answered request, oldest first, to the Hub and to its CDN; clear it between two
            measurements.
    """

    def __init__(self, *, page_size: int = 1000) -> None:
        self._traffic = Traffic()
        self._state = HubState(page_size=page_size)
        self._hub = Listener(self._respond, self._traffic)
        self._cdn = Listener(Cdn(self._state.large_files).respond, self._traffic)
        self._state.endpoint = self.endpoint = f"http://127.0.0.1:{self._hub.server_port}"
        # Some clients compare host names only when they decide whether a redirect may see the token.
        self._state.cdn_endpoint = f"http://localhost:{self._cdn.server_port}"
        self.requests: list[RequestRecord] = self._traffic.requests

    def __enter__(self) -> "LoopbackHub":
        self._hub.start()
        self._cdn.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hub.stop()
        self._cdn.stop()

    def add_user(self, name: str, orgs: Iterable[str] = (), *, role: str = "write") -> str:
        """Add a user and return a token.

        Args:
            name: User name and namespace.
            orgs: Organizations in which the user may write.
            role: Role of the token; with `"read"` it changes nothing.
        """
        return self._state.add_user(User(name, tuple(orgs), role))

    def fail(
        self,
        pattern: str,
        *,
        status: int,
        times: int = 1,
        headers: Mapping[str, str] | None = None,
    ) -> Fault:
        """Let the next matching requests fail.

        Args:
            pattern: Regular expression, searched in `"METHOD path"` (with the query, as in `requests`).
            status: HTTP status to answer.
            times: How many requests fail.
            headers: Headers to answer, e.g. `{"X-Error-Code": "GatedRepo"}`.

        Returns:
            The planned fault; its `remaining` tells how many failures are left.
        """
        fault = Fault(re.compile(pattern), status, times, headers or {})
        self._traffic.add_fault(fault)
        return fault

    def _respond(self, request: Request) -> Response:
        with self._state.lock:
            self._state.user_of(request)
            return _ROUTES.dispatch(self._state, request)
