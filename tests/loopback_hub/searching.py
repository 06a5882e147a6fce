"""The route that finds models."""

from typing import Any

from .messages import Request, Response, is_true
from .paging import page_response
from .reading import expanded
from .routing import Routes
from .state import HubState
from .views import model_view

routes = Routes()

_PARAMETERS = ("filter", "author", "search", "pipeline_tag", "limit", "cursor", "full", "cardData", "expand")
_CARD_FIELDS = {"library_name", "pipeline_tag"}
_ALWAYS_TOLD = {"_id", "id", "modelId", "private", "downloads", "likes", "tags", "createdAt"} | _CARD_FIELDS
_TOLD_IN_FULL = _ALWAYS_TOLD | {"author", "sha", "lastModified", "gated", "disabled", "siblings"}


@routes.add("GET", "/api/models")
def list_models(state: HubState, request: Request) -> Response:
    """List the models that fit, in order of creation; several filters must all be met."""
    request.accept_only(*_PARAMETERS)
    query = request.query
    models = [model_view(model, model.resolve("main")) for model in state.repositories.values()]
    found = [_told(model, query) for model in models if _fits(model, query)]
    limit = int(query["limit"][0]) if "limit" in query else state.page_size
    return page_response(state, request, found, page_size=min(limit, state.page_size))


def _fits(model: dict[str, Any], query: dict[str, list[str]]) -> bool:
    return (
        set(query.get("filter", [])) <= set(model["tags"])
        and query.get("author", [model["author"]]) == [model["author"]]
        and query.get("pipeline_tag", [model.get("pipeline_tag")]) == [model.get("pipeline_tag")]
        and query.get("search", [""])[0].lower() in model["id"].lower()
    )


def _told(model: dict[str, Any], query: dict[str, list[str]]) -> dict[str, Any]:
    if "expand" in query:
        return expanded(model, query["expand"])
    told = set(_TOLD_IN_FULL if is_true(query.get("full")) else _ALWAYS_TOLD)
    if is_true(query.get("cardData")):
        told.add("cardData")
    return {key: value for key, value in model.items() if key in told}
