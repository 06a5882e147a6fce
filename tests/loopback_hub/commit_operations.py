"""What a commit does to the files of its parent."""

import base64
import binascii
from collections.abc import Callable, Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

from .cards import CardError, read_card
from .errors import bad_request, entry_not_found
from .repository import FileEntry

Files = dict[str, FileEntry]
LargeFile = Callable[[str], FileEntry | None]


def apply_operations(
    files: Mapping[str, FileEntry], operations: Iterable[Mapping[str, Any]], large_file: LargeFile
) -> Files:
    """Return the files of a commit.

    Args:
        files: Files of the parent commit.
        operations: `{"key": ..., "value": {"path": ..., ...}}`, applied in order.
        large_file: Gives the LFS file with a sha256, `None` where its content was never uploaded.

    Raises:
        HubError: 400 for unsafe paths, missing LFS contents, files that are also folders and unreadable model
            cards; 404 EntryNotFound for the deletion of what is not there.
    """
    files = dict(files)
    for operation in operations:
        apply = _OPERATIONS.get(operation.get("key", ""))
        if apply is None:
            raise bad_request(f"Unknown operation {operation.get('key')!r}")
        value = operation["value"]
        _check_path(value["path"].removesuffix("/"))
        apply(files, value, large_file)
    _check_folders(files)
    _check_card(files)
    return files


def _add_file(files: Files, value: Mapping[str, Any], large_file: LargeFile) -> None:
    if value.get("encoding") != "base64":
        raise bad_request(f"Unknown encoding {value.get('encoding')!r}")
    try:
        files[value["path"]] = FileEntry.regular(base64.b64decode(value["content"], validate=True))
    except binascii.Error as error:
        raise bad_request(f"The content of {value['path']} is not base64") from error


def _add_large_file(files: Files, value: Mapping[str, Any], large_file: LargeFile) -> None:
    entry = large_file(value["oid"])
    if entry is None:
        raise bad_request(f"The content of {value['path']} was never uploaded (sha256 {value['oid']})")
    if value.get("size", entry.size) != entry.size:
        raise bad_request(f"{value['path']} has {entry.size} bytes, not {value['size']}")
    files[value["path"]] = entry


def _delete_file(files: Files, value: Mapping[str, Any], large_file: LargeFile) -> None:
    if files.pop(value["path"], None) is None:
        raise entry_not_found("A file with this name doesn't exist")


def _delete_folder(files: Files, value: Mapping[str, Any], large_file: LargeFile) -> None:
    folder = value["path"].removesuffix("/")
    inside = [path for path in files if path.startswith(f"{folder}/")]
    if not inside:
        raise entry_not_found("A folder with this name doesn't exist")
    for path in inside:
        del files[path]


_OPERATIONS: dict[str, Callable[[Files, Mapping[str, Any], LargeFile], None]] = {
    "file": _add_file,
    "lfsFile": _add_large_file,
    "deletedFile": _delete_file,
    "deletedFolder": _delete_folder,
}


def _check_path(path: str) -> None:
    if "\0" in path or any(part in ("", ".", "..", ".git") for part in path.split("/")):
        raise bad_request(f"Unsafe path {path!r}")


def _check_folders(files: Files) -> None:
    for path in files:
        for parent in PurePosixPath(path).parents:
            if str(parent) in files:
                raise bad_request(f"{parent} cannot be both a file and a folder")


def _check_card(files: Files) -> None:
    if "README.md" not in files:
        return
    try:
        read_card(files["README.md"].content.decode())
    except (CardError, UnicodeDecodeError) as error:
        raise bad_request(f"README.md: {error}") from error
