"""Reading and writing the files of an artifact: nothing is believed before it has been checked."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from pnc_hub.errors import CloneNotFoundError, IntegrityError, MalformedArtifactError

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
TRUNK = "trunk.safetensors"
PROBE = "probe.safetensors"
CARD = "README.md"
_OURS = re.compile(
    r"config\.json|README\.md|(model|trunk|probe)\.safetensors|adapters(/[^/]+\.safetensors)?|figures(/[^/]+\.png)?"
)

MAX_CONFIG_BYTES = 4 << 20
MAX_HEADER_BYTES = 4 << 20
MAX_FILE_BYTES = 4 << 30
MAX_PROBE_BYTES = 256 << 20
MAX_TOTAL_BYTES = 8 << 30  # of all files of one clone that are downloaded

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class TensorSpec:
    """Shape and dtype that a tensor must have."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of such a tensor."""
        return math.prod(self.shape) * self.dtype.itemsize

    @classmethod
    def of(cls, tensor: Tensor) -> TensorSpec:
        """The specification that ``tensor`` meets."""
        return cls(tuple(tensor.shape), tensor.dtype)


@dataclass(frozen=True)
class Header:
    """What the header of a file claims of its tensors; ``check`` believes none of it.

    Attributes:
        file: its name inside the artifact.
        size: bytes of the file.
        tensors: shape and dtype by name.
        spans: where after the header each tensor begins and ends, in the file's order.
        data: bytes after the header.
    """

    file: str
    size: int
    tensors: dict[str, TensorSpec]
    spans: dict[str, tuple[int, int]]
    data: int

    def check(self, expected: dict[str, TensorSpec]) -> None:
        """Raise ``MalformedArtifactError`` unless the file is ``expected`` tensor after tensor, and nothing else."""
        missing, surplus = sorted(expected.keys() - self.tensors.keys()), sorted(self.tensors.keys() - expected.keys())
        if missing or surplus:
            differing = f"missing {missing[:3]}, surplus {surplus[:3]!r:.200}"
            raise self._error(f"its tensors are not those of the configuration: {differing}")
        for name, spec in expected.items():
            if self.tensors[name] != spec:
                raise self._error(f"tensor {name!r} is {self.tensors[name]!s:.200}, the configuration needs {spec}")
        end = 0
        for name, span in self.spans.items():
            start, end = end, end + expected[name].nbytes
            if span != (start, end):
                raise self._error("its tensors overlap or leave a hole")
        if end != self.data:
            raise self._error("its tensors do not cover the file")

    def _error(self, reason: str) -> MalformedArtifactError:
        return MalformedArtifactError(reason, file=self.file)


def read_json(path: Path, file: str) -> Any:
    """Parse a small JSON file without JSON's leniencies: no duplicate keys, no NaN, no huge numbers, no deep nesting."""
    return parse_json(read_small(path, file), file)


def read_small(path: Path, file: str) -> bytes:
    """What a file of at most ``MAX_CONFIG_BYTES`` holds."""
    with _opened(path, MAX_CONFIG_BYTES, file) as (stream, size):
        return stream.read(size)


def parse_json(data: bytes, file: str) -> Any:
    """Parse JSON as ``read_json`` does."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            raise ValueError("a key stands twice in one object")
        return result

    def refuse(text: str) -> Any:
        raise ValueError(f"{text:.20} is no number here")

    def number(text: str) -> float:
        value = float(text)
        return value if math.isfinite(value) else refuse(text)

    try:
        return json.loads(
            data.decode("utf-8"),
            object_pairs_hook=unique,
            parse_constant=refuse,
            parse_float=number,
            parse_int=lambda text: int(text) if len(text) < 20 else refuse(text),
        )
    except (ValueError, RecursionError) as error:
        raise MalformedArtifactError(f"not valid JSON ({str(error)[:200]})", file=file) from None


def read_tensors(path: Path, expected: dict[str, TensorSpec], digest: str, file: str) -> dict[str, Tensor]:
    """Load a safetensors file that holds exactly the ``expected`` tensors, all finite.

    The file is read once, into the tensors themselves: the bytes that were checked are those that are used, whatever
    happens to the file later, and there is never a second copy of them in memory.

    Args:
        path: the file.
        expected: name -> shape and dtype; a missing, surplus or different tensor is an error.
        digest: sha256 that the file must have.
        file: its name inside the artifact, for messages.

    Raises:
        CloneNotFoundError: there is no such file.
        IntegrityError: the sha256 is another one.
        MalformedArtifactError: anything else is not as expected.
    """
    with _opened(path, most_bytes(expected), file) as (stream, size):  # a larger one is not even hashed
        hashed = _Hashed(stream, size)
        try:
            tensors, problem = _fill(hashed, size, expected, file), None
        except MalformedArtifactError as error:
            tensors, problem = {}, error
        actual = hashed.digest_of_all()
    if actual != digest:  # a damaged file is that in the first place, whatever the damage made of it
        raise IntegrityError(
            f"its sha256 is not the one that {CONFIG} records; download it again (force_download=True)", file=file
        )
    if problem is not None:
        raise problem
    return tensors


def read_header(path: Path, file: str) -> Header:
    """What the header of a safetensors file claims; nothing else of it is read."""
    with _opened(path, MAX_FILE_BYTES, file) as (stream, size):
        return parse_header(stream, size, file)


def tensor_bytes(tensors: dict[str, Tensor]) -> bytes:
    """``tensors`` as safetensors; the same tensors give the same bytes."""
    owned = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in sorted(tensors.items())}
    return safetensors.torch.save(owned, metadata={"format": "pt"})


def json_bytes(value: Any) -> bytes:
    """``value`` as JSON that a person can read."""
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def specs(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, TensorSpec]:
    """The specification that named ``tensors`` meet."""
    return {name: TensorSpec.of(tensor) for name, tensor in tensors}


def is_ours(path: str) -> bool:
    """Whether a file or folder of this relative path can belong to a clone."""
    return _OURS.fullmatch(path) is not None


def is_page(path: str) -> bool:
    """Whether a file of a clone is of its page, which is made of its configuration: the card, a figure."""
    return path == CARD or path.startswith("figures/")


@contextmanager
def _opened(path: Path, limit: int, file: str) -> Iterator[tuple[BufferedIOBase, int]]:
    """A regular file of at most ``limit`` bytes, and its size; what the system refuses comes out typed."""
    try:
        status = os.stat(path)  # before it is opened: opening a FIFO waits until somebody writes to it
        if not stat.S_ISREG(status.st_mode):
            raise MalformedArtifactError("not a regular file", file=file)
        if status.st_size > limit:
            raise MalformedArtifactError(f"{status.st_size} bytes, more than the {limit} allowed", file=file)
        with path.open("rb") as stream:
            yield stream, status.st_size
    except (FileNotFoundError, NotADirectoryError):
        raise CloneNotFoundError("the artifact has no such file", file=file) from None
    except OSError as error:
        raise MalformedArtifactError(f"it cannot be read ({error.strerror})", file=file) from error


class _Hashed:
    """The first ``size`` bytes of a file, hashed as they are read."""

    def __init__(self, stream: BufferedIOBase, size: int) -> None:
        self.stream, self.left, self.sha256 = stream, size, hashlib.sha256()

    def read(self, size: int) -> bytes:
        data = self.stream.read(min(size, self.left))
        self.left -= len(data)
        self.sha256.update(data)
        return data

    def fill(self, tensor: Tensor) -> bool:
        """Read the bytes of ``tensor``; whether there were enough."""
        data = tensor.view(-1).view(torch.uint8).numpy().data
        count = self.stream.readinto(data)
        self.left -= count
        self.sha256.update(data[:count])
        return bool(count == len(data))

    def digest_of_all(self) -> str:
        """sha256 of all bytes, in hex; what has not been read is read now."""
        while self.read(1 << 20):
            pass
        return self.sha256.hexdigest()


def most_bytes(expected: dict[str, TensorSpec]) -> int:
    """The largest size of a file that holds the ``expected`` tensors."""
    needed = sum(spec.nbytes for spec in expected.values())
    return min(8 + MAX_HEADER_BYTES + needed, MAX_FILE_BYTES)


def _fill(stream: _Hashed, size: int, expected: dict[str, TensorSpec], file: str) -> dict[str, Tensor]:
    """The tensors of a file at whose beginning ``stream`` is; each has memory of its own, aligned as torch aligns it."""
    header = parse_header(stream, size, file)
    header.check(expected)
    tensors = {}
    for name in header.spans:
        tensor = tensors[name] = torch.empty(expected[name].shape, dtype=expected[name].dtype, device="cpu")
        if not stream.fill(tensor):
            raise MalformedArtifactError("it became shorter while it was read", file=file)
        if tensor.dtype == torch.bool and tensor.view(torch.uint8).gt(1).any():
            raise MalformedArtifactError(f"tensor {name!r} holds truth values other than 0 and 1", file=file)
        # NaN is the least and the greatest of anything it is among, so one pass without temporaries tells
        if tensor.numel() and tensor.is_floating_point() and not all(map(math.isfinite, map(float, tensor.aminmax()))):
            raise MalformedArtifactError(f"tensor {name!r} holds NaN or infinity", file=file)
    return tensors


def parse_header(stream: BufferedIOBase | _Hashed, size: int, file: str) -> Header:
    """What the header at the beginning of ``stream`` claims of a file of ``size`` bytes."""
    length = int.from_bytes(stream.read(8), "little")
    if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
        raise MalformedArtifactError("not a safetensors file (its header length is impossible)", file=file)
    entries = parse_json(stream.read(length), file)
    try:
        entries.pop("__metadata__", None)
        tensors = {name: TensorSpec(tuple(entry["shape"]), _DTYPES[entry["dtype"]]) for name, entry in entries.items()}
        spans = {name: (entry["data_offsets"][0], entry["data_offsets"][1]) for name, entry in entries.items()}
        spans = dict(sorted(spans.items(), key=lambda item: item[1]))
        if not all(type(number) is int for name in tensors for number in (*tensors[name].shape, *spans[name])):
            raise TypeError("a size is no whole number")
    except (AttributeError, LookupError, TypeError) as error:
        raise MalformedArtifactError("its safetensors header does not describe tensors", file=file) from error
    return Header(file, size, tensors, spans, size - 8 - length)


def without_memory(expected: dict[str, TensorSpec]) -> dict[str, Tensor]:
    """Tensors as ``expected``, all zeros: a single number each, which stands for all."""
    return {name: torch.zeros((), dtype=spec.dtype, device="cpu").expand(spec.shape) for name, spec in expected.items()}
