"""``Contents``: what an artifact says and holds. Weights are read when they are first needed, each file verified."""

from __future__ import annotations

import hashlib
from collections.abc import Container
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from pnc_hub.artifact import files, probe
from pnc_hub.artifact.assembly import assemble
from pnc_hub.artifact.config import AdapterConfig, CloneConfig
from pnc_hub.artifact.storage import Storage
from pnc_hub.errors import CloneNotFoundError, MalformedArtifactError, ProbeError, located
from pnc_hub.models.preprocess import Preprocess
from pnc_hub.module import CloneModule, Gate


@dataclass(frozen=True)
class Outline:
    """A module and its gate as ``Contents.build`` makes them, but with zeros for what is not on this machine.

    ``bytes`` is the size of the files that they are made of, ``download`` how much of that would have to be downloaded.
    """

    module: CloneModule
    gate: Gate
    bytes: int
    download: int


class Contents:
    """A configuration, tensors, and where their files are.

    Attributes:
        config: the parsed ``config.json``.
        tensors: those in memory, by name, by file.
        storage: where the other files are.
    """

    def __init__(
        self, config: CloneConfig, tensors: dict[str, dict[str, Tensor]], *, storage: Storage | None = None
    ) -> None:
        """Files that are not in ``tensors`` are read from ``storage`` when they are needed; without one there are no others."""
        self.config, self.tensors = config, tensors
        self.storage = storage or Storage()
        self._read_from = ""  # sha256 of the config.json that it was read from

    @classmethod
    def open(cls, storage: Storage) -> Self:
        """Read the configuration that is in ``storage``.

        Raises:
            CloneNotFoundError: there is none.
            FormatVersionError: written in a format that this version does not read.
            MalformedArtifactError: it is damaged or not a clone's.
        """
        with located(repo_id=storage.name, revision=storage.revision, file=files.CONFIG):
            content = files.read_small(storage.path(files.CONFIG), files.CONFIG)
            contents = cls(CloneConfig.from_dict(files.parse_json(content, files.CONFIG)), {}, storage=storage)
        contents._read_from = hashlib.sha256(content).hexdigest()
        return contents

    def __repr__(self) -> str:
        where = f"{self.repo_id}@{self.revision}" if self.revision else self.repo_id
        origin = self.config.source.hub_id or self.config.source.architecture
        return f"{type(self).__name__}({', '.join(self.labels)} of {origin}, from {where or 'memory'})"

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the cloned classes, in the order of their logits."""
        return self.config.labels

    @property
    def repo_id(self) -> str | None:
        """Where it came from: a Hub id, a folder, or None for one just learned."""
        return self.storage.name

    @property
    def revision(self) -> str | None:
        """The commit it was read at, when it came from the Hub."""
        return self.storage.revision

    @property
    def origin(self) -> str | Path | None:
        """The Hub id, or the folder as an absolute path, that it was read from."""
        return self.storage.origin

    @property
    def recorded(self) -> dict[str, str]:
        """sha256 by name, as the configuration records them."""
        return self.config.files

    @property
    def digests(self) -> dict[str, str]:
        """sha256 by name of every file but the card, as they were when config.json, which records the others, was read.

        Raises:
            CloneNotFoundError: the clone was not read from files.
        """
        if not self._read_from:
            raise CloneNotFoundError("this clone was made without it; save it, and read it again", file=files.CONFIG)
        return {files.CONFIG: self._read_from, **self.recorded}

    def adapter(self, name: str) -> AdapterConfig:
        """The adapter called ``name``.

        Raises:
            CloneNotFoundError: there is none.
        """
        adapters = {adapter.name: adapter for adapter in self.config.adapters}
        if name not in adapters:
            reason = f"it has no adapter {name!r}; its adapters are {', '.join(adapters)}"
            raise CloneNotFoundError(reason, repo_id=self.repo_id, revision=self.revision)
        return adapters[name]

    def build(self, adapter: AdapterConfig, given: Preprocess) -> tuple[CloneModule, Gate]:
        """The module and gate for one of ``config.adapters``, frozen and in eval mode, sharing the tensors in memory.

        ``given`` is the image convention of the target (used by an adapter at the input).

        Raises:
            MalformedArtifactError: the files do not hold exactly the tensors that the configuration implies.
        """
        with self._located():
            return assemble(self.config, adapter, given, self.read)

    def outline(self, adapter: AdapterConfig, given: Preprocess) -> Outline:
        """What ``build`` gives, without fetching weights that are still on the Hub.

        Of such a file everything is checked that ``build`` checks, but for the numbers: its sha256 is what the Hub says of
        it, and whether they are finite is not known. Files that are on this machine are read as they always are.

        Raises:
            CloneNotFoundError: there is no such file.
            MalformedArtifactError: a file does not hold exactly the tensors that the configuration implies.
            HubError: the Hub did not answer.
        """
        sizes: dict[str, int] = {}
        absent: dict[str, int] = {}

        def read(file: str, expected: dict[str, files.TensorSpec]) -> dict[str, Tensor]:
            if file in self.tensors or self.storage.holds(file):
                tensors = self.read(file, expected)
                sizes[file] = self.nbytes(file) if self.origin is None else self.storage.header(file).size
                return tensors
            header = self.storage.header(file, self._digest(file))
            header.check(expected)
            sizes[file] = absent[file] = header.size
            return files.without_memory(expected)

        with self._located():
            module, gate = assemble(self.config, adapter, given, read)
        return Outline(module, gate, sum(sizes.values()), sum(absent.values()))

    def probe(self, adapter: AdapterConfig) -> dict[str, Tensor]:
        """The shipped input of ``adapter`` and what is expected of it, as ``pnc_hub.artifact.probe`` describes them."""
        with self._located():
            tensors = self.tensors.get(files.PROBE)
            if tensors is None:
                path = self.storage.path(files.PROBE, self.recorded.get(files.PROBE), files.MAX_PROBE_BYTES)
                expected = probe.expected(self.config, files.read_header(path, files.PROBE).tensors)
                tensors = self.read(files.PROBE, expected)
        prefix = f"{adapter.name}/"
        return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

    @torch.inference_mode()
    def run_probe(self, adapter: AdapterConfig) -> float:
        """Run the probe's feature through the clone's module.

        Returns:
            By how much its logits miss those expected, at most.

        Raises:
            ProbeError: by more than the artifact's tolerance.
        """
        shipped, tolerance = self.probe(adapter), self.config.probe
        difference = (self._answer(adapter, shipped) - shipped["logits"]).abs()
        if not bool((difference <= tolerance.atol + tolerance.rtol * shipped["logits"].abs()).all()):
            raise ProbeError(
                f"adapter {adapter.name!r} misses its probe by {difference.max():.3g}, more than the artifact allows;"
                " it was made with another version of timm or torch: ask its publisher to save it again"
            )
        return float(difference.max())

    @torch.inference_mode()
    def refresh_probe(self, adapter: AdapterConfig) -> None:
        """Let the probe of ``adapter`` expect what the clone, all of it in memory, answers now."""
        shipped = self.probe(adapter)
        shipped["logits"].copy_(self._answer(adapter, shipped))

    def _answer(self, adapter: AdapterConfig, shipped: dict[str, Tensor]) -> Tensor:
        module, _ = self.build(adapter, self.config.preprocess)
        logits: Tensor = module(shipped["feature"]).logits
        return logits

    def read(self, file: str, expected: dict[str, files.TensorSpec]) -> dict[str, Tensor]:
        """The tensors of ``file``, which are exactly the ``expected``; they stay in memory.

        Raises:
            CloneNotFoundError: there is no such file.
            IntegrityError: its sha256 is not the recorded one.
            MalformedArtifactError: anything else is not as expected.
        """
        if file not in self.tensors:
            path = self.storage.path(file, self.recorded.get(file), files.most_bytes(expected))
            self.tensors[file] = files.read_tensors(path, expected, self._digest(file), file)
        return self.tensors[file]

    def load(self) -> None:
        """Have every file's tensors in memory, each verified, so that the artifact can be written again."""
        for adapter in self.config.adapters:
            self.build(adapter, self.config.preprocess)
            self.probe(adapter)

    def nbytes(self, *names: str) -> int:
        """Bytes of the tensors in the files of these names that are in memory."""
        return sum(tensor.nbytes for name in names for tensor in self.tensors.get(name, {}).values())

    def all_tensors(self) -> dict[str, dict[str, Tensor]]:
        """Copies of all tensors, by file and name, each file verified."""
        self.load()
        return {file: {name: value.clone() for name, value in of.items()} for file, of in self.tensors.items()}

    def serialized(self, kept: Container[str] = ()) -> tuple[CloneConfig, dict[str, bytes]]:
        """What is written of it: the files of the tensors in memory, and the configuration that records their sha256.

        Args:
            kept: files that are not in memory and stay recorded, because they are where the others go already.

        Returns:
            That configuration, and the content of each file by name, ``config.json`` among them. Nothing is changed.
        """
        written = {file: files.tensor_bytes(tensors) for file, tensors in self.tensors.items()}
        digests = {file: digest for file, digest in self.recorded.items() if file in kept}
        digests |= {file: hashlib.sha256(content).hexdigest() for file, content in written.items()}
        config = replace(self.config, files=dict(sorted(digests.items())))
        return config, {**written, files.CONFIG: files.json_bytes(config.to_dict())}

    def _digest(self, file: str) -> str:
        digest = self.recorded.get(file)
        if not digest:
            raise MalformedArtifactError("the configuration records no sha256 for it", file=file)
        return digest

    def _located(self) -> AbstractContextManager[None]:
        """Errors from within say which artifact they are about."""
        return located(repo_id=self.repo_id, revision=self.revision)
