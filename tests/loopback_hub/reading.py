"""Routes that tell about a model: information, tree, references, history."""

from collections.abc import Iterable, Mapping
from typing import Any

from .errors import bad_request, entry_not_found
from .messages import Request, Response, is_true, json_response
from .paging import page_response
from .repository import BRANCH, PULL_REQUEST, TAG, Repository
from .routing import Routes
from .state import HubState
from .views import commit_view, model_view, tree_view

routes = Routes()


@routes.add("GET", "/api/models/{repo_id}")
@routes.add("GET", "/api/models/{repo_id}/revision/{revision}")
def model_info(state: HubState, request: Request, repo_id: str, revision: str = "main") -> Response:
    """Describe a model at a revision."""
    request.accept_only("blobs", "expand", "securityStatus")
    repository = state.repository(request, repo_id)
    view = model_view(repository, repository.resolve(revision), blobs=is_true(request.query.get("blobs")))
    if is_true(request.query.get("securityStatus")):
        view["securityRepoStatus"] = {"scansDone": True, "filesWithIssues": []}
    if "expand" in request.query:
        view = expanded(view, request.query["expand"])
    return json_response(view)


@routes.add("GET", "/api/models/{repo_id}/tree/{revision}")
@routes.add("GET", "/api/models/{repo_id}/tree/{revision}/{path}")
def tree(state: HubState, request: Request, repo_id: str, revision: str, path: str = "") -> Response:
    """List a folder."""
    expand = is_true(request.query.get("expand"))
    repository = state.repository(request, repo_id)
    commit = repository.resolve(revision)
    if path and not commit.below(path):
        raise entry_not_found(f"{path} does not exist on {revision!r}", commit_id=commit.id)
    prefix = f"{path}/" if path else ""
    recursive = is_true(request.query.get("recursive"))
    entries = [
        entry
        for entry_path, entry in tree_view(repository, commit, expand=expand).items()
        if entry_path.startswith(prefix) and (recursive or "/" not in entry_path.removeprefix(prefix))
    ]
    page_size = min(state.page_size, 50) if expand else state.page_size
    return page_response(state, request, entries, page_size=page_size)


@routes.add("POST", "/api/models/{repo_id}/paths-info/{revision}")
def paths_info(state: HubState, request: Request, repo_id: str, revision: str) -> Response:
    """Describe those of the given paths that exist."""
    repository = state.repository(request, repo_id)
    form = request.form()
    view = tree_view(repository, repository.resolve(revision), expand=is_true(form.get("expand")))
    return json_response([view[path] for path in form.get("paths", []) if path in view])


@routes.add("GET", "/api/models/{repo_id}/refs")
def refs(state: HubState, request: Request, repo_id: str) -> Response:
    """List branches, tags and, if asked, pull requests."""
    repository = state.repository(request, repo_id)
    view = {"branches": _references(repository, BRANCH), "converts": [], "tags": _references(repository, TAG)}
    if is_true(request.query.get("include_prs")):
        view["pullRequests"] = _references(repository, PULL_REQUEST)
    return json_response(view)


@routes.add("GET", "/api/models/{repo_id}/commits/{revision}")
def commits(state: HubState, request: Request, repo_id: str, revision: str) -> Response:
    """List the history of a revision, newest first."""
    repository = state.repository(request, repo_id)
    history = repository.history(repository.resolve(revision))
    return page_response(state, request, [commit_view(commit) for commit in history])


def expanded(view: Mapping[str, Any], properties: Iterable[str]) -> dict[str, Any]:
    """Return those properties of a model that a request asks for with `expand`."""
    optional = {"cardData", "library_name", "pipeline_tag"}
    if unknown := set(properties) - set(view) - optional:
        raise bad_request(f"The loopback Hub does not know expand={sorted(unknown)}")
    return {key: value for key, value in view.items() if key in {"_id", "id", *properties}}


def _references(repository: Repository, prefix: str) -> list[dict[str, str]]:
    return [
        {"name": reference.removeprefix(prefix), "ref": reference, "targetCommit": commit_id}
        for reference, commit_id in repository.references.items()
        if reference.startswith(prefix)
    ]
