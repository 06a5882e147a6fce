"""What the weight files of a clone hold, told from their headers: of a file on the Hub a few kilobytes are fetched."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pnc_hub.artifact import files
from pnc_hub.errors import CloneNotFoundError, IntegrityError, MalformedArtifactError
from pnc_hub.hub import download

if TYPE_CHECKING:
    from pnc_hub.hub.clone import Clone

_FIRST = 16 << 10  # bytes; the headers of most clones are shorter


class Headers:
    """Stands in for reading the weights of one clone, without fetching those that are still on the Hub.

    Of such a file everything is checked that ``files.read_tensors`` checks, but for the numbers: its sha256 is what the Hub
    says of it, and whether they are finite is not known. Files that are on this machine are read as they always are.

    Attributes:
        sizes: bytes of each file that was asked for.
        absent: those of them that would have to be downloaded.
    """

    def __init__(self, clone: Clone) -> None:
        """Nothing is read yet."""
        self.clone = clone
        self.sizes: dict[str, int] = {}
        self.absent: set[str] = set()

    def __call__(self, file: str, expected: dict[str, files.TensorSpec]) -> dict[str, Tensor]:
        """As the ``read`` of ``pnc_hub.artifact.assembly.assemble``; zeros stand for what was not fetched.

        Raises:
            CloneNotFoundError: there is no such file.
            IntegrityError: it has another sha256 than the configuration records.
            MalformedArtifactError: it does not hold exactly the ``expected`` tensors.
            HubError: the Hub did not answer.
        """
        clone, where = self.clone, self.clone._locate
        if isinstance(where, download.HubFiles) and file not in clone._tensors and not _is_here(where, file):
            self.sizes[file] = _check_remote(where, file, expected, clone._digest(file))
            self.absent.add(file)
            return without_memory(expected)
        tensors = clone._read(file, expected)
        in_memory = sum(tensor.nbytes for tensor in tensors.values())
        self.sizes[file] = clone._path(file).stat().st_size if where else in_memory
        return tensors


def without_memory(specs: dict[str, files.TensorSpec]) -> dict[str, Tensor]:
    """Tensors that meet ``specs``, all zeros: a single number each, which stands for all."""
    return {name: torch.zeros((), dtype=spec.dtype, device="cpu").expand(spec.shape) for name, spec in specs.items()}


def _is_here(where: download.HubFiles, file: str) -> bool:
    """Whether it would not be downloaded: it is in the cache, or nothing but the cache may be asked."""
    return bool(where.options.get("local_files_only")) or where.cached(file, where.commit) is not None


def _check_remote(where: download.HubFiles, file: str, expected: dict[str, files.TensorSpec], digest: str) -> int:
    """Check a file on the Hub by what the Hub says of it, and by its header; its size in bytes."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    api = HfApi(token=where.options.get("token"), library_name="pnc-hub")
    with download.explained(where.repo_id, where.commit, file):
        entries = download.retried(lambda: api.get_paths_info(where.repo_id, [file], revision=where.commit))
    if not entries or not isinstance(entries[0], RepoFile):
        raise CloneNotFoundError("the repository has no such file", file=file)
    size, lfs = entries[0].size, entries[0].lfs
    if lfs and lfs.sha256 != digest:
        raise IntegrityError(f"the Hub has another sha256 on record than {files.CONFIG}", file=file)
    if size > files.MAX_FILE_BYTES:
        raise MalformedArtifactError(f"{size} bytes, more than the {files.MAX_FILE_BYTES} allowed", file=file)
    with download.explained(where.repo_id, where.commit, file):
        start = download.retried(lambda: _first_bytes(where, file, _FIRST))
        length = 8 + min(int.from_bytes(start[:8], "little"), files.MAX_HEADER_BYTES)
        if length > len(start) and size > len(start):
            start = download.retried(lambda: _first_bytes(where, file, length))
    found = {name: spec for name, (spec, _) in files.parse_header(io.BytesIO(start), size, file).items()}
    if found != expected:
        raise MalformedArtifactError(files.difference(found, expected), file=file)
    return size


def _first_bytes(where: download.HubFiles, file: str, count: int) -> bytes:
    """At most ``count`` bytes, also from a server that does not know ranges."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_stream_backoff

    url = hf_hub_url(where.repo_id, file, revision=where.commit)
    headers = build_hf_headers(token=where.options.get("token"), library_name="pnc-hub")
    headers |= {"Range": f"bytes=0-{count - 1}", "Accept-Encoding": "identity"}
    data = bytearray()
    with http_stream_backoff("GET", url, headers=headers) as response:
        hf_raise_for_status(response)
        for chunk in response.iter_bytes(16 << 10):
            data += chunk
            if len(data) >= count:
                break
    return bytes(data[:count])
