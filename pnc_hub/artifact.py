"""``Clone``: the artifact in memory, in a folder, on the Hub."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pnc_hub import files, probe
from pnc_hub.assembly import assemble
from pnc_hub.config import LIBRARY_NAME, AdapterConfig, CloneConfig
from pnc_hub.errors import ArtifactError, CloneNotFoundError, MalformedArtifactError, PublishError
from pnc_hub.module import CloneModule, Gate
from pnc_hub.preprocess import Preprocess

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

    from pnc_hub.report import Report


class Clone:
    """What a source knows about some classes, ready to be attached to a target.

    Attributes:
        config: the parsed ``config.json``.
        repo_id: where it came from: a Hub id, a folder, or None for one just learned.
        revision: the commit it was read at, when it came from the Hub.
        curve: one just learned knows the places it might have been inserted at, best first: ``insertion``, ``cut``, ``match``,
            ``tar``, ``avg_u``, ``auroc`` (closed form, held-out images), ``parameters`` and ``macs`` (unpruned). Not stored.
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
            locate: file name -> path of a local copy, not yet verified.
            repo_id: where it came from, for messages.
            revision: commit it was read at.
        """
        self.config, self.repo_id, self.revision = config, repo_id, revision
        self._tensors, self._locate = tensors, locate
        self.curve: tuple[dict[str, Any], ...] = ()

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
        folder = Path(str(id_or_folder))
        locate: Callable[[str], Path]
        if folder.is_dir():
            locate, commit, name = hub.FolderFiles(folder.resolve()), None, str(folder)
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
            config = CloneConfig.from_dict(files.read_json(locate(files.CONFIG), files.CONFIG))
        except ArtifactError as error:
            error.file = error.file or files.CONFIG
            raise error.at(repo_id=name, revision=commit or at) from None
        return cls(config, {}, locate=locate, repo_id=name, revision=commit)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the artifact's files to ``folder``: all of them, or none.

        Raises:
            PublishError: ``folder`` holds other files than a clone's, or can not be written.
        """
        folder = Path(folder).resolve()
        self._load_all()
        try:
            if folder.exists() and not _is_replaceable(folder):
                raise PublishError(f"{folder} holds something else than a clone; choose a new or empty folder")
            self._put(folder)
        except OSError as error:
            raise PublishError(f"the clone can not be written to {folder} ({error}); nothing was changed") from error
        return folder

    def _put(self, folder: Path) -> None:
        """Write beside ``folder``, then take its place; whatever interrupts it, what was there before is there again."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        new, old = work / "new", work / "old"
        try:
            new.mkdir()
            self._write(new)
            try:
                if folder.exists():
                    folder.rename(old)
                new.rename(folder)
            except BaseException:
                if old.exists() and not folder.exists():
                    old.rename(folder)
                raise
        finally:
            shutil.rmtree(work, ignore_errors=True)

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
        """The module and gate for one adapter, frozen and in eval mode, sharing this clone's tensors.

        Args:
            adapter: one of ``config.adapters``.
            given: image convention of the target (used by an adapter at the input).

        Raises:
            MalformedArtifactError: the files do not hold exactly the tensors that the configuration implies.
        """
        with self._named():
            return assemble(self.config, adapter, given, self._read)

    def probe(self, adapter: AdapterConfig) -> dict[str, Tensor]:
        """The shipped input of ``adapter`` and what is expected of it, as ``pnc_hub.probe`` describes them."""
        with self._named():
            tensors = self._tensors.get(files.PROBE)
            if tensors is None:
                found = files.read_header(self._path(files.PROBE), files.PROBE)
                tensors = self._read(files.PROBE, probe.expected(self.config, found))
        prefix = f"{adapter.name}/"
        return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

    def _read(self, file: str, expected: dict[str, files.TensorSpec]) -> dict[str, Tensor]:
        if file not in self._tensors:
            self._tensors[file] = files.read_tensors(self._path(file), expected, self._digest(file), file)
        return self._tensors[file]

    def _path(self, file: str) -> Path:
        if self._locate is None:
            raise CloneNotFoundError("this clone was made without it", file=file)
        return self._locate(file)

    def _digest(self, file: str) -> str:
        recorded = {adapter.file: adapter.sha256 for adapter in self.config.adapters}
        recorded.update(self.config.files)
        if not recorded.get(file):
            raise MalformedArtifactError("the configuration records no sha256 for it", file=file)
        return recorded[file]

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Errors from within say which clone they are about."""
        try:
            yield
        except ArtifactError as error:
            raise error.at(repo_id=self.repo_id, revision=self.revision) from error.__cause__

    def nbytes(self, *names: str) -> int:
        """Bytes of the tensors in the files of these names that are in memory."""
        return sum(tensor.nbytes for name in names for tensor in self._tensors.get(name, {}).values())

    def all_tensors(self) -> dict[str, dict[str, Tensor]]:
        """Copies of all tensors, by file and name, each file verified."""
        self._load_all()
        return {file: {name: value.clone() for name, value in of.items()} for file, of in self._tensors.items()}

    def _load_all(self) -> None:
        """Have every file's tensors in memory, each verified, so that the artifact can be written again."""
        for adapter in self.config.adapters:
            self.build(adapter, self.config.preprocess.value())
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
    """Empty, or a clone and nothing else: saving removes what was there."""
    paths = [path.relative_to(folder).as_posix() for path in folder.rglob("*")] if folder.is_dir() else [""]
    if not paths:
        return True
    try:
        config = files.read_json(folder / files.CONFIG, files.CONFIG)
    except ArtifactError:
        return False
    return all(map(files.is_ours, paths)) and isinstance(config, dict) and config.get("library_name") == LIBRARY_NAME
