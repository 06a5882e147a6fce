"""Repositories, files and folders in the Hub's JSON."""

import hashlib
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any

from .cards import card_of, tags_of
from .repository import Commit, FileEntry, Repository

View = dict[str, Any]


def model_view(repository: Repository, commit: Commit, *, blobs: bool = False) -> View:
    """Return all that is known of a model at a commit.

    Args:
        repository: The repository.
        commit: One of its commits.
        blobs: Whether to tell the size and ids of each file.
    """
    card = card_of(commit)
    view = {
        "_id": hashlib.sha1(repository.id.encode()).hexdigest()[:24],
        "id": repository.id,
        "modelId": repository.id,
        "author": repository.namespace,
        "sha": commit.id,
        "createdAt": date_view(repository.created_at),
        "lastModified": date_view(repository.resolve("main").date),
        "private": repository.private,
        "gated": repository.gated,
        "disabled": repository.disabled,
        "downloads": 0,
        "likes": 0,
        "tags": tags_of(commit),
        "siblings": [_sibling_view(path, entry, blobs=blobs) for path, entry in sorted(commit.files.items())],
        "usedStorage": _used_storage(repository),
    }
    if card:
        view["cardData"] = card
    for key in ("library_name", "pipeline_tag"):
        if key in card:
            view[key] = card[key]
    return view


def tree_view(repository: Repository, commit: Commit, *, expand: bool = False) -> dict[str, View]:
    """Return every file and folder of a commit by path, sorted.

    Args:
        repository: The repository.
        commit: One of its commits.
        expand: Whether to tell which commit last changed each entry, and that nothing is wrong with it.
    """
    folders = {str(folder) for path in commit.files for folder in PurePosixPath(path).parents} - {"."}
    tree = {path: _file_view(path, entry) for path, entry in commit.files.items()}
    tree |= {folder: _folder_view(folder, commit.below(folder)) for folder in folders}
    if expand:
        for path, view in tree.items():
            changed = repository.last_change(commit, path)
            if view["type"] == "file":
                view["securityFileStatus"] = {"status": "safe", "avScan": None, "pickleImportScan": None}
            view["lastCommit"] = {"id": changed.id, "title": changed.title, "date": date_view(changed.date)}
    return dict(sorted(tree.items()))


def commit_view(commit: Commit) -> View:
    """Return one entry of a history."""
    return {
        "id": commit.id,
        "title": commit.title,
        "message": commit.description,
        "authors": [{"user": commit.author}],
        "date": date_view(commit.date),
    }


def date_view(date: datetime) -> str:
    """Return a date in UTC with milliseconds."""
    return date.strftime("%Y-%m-%dT%H:%M:%S.") + f"{date.microsecond // 1000:03d}Z"


def _sibling_view(path: str, entry: FileEntry, *, blobs: bool) -> View:
    view: View = {"rfilename": path}
    if blobs:
        view |= {"size": entry.size, "blobId": entry.blob_id}
        if entry.sha256:
            view["lfs"] = {"sha256": entry.sha256, "size": entry.size, "pointerSize": entry.pointer_size}
    return view


def _file_view(path: str, entry: FileEntry) -> View:
    view: View = {"type": "file", "oid": entry.blob_id, "size": entry.size, "path": path}
    if entry.sha256:
        view["lfs"] = {"oid": entry.sha256, "size": entry.size, "pointerSize": entry.pointer_size}
    if entry.xet_hash:
        view["xetHash"] = entry.xet_hash
    return view


def _folder_view(path: str, files: dict[str, FileEntry]) -> View:
    listing = "\n".join(f"{entry.blob_id} {file}" for file, entry in sorted(files.items()))
    return {"type": "directory", "oid": hashlib.sha1(listing.encode()).hexdigest(), "size": 0, "path": path}


def _used_storage(repository: Repository) -> int:
    commits = repository.commits.values()
    sizes = {entry.blob_id: entry.size for commit in commits for entry in commit.files.values()}
    return sum(sizes.values())
