"""Routes about who is asking, and about repositories as a whole."""

import re
from collections.abc import Mapping
from typing import Any

from .cards import CardError, read_card
from .errors import HubError, bad_request, forbidden, repository_not_found
from .messages import Request, Response, json_response
from .repository import Repository
from .routing import Routes
from .state import HubState

routes = Routes()


@routes.add("GET", "/api/whoami-v2")
def whoami(state: HubState, request: Request) -> Response:
    """Describe the owner of the token."""
    user = state.require_user(request)
    return json_response(
        {
            "type": "user",
            "name": user.name,
            "fullname": user.name,
            "orgs": [{"type": "org", "name": org, "fullname": org} for org in user.orgs],
            "auth": {"type": "access_token", "accessToken": {"displayName": "test", "role": user.role}},
        }
    )


@routes.add("GET", "/api/agent-harnesses")
def agent_harnesses(state: HubState, request: Request) -> Response:
    """List no coding tools for the client's user agent to look for."""
    return json_response({"standardEnvVars": [], "harnesses": {}})


@routes.add("POST", "/api/repos/create")
def create_repository(state: HubState, request: Request) -> Response:
    """Create a model repository."""
    repo_id, namespace, options = _named_repository(state, request)
    answer = {"url": f"{state.endpoint}/{repo_id}", "name": repo_id, "id": repo_id}
    user = state.require_user(request)
    if not user.may_write_in(namespace):
        raise forbidden(f"You don't have the rights to create a model under the namespace {namespace!r}")
    if repo_id in state.repositories:
        raise HubError(409, "You already created this model repo", fields=answer)
    state.repositories[repo_id] = Repository(repo_id, author=user.name, private=_is_private(options))
    state.moved.pop(repo_id, None)
    return json_response(answer)


@routes.add("DELETE", "/api/repos/delete")
def delete_repository(state: HubState, request: Request) -> Response:
    """Delete a repository with all its commits."""
    repo_id, _, _ = _named_repository(state, request)
    _writable(state, request, repo_id)
    del state.repositories[repo_id]
    return json_response({})


@routes.add("POST", "/api/repos/move")
def move_repository(state: HubState, request: Request) -> Response:
    """Give a repository another name; the former one leads to it."""
    body = request.json()
    source, destination = body["fromRepo"], body["toRepo"]
    repository = _writable(state, request, source)
    state.require_writer(request, destination.split("/")[0])
    if destination in state.repositories:
        raise HubError(409, f"{destination} exists already")
    repository.id = destination
    state.repositories[destination] = state.repositories.pop(source)
    state.moved = {former: destination if now == source else now for former, now in state.moved.items()}
    state.moved[source] = destination
    state.moved.pop(destination, None)
    return json_response({})


@routes.add("PUT", "/api/models/{repo_id}/settings")
def change_settings(state: HubState, request: Request, repo_id: str) -> Response:
    """Change who may read a repository."""
    repository, _ = state.writable_repository(request, repo_id)
    settings = request.json()
    if unknown := set(settings) - {"visibility", "private", "gated"}:
        raise bad_request(f"The loopback Hub does not know the settings {sorted(unknown)}")
    if {"visibility", "private"} & set(settings):
        repository.private = _is_private(settings)
    repository.gated = settings.get("gated", repository.gated)
    return json_response({"private": repository.private, "gated": repository.gated})


@routes.add("POST", "/api/models/{repo_id}/user-access-request/grant")
def admit_user(state: HubState, request: Request, repo_id: str) -> Response:
    """Let a user read the files of a gated repository."""
    repository, _ = state.writable_repository(request, repo_id)
    repository.admitted.add(request.json()["user"])
    return json_response({})


@routes.add("GET", "/api/models/{repo_id}/auth-check")
def check_read_access(state: HubState, request: Request, repo_id: str) -> Response:
    """Say whether the user may read a repository."""
    state.readable_repository(request, repo_id)
    return json_response({})


@routes.add("GET", "/api/models/{repo_id}/auth-check/write")
def check_write_access(state: HubState, request: Request, repo_id: str) -> Response:
    """Say whether the user may change a repository."""
    state.writable_repository(request, repo_id)
    return json_response({})


@routes.add("POST", "/api/validate-yaml")
def validate_card(state: HubState, request: Request) -> Response:
    """Judge the metadata of a model card before it is uploaded."""
    try:
        card = read_card(request.json()["content"])
    except CardError as error:
        return json_response({"errors": [{"message": str(error)}], "warnings": []}, status=400)
    warnings = [] if card else [{"message": "empty or missing yaml metadata in repo card"}]
    return json_response({"errors": [], "warnings": warnings})


def _is_private(options: Mapping[str, Any]) -> bool:
    """Read the visibility of a repository in the spelling of any client."""
    return options.get("visibility", "private" if options.get("private") else "public") == "private"


def _writable(state: HubState, request: Request, repo_id: str) -> Repository:
    """Return a repository that the body of a request names and that its user may change."""
    user = state.require_user(request)
    repository = state.repositories.get(repo_id)
    if repository is None or not state.is_visible(repository, user):
        raise repository_not_found(anonymous=False)
    state.require_writer(request, repository.namespace)
    return repository


def _named_repository(state: HubState, request: Request) -> tuple[str, str, dict[str, Any]]:
    """Return the id and namespace of the repository that a JSON body names, and the body."""
    user = state.require_user(request)
    body = request.json()
    if body.get("type", "model") != "model":
        raise bad_request("The loopback Hub has model repositories only")
    namespace = body.get("organization") or user.name
    if not re.fullmatch(r"\w[\w.-]*", body["name"]):
        raise bad_request(f"Invalid repository name: {body['name']!r}")
    return f"{namespace}/{body['name']}", namespace, body
