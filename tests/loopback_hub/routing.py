"""From a method and a path to the function that answers."""

import re
from collections.abc import Callable, Iterable
from urllib.parse import unquote

from .errors import HubError
from .messages import Request, Response
from .state import HubState

Handler = Callable[..., Response]
Route = tuple[str, re.Pattern[str], Handler]

_PLACEHOLDERS = {
    "{repo_id}": r"(?P<repo_id>[^/]+/[^/]+)",
    "{revision}": r"(?P<revision>[^/]+)",
    "{branch}": r"(?P<branch>[^/]+)",
    "{number}": r"(?P<number>[0-9]+)",
    "{path}": r"(?P<path>.+)",
}


class Routes:
    """A table of handlers, each called as `handler(state, request, **placeholders)`."""

    def __init__(self, tables: "Iterable[Routes]" = ()) -> None:
        self._routes: list[Route] = [route for table in tables for route in table._routes]

    def add(self, method: str, template: str) -> Callable[[Handler], Handler]:
        """Return a decorator that registers a handler, e.g. under `"/api/models/{repo_id}/refs"`."""
        expression = re.escape(template).replace(r"\{", "{").replace(r"\}", "}")
        for placeholder, group in _PLACEHOLDERS.items():
            expression = expression.replace(placeholder, group)

        def register(handler: Handler) -> Handler:
            self._routes.append((method, re.compile(expression), handler))
            return handler

        return register

    def dispatch(self, state: HubState, request: Request) -> Response:
        """Answer with the first handler that matches; HEAD is answered as GET."""
        method = "GET" if request.method == "HEAD" else request.method
        for route_method, pattern, handler in self._routes:
            if method == route_method and (match := pattern.fullmatch(request.path)):
                placeholders = {name: unquote(value) for name, value in match.groupdict().items()}
                return handler(state, request, **placeholders)
        raise HubError(404, f"The loopback Hub has no route {request.method} {request.path}")
