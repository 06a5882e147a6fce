"""``Clone``: the artifact in memory, in a folder, on the Hub."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pnc_hub import files
from pnc_hub.config import AdapterConfig, CloneConfig
from pnc_hub.errors import (
    ArtifactError,
    CloneNotFoundError,
    InsertionPointError,
    MalformedArtifactError,
    ProbeError,
    PublishError,
    SourceError,
)
from pnc_hub.module import Adapter, CloneModule, Gate, Source, empty, put_tensors, shrink, tensors_of
from pnc_hub.points import INPUT
from pnc_hub.preprocess import Preprocess, Reprocess

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

    from pnc_hub.report import Report


class Clone:
    """What a source knows about some classes, ready to be attached to a target.

    Attributes:
        config: the parsed ``config.json``.
        repo_id: where it came from: a Hub id, a folder, or None for one just learned.
        revision: the commit it was read at, when it came from the Hub.
    """

    def __init__(
        self,
        config: CloneConfig,
        tensors: dict[str, dict[str, Tensor]],
        *,
        locate: Callable[[str], Path] | None = None,
        repo_id: str | None = None,
        revision: str | None = None,
    ) -> None:
        """Made by ``pnc_hub.clone`` or ``Clone.from_pretrained``, not by hand.

        Args:
            config: the configuration.
            tensors: tensors by name, by file; files that are not here are read through ``locate`` when needed.
            locate: file name -> path of a verified or still to be verified local copy.
            repo_id: where it came from, for messages.
            revision: commit it was read at.
        """
        self.config, self.repo_id, self.revision = config, repo_id, revision
        self._tensors, self._locate = tensors, locate

    def __repr__(self) -> str:
        where = f"{self.repo_id}@{self.revision}" if self.revision else self.repo_id
        source = self.config.source
        return f"Clone({', '.join(self.labels)} of {source.hub_id or source.architecture}, from {where or 'memory'})"

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the cloned classes, in the order of their logits."""
        return self.config.labels

    @property
    def report(self) -> Report:
        """What was measured when the clone was learned, for the first target that it was made for."""
        from pnc_hub.report import Report

        return Report.of(self)

    @classmethod
    def from_pretrained(
        cls,
        id_or_folder: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
    ) -> Clone:
        """Read a clone from the Hub or from a folder; weights are read when they are first needed.

        Args:
            id_or_folder: ``"user/name"``, ``"user/name@revision"`` or a folder that ``save_pretrained`` wrote.
            revision: branch, tag or commit sha on the Hub.
            token: Hub token; by default the one that is stored on this machine.
            cache_dir: where the Hub client keeps its files.
            local_files_only: use the cache alone.
            force_download: fetch again what is in the cache.

        Raises:
            CloneNotFoundError: no such repository, revision, folder or file.
            FormatVersionError: written in a format that this version does not read.
            MalformedArtifactError: a file is damaged or not a clone's.
        """
        from pnc_hub import hub

        name, at = hub.split_revision(str(id_or_folder), revision)
        folder = Path(id_or_folder)
        locate: Callable[[str], Path]
        if folder.is_dir():
            locate, commit, name = hub.FolderFiles(folder), None, str(folder)
        elif hub.is_repo_id(name):
            locate = hub.HubFiles(
                name,
                at,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                force_download=force_download,
            )
            commit = locate.commit
        else:
            raise CloneNotFoundError(
                "no such folder, and not a Hub id. Valid are: 1. a folder that save_pretrained wrote; 2. 'user/name';"
                f" 3. 'user/name@revision'. Received: {str(id_or_folder)!r}",
                repo_id=str(id_or_folder),
            )
        try:
            config = CloneConfig.from_dict(files.read_json(locate(files.CONFIG)))
        except ArtifactError as error:
            error.file = error.file or files.CONFIG
            raise error.at(repo_id=name, revision=commit or at) from None
        return cls(config, {}, locate=locate, repo_id=name, revision=commit)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the artifact's files to ``folder``: all of them, or none.

        Raises:
            PublishError: ``folder`` holds other files than a clone's, or can not be written.
        """
        folder = Path(folder).absolute()
        if folder.exists() and not (folder.is_dir() and _is_replaceable(folder)):
            raise PublishError(f"{folder} holds something else than a clone; choose a new or empty folder")
        self._load_all()
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            new, old = work / "new", work / "old"
            new.mkdir()
            self._write(new)
            if folder.exists():
                folder.rename(old)
            try:
                new.rename(folder)
            except BaseException:
                if old.exists() and not folder.exists():
                    old.rename(folder)
                raise
        finally:
            shutil.rmtree(work, ignore_errors=True)
        return folder

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        commit_message: str | None = None,
    ) -> CommitInfo:
        """Publish the clone as one commit of a Hub model repository, which is created if it is not there.

        Args:
            repo_id: ``"user/name"``.
            private: visibility of a repository that is created.
            token: Hub token; by default the one that is stored on this machine.
            revision: branch to commit to.
            create_pr: open a pull request instead of committing.
            commit_message: the commit's title.

        Returns:
            What huggingface_hub says of the commit; ``.oid`` is the sha to pin.
        """
        from pnc_hub import hub

        with tempfile.TemporaryDirectory() as folder:
            saved = self.save_pretrained(Path(folder) / "clone")
            return hub.push(
                saved,
                repo_id,
                private=private,
                token=token,
                revision=revision,
                create_pr=create_pr,
                commit_message=commit_message or f"Add clone of {', '.join(self.labels)[:60]}",
            )

    def adapter(self, name: str) -> AdapterConfig:
        """The adapter called ``name``."""
        return next(adapter for adapter in self.config.adapters if adapter.name == name)

    def build(self, adapter: AdapterConfig, given: Preprocess) -> tuple[CloneModule, Gate]:
        """The module and gate for one adapter, frozen and in eval mode, sharing this clone's tensors.

        Args:
            adapter: one of ``config.adapters``.
            given: image convention of the target (used by an adapter at the input).

        Raises:
            MalformedArtifactError: the files do not hold exactly the tensors that the configuration implies.
        """
        try:
            return self._build(adapter, given)
        except ArtifactError as error:
            raise error.at(repo_id=self.repo_id, revision=self.revision) from None

    def _build(self, adapter: AdapterConfig, given: Preprocess) -> tuple[CloneModule, Gate]:
        prefix, branch = self._branch
        own = nn.ModuleDict({"gate": Gate(branch["head"].in_features, device="meta")})
        at_input = adapter.insertion.module == INPUT
        first: nn.Module = prefix
        if not at_input:
            first = own["adapter"] = Adapter(adapter.insertion.point(), self._cut_point, device="meta")
        self._dry_run(CloneModule(first, branch["tail"], branch["head"], len(self.labels)), adapter)
        self._fill(branch, files.WEIGHTS)
        self._fill(own, adapter.file)
        if at_input:
            self._fill(nn.ModuleDict({"prefix": prefix}), files.PREFIX)
            first = nn.Sequential(Reprocess(given, self.config.preprocess.value()), prefix)
        module = CloneModule(first, branch["tail"], branch["head"], len(self.labels))
        return module.requires_grad_(False).eval(), own["gate"].requires_grad_(False).eval()

    def _dry_run(self, module: nn.Module, adapter: AdapterConfig) -> None:
        """One pass without weights or memory: shapes that do not fit together show before anything is read."""
        try:
            module.eval()(empty(adapter.insertion.point(), device="meta"))
        except (RuntimeError, ValueError, TypeError, AssertionError, IndexError) as error:
            reason = f"its tail does not run on what adapter {adapter.name!r} gives it ({error})"
            raise MalformedArtifactError(reason, file=files.CONFIG) from None

    @property
    def _branch(self) -> tuple[nn.Module, nn.ModuleDict]:
        """(prefix, {tail, head}) on the meta device, with the shapes that the configuration records."""
        source, config = self._source, self.config
        if max(entry.source_index for entry in config.classes) >= source.num_classes:
            raise MalformedArtifactError(
                f"a source_index is beyond the source's {source.num_classes} classes", file=files.CONFIG
            )
        prefix, tail = source.parts(config.cut.module)
        rows = len(config.classes) + (source.num_classes > len(config.classes))
        branch = nn.ModuleDict({"tail": tail, "head": nn.Linear(source.features, rows, device="meta")})
        try:
            shrink(branch, config.tail.shapes, config.tail.attributes)
        except InsertionPointError as error:
            raise MalformedArtifactError(str(error), file=files.CONFIG) from None
        return prefix, branch

    @cached_property
    def _source(self) -> Source:
        from timm.models import is_model

        named = self.config.source
        if not is_model(named.architecture):
            raise MalformedArtifactError(
                f"its source is a {named.architecture!r}, which this timm does not have; upgrade timm, or import the"
                " package that registers it",
                file=files.CONFIG,
            )
        arguments = {name: tuple(v) if isinstance(v, list) else v for name, v in named.model_args.items()}
        try:
            size = self.config.preprocess.value().input_size
            source = Source.of(named.architecture, tuple(sorted(arguments.items())), size)
            source.skeleton.point(self.config.cut.module)
        except (TypeError, ValueError, RuntimeError, AssertionError, SourceError, InsertionPointError) as error:
            raise MalformedArtifactError(
                f"its source {named.architecture!r} with {named.model_args} can not be rebuilt ({error})",
                file=files.CONFIG,
            ) from None
        return source

    @property
    def _cut_point(self) -> Any:
        return self._source.skeleton.point(self.config.cut.module)

    def _fill(self, module: nn.Module, file: str) -> None:
        put_tensors(module, self._read(file, tensors_of(module)))

    def _read(self, file: str, like: dict[str, Tensor]) -> dict[str, Tensor]:
        if file not in self._tensors:
            if self._locate is None:
                raise CloneNotFoundError("this clone was made without it", file=file)
            expected = files.specs(like.items())
            self._tensors[file] = files.read_tensors(self._locate(file), expected, self._digest(file), file)
        return self._tensors[file]

    def _digest(self, file: str) -> str:
        recorded = {adapter.file: adapter.sha256 for adapter in self.config.adapters}
        recorded.update(self.config.files)
        if not recorded.get(file):
            raise MalformedArtifactError("the configuration records no sha256 for it", file=file)
        return recorded[file]

    def probe(self, adapter: AdapterConfig) -> dict[str, Tensor]:
        """The shipped input of ``adapter`` and its expected output: ``image``, ``feature``, ``logits`` (raw, [B, K])."""
        if files.PROBE not in self._tensors:
            self._load_probe()
        prefix = f"{adapter.name}/"
        return {
            name.removeprefix(prefix): tensor
            for name, tensor in self._tensors[files.PROBE].items()
            if name.startswith(prefix)
        }

    def run_probe(self, adapter: AdapterConfig) -> float:
        """Run the shipped input through the module; returns by how much its logits miss those expected, at most.

        Raises:
            ProbeError: by more than the artifact's tolerance.
        """
        probe, given = self.probe(adapter), self.config.preprocess.value()
        module, _ = self.build(adapter, given)
        with torch.inference_mode():
            logits = module(probe["feature"])[0]
        difference = (logits - probe["logits"]).abs()
        allowed = self.config.probe.atol + self.config.probe.rtol * probe["logits"].abs()
        if not bool((difference <= allowed).all()):
            raise ProbeError(
                f"adapter {adapter.name!r} misses its probe by {difference.max():.3g}, more than the artifact allows;"
                " it was made with another version of timm or torch: ask its publisher to save it again"
            )
        return float(difference.max())

    def _load_probe(self) -> None:
        if self._locate is None:
            raise CloneNotFoundError("this clone was made without it", file=files.PROBE)
        path = self._locate(files.PROBE)
        found = files.read_header(path, files.PROBE)
        for adapter in self.config.adapters:
            feature = found.get(f"{adapter.name}/feature")
            wanted = tuple(empty(adapter.insertion.point(), device="meta").shape)
            logits = found.get(f"{adapter.name}/logits")
            if feature is None or feature.shape[1:] != wanted[1:] or logits is None:
                raise MalformedArtifactError(f"it holds no probe for adapter {adapter.name!r}", file=files.PROBE)
            if logits.shape != (feature.shape[0], len(self.labels)) or not 1 <= feature.shape[0] <= 16:
                raise MalformedArtifactError(f"the probe of {adapter.name!r} has the wrong shape", file=files.PROBE)
        self._tensors[files.PROBE] = files.read_tensors(path, found, self._digest(files.PROBE), files.PROBE)

    def _load_all(self) -> None:
        """Have every file's tensors in memory, each verified, so that the artifact can be written again."""
        for adapter in self.config.adapters:
            target = Preprocess.of(nn.Module())
            self.build(adapter, target)
            self.probe(adapter)

    def _write(self, folder: Path) -> None:
        from pnc_hub import card

        for file, tensors in self._tensors.items():
            files.write_tensors(folder / file, tensors)
        for adapter in self.config.adapters:
            adapter.sha256 = files.sha256(folder / adapter.file)
        shared = [file for file in self._tensors if not file.startswith("adapters/")]
        self.config.files = {file: files.sha256(folder / file) for file in sorted(shared)}
        files.write_json(folder / files.CONFIG, self.config.to_dict())
        (folder / files.CARD).write_text(card.render(self), encoding="utf-8")


def _is_replaceable(folder: Path) -> bool:
    """Empty, or a clone and nothing else."""
    entries = {path.name for path in folder.iterdir()}
    known = {files.CONFIG, files.WEIGHTS, files.PREFIX, files.PROBE, files.CARD, "adapters", "figures"}
    return not entries or (files.CONFIG in entries and entries <= known)
