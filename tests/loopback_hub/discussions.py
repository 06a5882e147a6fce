"""Routes about pull requests that are opened before they have commits."""

from typing import Any

from .errors import HubError, bad_request
from .messages import Request, Response, json_response
from .repository import PULL_REQUEST, PullRequest
from .routing import Routes
from .state import HubState
from .views import date_view

routes = Routes()


@routes.add("POST", "/api/models/{repo_id}/discussions")
def open_pull_request(state: HubState, request: Request, repo_id: str) -> Response:
    """Open a pull request at the head of `main`; every reader may."""
    repository = state.repository(request, repo_id)
    user = state.require_user(request)
    body = request.json()
    if not body.get("pullRequest"):
        raise bad_request("The loopback Hub has pull requests, but no discussions")
    opened = repository.open_pull_request(
        repository.resolve("main"), title=body["title"], description=body["description"], author=user.name
    )
    return json_response({"num": opened.number, "pullRequest": {"base": "refs/heads/main"}})


@routes.add("GET", "/api/models/{repo_id}/discussions/{number}")
def describe_pull_request(state: HubState, request: Request, repo_id: str, number: str) -> Response:
    """Describe a pull request."""
    request.accept_only("diff")
    repository = state.repository(request, repo_id)
    found = repository.pull_requests.get(f"{PULL_REQUEST}{number}")
    if found is None:
        raise HubError(404, f"No discussion {number}")
    return json_response(
        {
            **_opening(found),
            "num": found.number,
            "title": found.title,
            "status": "draft",
            "isPullRequest": True,
            "repo": {"name": repo_id, "type": "model"},
            "events": [_comment(found)],
            "changes": {"base": "refs/heads/main"},
            "filesWithConflicts": [],
            "diff": "",
        }
    )


def _opening(pull_request: PullRequest) -> dict[str, Any]:
    return {"author": {"name": pull_request.author}, "createdAt": date_view(pull_request.created_at)}


def _comment(pull_request: PullRequest) -> dict[str, Any]:
    text = {"raw": pull_request.description}
    content = {"edited": False, "hidden": False, "latest": text}
    return {**_opening(pull_request), "id": f"{pull_request.number:024x}", "type": "comment", "data": content}
