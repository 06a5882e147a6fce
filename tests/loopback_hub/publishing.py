"""Routes that change the files of a repository: announce, upload, commit."""

import base64
import json
import re
from typing import Any

from .commit_operations import apply_operations
from .errors import HubError, bad_request, forbidden
from .gitattributes import is_ignored, is_large
from .messages import Request, Response, is_true, json_response
from .repository import Commit, Repository
from .routing import Routes
from .state import HubState, User

routes = Routes()


@routes.add("POST", "/api/models/{repo_id}/preupload/{revision}")
def announce_files(state: HubState, request: Request, repo_id: str, revision: str) -> Response:
    """Say how to upload each file, and what the repository already has in its place."""
    repository, _ = committer(state, request, repo_id, revision)
    commit = repository.resolve(revision)
    announced = request.json()
    if len(announced["files"]) > 256:
        raise bad_request("At most 256 files can be announced at once")
    ignored = announced.get("gitIgnore") or _text_of(commit, ".gitignore")
    return json_response({"files": [_upload_instruction(commit, file, ignored) for file in announced["files"]]})


@routes.add("POST", "/{repo_id}.git/info/lfs/objects/batch")
def plan_large_uploads(state: HubState, request: Request, repo_id: str) -> Response:
    """Say where to upload each LFS file; those that the Hub holds need no upload."""
    state.repository(request, repo_id)
    state.require_user(request)
    batch = request.json()
    if batch["operation"] != "upload" or batch.get("hash_algo", "sha256") != "sha256":
        raise bad_request("The loopback Hub plans uploads by sha256 only")
    in_parts = "multipart" in batch.get("transfers", [])
    objects = [_large_upload(state, repo_id, wanted, in_parts=in_parts) for wanted in batch["objects"]]
    return json_response({"transfer": "multipart" if in_parts else "basic", "objects": objects})


@routes.add("POST", "/{repo_id}.git/info/lfs/objects/verify")
def verify_large_upload(state: HubState, request: Request, repo_id: str) -> Response:
    """Confirm that an LFS file has arrived."""
    state.repository(request, repo_id)
    state.require_user(request)
    expected = request.json()
    content = state.large_files.get(expected["oid"])
    if content is None or len(content) != expected["size"]:
        raise HubError(404, f"No content of {expected['size']} bytes with sha256 {expected['oid']}")
    return json_response({})


@routes.add("POST", "/api/models/{repo_id}/commit/{revision}")
def commit(state: HubState, request: Request, repo_id: str, revision: str) -> Response:
    """Commit to a branch, or open a pull request against it."""
    repository, user = committer(state, request, repo_id, revision)
    header, operations = _read_commit(request)
    reference = repository.writable_reference(revision)
    as_pull_request = _is_pull_request(request)
    parent = repository.resolve(reference)
    expected_parent = header.get("parentCommit")
    if as_pull_request and expected_parent:
        parent = repository.resolve(expected_parent)
    elif expected_parent not in (None, parent.id):
        raise HubError(412, "A commit has happened since. Please refresh and try again.")

    created = repository.add_commit(
        parent,
        apply_operations(parent.files, operations, state.large_file),
        title=header["summary"],
        description=header.get("description", ""),
        author=user.name,
    )
    answer = {
        "success": True,
        "commitOid": created.id,
        "commitUrl": f"{state.endpoint}/{repo_id}/commit/{created.id}",
        "hookOutput": "",
    }
    if as_pull_request:
        pull_request = repository.open_pull_request(
            created, title=created.title, description=created.description, author=user.name
        )
        answer["pullRequestUrl"] = f"{state.endpoint}/{repo_id}/discussions/{pull_request.number}"
    else:
        repository.references[reference] = created.id
    return json_response(answer)


def committer(state: HubState, request: Request, repo_id: str, revision: str) -> tuple[Repository, User]:
    """Return the repository and the user of an upload; readers may open pull requests."""
    repository = state.repository(request, repo_id)
    user = state.require_user(request)
    proposed = repository.pull_requests.get(revision)
    is_own_proposal = proposed is not None and proposed.author == user.name
    if not (user.may_write_in(repository.namespace) or _is_pull_request(request) or is_own_proposal):
        raise forbidden("Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request")
    return repository, user


def _is_pull_request(request: Request) -> bool:
    return is_true(request.query.get("create_pr"))


def _upload_instruction(commit: Commit, file: dict[str, Any], ignored: str) -> dict[str, Any]:
    path = file["path"]
    large = is_large(
        path,
        size=file["size"],
        sample=base64.b64decode(file["sample"]),
        gitattributes=_text_of(commit, ".gitattributes"),
    )
    instruction = {
        "path": path,
        "uploadMode": "lfs" if large else "regular",
        "shouldIgnore": is_ignored(path, ignored),
    }
    if present := commit.files.get(path):
        instruction["oid"] = present.sha256 or present.blob_id
    return instruction


def _text_of(commit: Commit, path: str) -> str:
    """Return the content of a regular file, `""` where there is none."""
    return commit.files[path].content.decode() if path in commit.files else ""


def _large_upload(state: HubState, repo_id: str, wanted: dict[str, Any], *, in_parts: bool) -> dict[str, Any]:
    sha256, size = wanted["oid"], wanted["size"]
    if not re.fullmatch("[0-9a-f]{64}", sha256):
        raise bad_request(f"{sha256!r} is not a sha256")
    plan: dict[str, Any] = {"oid": sha256, "size": size}
    if sha256 not in state.large_files:
        href = f"{state.cdn_endpoint}/lfs/{sha256}"
        parts = _part_urls(href, size, state.part_size) if in_parts and size > state.part_size else {}
        plan["actions"] = {
            "upload": {"href": href, "header": parts},
            "verify": {"href": f"{state.endpoint}/{repo_id}.git/info/lfs/objects/verify", "header": {}},
        }
    return plan


def _part_urls(href: str, size: int, part_size: int) -> dict[str, str]:
    """Return where to upload each part of a content."""
    numbers = range(1, -(-size // part_size) + 1)
    return {"chunk_size": str(part_size), **{f"{number:05}": f"{href}/{number}" for number in numbers}}


def _read_commit(request: Request) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the header and the operations of a newline-delimited JSON body."""
    try:
        lines = [json.loads(line) for line in request.body.splitlines() if line.strip()]
    except ValueError as error:
        raise bad_request(f"The body is not newline-delimited JSON: {error}") from error
    if not lines or lines[0].get("key") != "header" or not lines[0]["value"].get("summary"):
        raise bad_request("The first line must be a header with a summary")
    if len(lines) == 1:
        raise bad_request("The commit has no operations")
    return lines[0]["value"], lines[1:]
