"""The Hub as tests see it."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType

from . import accounts, discussions, faults, publishing, reading, references, resolving, searching, xet
from .cdn import Cdn
from .messages import Request, Response
from .routing import Routes
from .server import Listener
from .state import HubState, User
from .traffic import Effect, Fault, RequestRecord, Traffic

_ROUTE_MODULES = (accounts, searching, reading, references, discussions, publishing, resolving, xet)
_ROUTES = Routes(module.routes for module in _ROUTE_MODULES)


class LoopbackHub:
    """A Hugging Face Hub on loopback, empty at first, that lives as long as the `with` block.

    Args:
        page_size: Entries per page of a listing.
        part_size: LFS files above this size are uploaded in parts of it.
        xet_store: Folder in which clients with hf_xet keep large files; `None` is a Hub without xet, and clients then
            need `HF_HUB_DISABLE_XET=1`.
        certificate: File with a certificate and its key, from `make_certificate`: the Hub then speaks https and does
            not tell anonymous users which repositories are missing, as the real one.

    Attributes:
        endpoint: URL of the Hub, for `endpoint=` or `HF_ENDPOINT`.
        requests: Every answered request, oldest first, to the Hub and to its CDN; clear it between two
            measurements.
    """

    def __init__(
        self,
        *,
        page_size: int = 1000,
        part_size: int = 1 << 40,
        xet_store: Path | None = None,
        certificate: Path | None = None,
    ) -> None:
        self._traffic = Traffic()
        self._state = HubState(page_size, part_size, xet_store=xet_store, bare_refusals=certificate is not None)
        self._hub = Listener(self._respond, self._traffic, certificate)
        self._cdn = Listener(Cdn(self._state).respond, self._traffic, certificate)
        scheme = "https" if certificate else "http"
        self._state.endpoint = self.endpoint = f"{scheme}://127.0.0.1:{self._hub.server_port}"
        # Some clients compare host names only when they decide whether a redirect may see the token.
        self._state.cdn_endpoint = f"{scheme}://localhost:{self._cdn.server_port}"
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
        effect: Effect | None = None,
        *,
        status: int | None = None,
        headers: Mapping[str, str] | None = None,
        times: int = 1,
        after: int = 0,
    ) -> Fault:
        """Let the next matching requests fail.

        Args:
            pattern: Regular expression, searched in `"METHOD path"` (with the query, as in `requests`).
            effect: What happens to them, one of `faults`, e.g. `faults.cut(1000)`.
            status: HTTP status to answer; in the place of an effect.
            headers: Headers to answer along with a status, e.g. `{"X-Error-Code": "GatedRepo"}`.
            times: How many requests fail.
            after: How many matching requests are answered rightly before the first one fails.

        Returns:
            The planned fault; its `remaining` tells how many failures are left, and setting it to 0 ends it. It is
            also a context manager that ends it.
        """
        if (effect is None) == (status is None):
            raise TypeError("give an effect or a status")
        fault = Fault(re.compile(pattern), effect or faults.refuse(status, headers), times, after)
        self._traffic.add_fault(fault)
        return fault

    def disable(self, repo_id: str) -> None:
        """Take a repository down, which no user can."""
        self._state.repositories[repo_id].disabled = True

    def _respond(self, request: Request) -> Response:
        with self._state.lock:
            self._state.user_of(request)
            return _ROUTES.dispatch(self._state, request)
