"""Routes that create and delete branches and tags."""

from .messages import Request, Response, json_response
from .repository import BRANCH, TAG
from .routing import Routes
from .state import HubState

routes = Routes()


@routes.add("POST", "/api/models/{repo_id}/branch/{branch}")
def create_branch(state: HubState, request: Request, repo_id: str, branch: str) -> Response:
    """Create a branch from `main` or from a given starting point."""
    repository, _ = state.writable_repository(request, repo_id)
    start = repository.resolve(request.json().get("startingPoint", "main"))
    repository.add_reference(f"{BRANCH}{branch}", start)
    return json_response({})


@routes.add("DELETE", "/api/models/{repo_id}/branch/{branch}")
def delete_branch(state: HubState, request: Request, repo_id: str, branch: str) -> Response:
    """Delete a branch; its commits stay."""
    repository, _ = state.writable_repository(request, repo_id)
    repository.remove_reference(f"{BRANCH}{branch}")
    return json_response({})


@routes.add("POST", "/api/models/{repo_id}/tag/{revision}")
def create_tag(state: HubState, request: Request, repo_id: str, revision: str) -> Response:
    """Tag the commit that a revision names now."""
    repository, _ = state.writable_repository(request, repo_id)
    repository.add_reference(f"{TAG}{request.json()['tag']}", repository.resolve(revision))
    return json_response({})


@routes.add("DELETE", "/api/models/{repo_id}/tag/{revision}")
def delete_tag(state: HubState, request: Request, repo_id: str, revision: str) -> Response:
    """Delete a tag."""
    repository, _ = state.writable_repository(request, repo_id)
    repository.remove_reference(f"{TAG}{revision}")
    return json_response({})
