"""Reading a clone from the Hugging Face Hub: one commit, the files that are needed, each checked on arrival."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pnc_hub.artifact import checks, files
from pnc_hub.artifact.files import Header
from pnc_hub.artifact.storage import Storage
from pnc_hub.errors import CloneNotFoundError, IntegrityError, MalformedArtifactError
from pnc_hub.hub.client import api, explained, retried

_FIRST = 16 << 10  # bytes; the headers of most clones are shorter
_OTHER_ON_RECORD = f"the Hub has another sha256 on record than {files.CONFIG}"


def split_revision(name: str, revision: str | None) -> tuple[str, str | None]:
    """``"user/name@revision"`` -> (``"user/name"``, ``"revision"``); a ``revision`` given apart must agree.

    Example:
        >>> split_revision("user/birds@v1.0", None)
        ('user/birds', 'v1.0')
    """
    base, at, inside = name.partition("@")
    if not is_repo_id(base):
        return name, revision
    if at and revision not in (None, inside):
        raise CloneNotFoundError(
            f"two revisions were given: {inside!r} in the name and revision={revision!r}; give one", repo_id=base
        )
    revision = inside if at else revision
    if revision == "":
        raise CloneNotFoundError("an empty revision was given; give a branch, tag or commit, or none", repo_id=base)
    return base, revision


def is_repo_id(name: str) -> bool:
    """Whether ``name`` has the form ``user/name`` of a Hub repository."""
    return "/" in name and checks.passes(checks.hub_id, name)


class Hub(Storage):
    """The storage of a clone on the Hub: all files are from the commit at which config.json was found."""

    def __init__(self, repo_id: str, revision: str | None, **options: Any) -> None:
        """Resolve ``revision`` to a commit by fetching config.json.

        Args:
            repo_id: ``user/name``.
            revision: branch, tag, pull request (``refs/pr/1``), commit or None.
            **options: ``token``, ``cache_dir``, ``local_files_only`` and ``force_download`` of huggingface_hub.

        Raises:
            CloneNotFoundError: no such repository, revision or file, or it cannot be reached and is not in the cache.
            HubError: the Hub refused or failed, or the cache cannot be written.
            IntegrityError: what arrived is not what the Hub has a record of.
        """
        self.name: str = repo_id
        self.origin: str = repo_id
        self.options = options
        self.sizes: dict[str, int] = {}
        self.config = self._download(files.CONFIG, revision, files.MAX_CONFIG_BYTES)
        self.revision = self.config.parent.name
        self.root = self.config.parents[3].resolve()  # the whole cache: repositories may share blobs
        with explained(repo_id, self.revision, files.CONFIG):
            self._check(self.config, files.CONFIG, None)

    def __getstate__(self) -> dict[str, Any]:
        """A pickled model must not carry the token of whoever attached the clone; a copy uses the stored one."""
        return {**self.__dict__, "options": {**self.options, "token": None}}

    def path(self, file: str, digest: str | None = None, most: int = files.MAX_FILE_BYTES) -> Path:
        """Where ``file`` is in the cache, downloaded if need be; the Hub must have ``digest`` on record for it, if any."""
        path = self.config if file == files.CONFIG else self._download(file, self.revision, most)
        self._check(path, file, digest)
        return path

    def header(self, file: str, digest: str | None = None) -> Header:
        """What ``file`` holds, by what the Hub says of it and by its first bytes, unless it is in the cache."""
        from huggingface_hub.hf_api import RepoFile

        if self.holds(file):
            return files.read_header(self.path(file), file)
        with explained(self.name, self.revision, file):
            token = self.options.get("token")
            entries = retried(lambda: api(token).get_paths_info(self.name, [file], revision=self.revision))
        if not entries or not isinstance(entries[0], RepoFile):
            raise CloneNotFoundError("the repository has no such file", file=file)
        size, lfs = entries[0].size, entries[0].lfs
        if digest is not None and lfs and lfs.sha256 != digest:
            raise IntegrityError(_OTHER_ON_RECORD, file=file)
        if size > files.MAX_FILE_BYTES:
            raise MalformedArtifactError(f"{size} bytes, more than the {files.MAX_FILE_BYTES} allowed", file=file)
        with explained(self.name, self.revision, file):
            start = retried(lambda: self._first_bytes(file, _FIRST))
            length = 8 + min(int.from_bytes(start[:8], "little"), files.MAX_HEADER_BYTES)
            if length > len(start) and size > len(start):
                start = retried(lambda: self._first_bytes(file, length))
        return files.parse_header(io.BytesIO(start), size, file)

    def holds(self, file: str) -> bool:
        """Whether it would not be downloaded: it is in the cache, or nothing but the cache may be asked."""
        return bool(self.options.get("local_files_only")) or self._cached(file, self.revision) is not None

    def names(self) -> Iterable[str]:
        """All files of the repository at this commit."""
        with explained(self.name, self.revision, "the list of its files"):
            return retried(lambda: api(self.options.get("token")).list_repo_files(self.name, revision=self.revision))

    def _first_bytes(self, file: str, count: int) -> bytes:
        """At most ``count`` bytes, also from a server that does not know ranges."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_stream_backoff

        url = hf_hub_url(self.name, file, revision=self.revision)
        headers = build_hf_headers(token=self.options.get("token"), library_name="pnc-hub")
        headers |= {"Range": f"bytes=0-{count - 1}", "Accept-Encoding": "identity"}
        data = bytearray()
        with http_stream_backoff("GET", url, headers=headers) as response:
            hf_raise_for_status(response)
            for chunk in response.iter_bytes(16 << 10):
                data += chunk
                if len(data) >= count:
                    break
        return bytes(data[:count])

    def _check(self, path: Path, file: str, digest: str | None) -> None:
        if not path.resolve().is_relative_to(self.root):
            raise self._refused("its file in the cache leads outside the cache", file)
        recorded = Path(os.readlink(path)).name if path.is_symlink() else ""  # the cache names it by the Hub's digest
        if digest is None and file == files.CONFIG and _digest_like(files.read_small(path, file), recorded) != recorded:
            raise self._refused("it is not what the Hub has a record of", file)
        if digest is not None and len(recorded) == 64 and recorded != digest:
            raise self._refused(_OTHER_ON_RECORD, file)

    def _refused(self, reason: str, file: str) -> IntegrityError:
        reason += "; download it again (force_download=True, or to another cache_dir)"
        return IntegrityError(reason, repo_id=self.name, revision=self.revision, file=file)

    def _cached(self, file: str, revision: str | None) -> str | None:
        """Its path in the cache, if it may be taken from there."""
        from huggingface_hub import try_to_load_from_cache

        settled = self.options.get("local_files_only") or checks.passes(checks.commit, revision)
        if not settled or self.options.get("force_download"):
            return None
        path = try_to_load_from_cache(self.name, file, self.options.get("cache_dir"), revision)
        return path if isinstance(path, str) else None

    def _download(self, file: str, revision: str | None, most: int) -> Path:
        from huggingface_hub import hf_hub_download

        others = sum(size for name, size in self.sizes.items() if name != file)

        def download() -> str:
            path: str = hf_hub_download(
                self.name,
                file,
                revision=revision,
                library_name="pnc-hub",
                tqdm_class=_bounded(min(most, files.MAX_TOTAL_BYTES - others), file),
                **self.options,
            )
            return path

        with explained(self.name, revision, file):
            # hf_hub_download would find the same, but prepare a request first, and for its headers ask the Hub
            path = Path(self._cached(file, revision) or retried(download))
            self.sizes[file] = path.stat().st_size
            return path


def _digest_like(content: bytes, recorded: str) -> str:
    """The digest of ``content`` of the kind that the Hub records: sha256 of large files, git's sha1 of others."""
    if len(recorded) == 64:
        return hashlib.sha256(content).hexdigest()
    if checks.passes(checks.commit, recorded):
        return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    return recorded


def _bounded(limit: int, file: str) -> type:
    """A progress bar that breaks a download off at ``limit`` bytes, announced or received: the client itself has no limit."""
    from huggingface_hub.utils import tqdm

    class Bounded(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            tqdm.__init__(self, *args, **kwargs)
            self.received = 0.0
            self._check(kwargs.get("total") or 0)

        def update(self, n: float | None = 1) -> bool | None:
            self.received += n or 0
            self._check(self.received)
            shown: bool | None = super().update(n)
            return shown

        def _check(self, size: float) -> None:
            if size > limit:
                self.close()
                raise MalformedArtifactError(f"{size} bytes or more, and {limit} are allowed", file=file)

    return Bounded
