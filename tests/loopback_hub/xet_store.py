"""What a folder of hf_xet's `local://` store holds: which files, told from its shards, and their contents.

A shard is a table of records of 48 bytes. Of each file it has one record, then one per segment, then as many again to
verify them and one with the sha256, both of them if a flag says so.
"""

import struct
from collections.abc import Iterator
from pathlib import Path

from .repository import FileEntry

_RECORD = 48
_BOOKEND = b"\xff" * 32
_HAS_VERIFICATION, _HAS_SHA256 = 1 << 31, 1 << 30


def find_large_file(store: Path, sha256: str) -> FileEntry | None:
    """Return the file with a sha256, `None` where the store does not have it."""
    entries = (entry for path in store.glob("xet/xorbs/shards/*.mdb") for entry in _files_of(path.read_bytes()))
    return next((entry for entry in entries if entry.sha256 == sha256), None)


def read_large_file(store: Path, entry: FileEntry) -> bytes:
    """Return the content of a file that `find_large_file` found."""
    import hf_xet  # not every Hub has a store

    group = hf_xet.XetSession().new_download_stream_group(endpoint=f"local://{store}")
    return b"".join(group.download_stream(hf_xet.XetFileInfo(entry.xet_hash, entry.size)))


def _files_of(shard: bytes) -> Iterator[FileEntry]:
    at = _RECORD  # the first one tells what the file is
    while not shard.startswith(_BOOKEND, at):
        xet_hash = _hash_text(shard, at)
        flags, segments = struct.unpack_from("<II", shard, at + 32)
        at += _RECORD
        size = sum(struct.unpack_from("<I", shard, at + index * _RECORD + 36)[0] for index in range(segments))
        at += _RECORD * segments * (2 if flags & _HAS_VERIFICATION else 1)
        if flags & _HAS_SHA256:
            yield FileEntry.large(_hash_text(shard, at), size, xet_hash=xet_hash)
            at += _RECORD


def _hash_text(shard: bytes, at: int) -> str:
    return "".join(f"{word:016x}" for word in struct.unpack_from("<4Q", shard, at))
