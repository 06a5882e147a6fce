"""The route that finds models."""

from typing import Any

from .errors import bad_request
from .messages import Request, Response, is_true
from .paging import page_response
from .reading import expanded
from .routing import Routes
from .state import HubState
from .views import model_view

routes = Routes()

_FORM = ("sort", "limit", "cursor", "full", "cardData", "expand")
_PARAMETERS = ("filter", "author", "search", "pipeline_tag", "gated", *_FORM)
_CARD_FIELDS = {"library_name", "pipeline_tag"}
_ALWAYS_TOLD = {"_id", "id", "modelId", "private", "downloads", "likes", "tags", "createdAt"} | _CARD_FIELDS
_TOLD_IN_FULL = _ALWAYS_TOLD | {"author", "sha", "lastModified", "gated", "disabled", "siblings"}
_SORTABLE = {"createdAt", "lastModified", "downloads", "likes"}


@routes.add("GET", "/api/models")
def list_models(state: HubState, request: Request) -> Response:
    """List the models that fit and that the user may know of; several filters must all be met."""
    request.accept_only(*_PARAMETERS)
    query, user = request.query, state.user_of(request)
    visible = [repository for repository in state.repositories.values() if state.is_visible(repository, user)]
    models = [model_view(repository, repository.resolve("main")) for repository in visible]
    found = [_told(model, query) for model in _in_order(models, query) if _fits(model, query)]
    limit = int(query["limit"][0]) if "limit" in query else state.page_size
    return page_response(state, request, found, page_size=min(limit, state.page_size))


def _fits(model: dict[str, Any], query: dict[str, list[str]]) -> bool:
    return (
        set(query.get("filter", [])) <= set(model["tags"])
        and query.get("author", [model["author"]]) == [model["author"]]
        and query.get("pipeline_tag", [model.get("pipeline_tag")]) == [model.get("pipeline_tag")]
        and is_true(query.get("gated", [str(bool(model["gated"]))])) == bool(model["gated"])
        and query.get("search", [""])[0].lower() in model["id"].lower()
    )


def _in_order(models: list[dict[str, Any]], query: dict[str, list[str]]) -> list[dict[str, Any]]:
    """Return the models in order of creation, or by falling values of the property that the query names."""
    if "sort" not in query:
        return models
    (key,) = query["sort"]
    if key not in _SORTABLE:
        raise bad_request(f"The loopback Hub does not sort by {key!r}; it sorts by {sorted(_SORTABLE)}")
    # Those with equal values: the newest first, too.
    return sorted(reversed(models), key=lambda model: model[key], reverse=True)


def _told(model: dict[str, Any], query: dict[str, list[str]]) -> dict[str, Any]:
    if "expand" in query:
        return expanded(model, query["expand"])
    told = set(_TOLD_IN_FULL if is_true(query.get("full")) else _ALWAYS_TOLD)
    if is_true(query.get("cardData")):
        told.add("cardData")
    return {key: value for key, value in model.items() if key in told}
