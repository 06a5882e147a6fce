"""``Clone``: the artifact in memory, in a folder, on the Hub."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pnc_hub.artifact import files, probe
from pnc_hub.artifact.assembly import assemble
from pnc_hub.artifact.config import AdapterConfig, CloneConfig
from pnc_hub.errors import ArtifactError, CloneNotFoundError, MalformedArtifactError, PublishError
from pnc_hub.hub.folder import is_replaceable, put
from pnc_hub.hub.lock import Lock, find
from pnc_hub.models.preprocess import Preprocess
from pnc_hub.module import CloneModule, Gate

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

    from pnc_hub.report import Report
    from pnc_hub.report.photos import Photo


class Clone:
    """What a source knows about some classes, ready to be attached to a target.

    Attributes:
        config: the parsed ``config.json``.
        repo_id: where it came from: a Hub id, a folder, or None for one just learned.
        revision: the commit it was read at, when it came from the Hub.
        curve: one just learned knows the places it might have been inserted at, best first: ``insertion``, ``cut``, ``match``,
            ``tar``, ``avg_u``, ``auroc`` (closed form, held-out images), ``parameters`` and ``macs`` (unpruned). Not stored.
        photos: one just learned has some images whose answer it changed, for its report. Not stored.
    """

    def __init__(
        self,
        config: CloneConfig,
        tensors: dict[str, dict[str, Tensor]],
        *,
        locate: Callable[..., Path] | None = None,
        repo_id: str | None = None,
        revision: str | None = None,
    ) -> None:
        """Made by ``pnc_hub.clone`` or ``Clone.from_pretrained``, not by hand.

        Args:
            config: the configuration.
            tensors: tensors by name, by file; files that are not here are read through ``locate`` when needed.
            locate: file name, recorded sha256 and largest size -> path of a local copy, whose content is not yet verified.
            repo_id: where it came from, for messages.
            revision: commit it was read at.
        """
        self.config, self.repo_id, self.revision = config, repo_id, revision
        self._tensors, self._locate = tensors, locate
        self._read_from = ""  # sha256 of the config.json that it was read from
        self.curve: tuple[dict[str, Any], ...] = ()
        self.photos: tuple[Photo, ...] = ()

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
        lock: Lock | None = None,
    ) -> Clone:
        """Read a clone from the Hub or from a folder; weights are read when they are first needed.

        Args:
            id_or_folder: ``"user/name"``, ``"user/name@revision"`` or a folder that ``save_pretrained`` wrote.
            revision: branch, tag, pull request (``"refs/pr/1"``) or commit sha on the Hub.
            token: Hub token; by default the one that is stored on this machine.
            cache_dir: where the Hub client keeps its files.
            local_files_only: use the cache alone.
            force_download: fetch again what is in the cache.
            lock: a file that ``pnc_hub.lock.write`` wrote, or what it holds; the commit and the files must be those in it.

        Raises:
            CloneNotFoundError: no such repository, revision, folder or file.
            LockError: the clone is not in the lock, or another one.
            FormatVersionError: written in a format that this version does not read.
            MalformedArtifactError: a file is damaged or not a clone's.
        """
        from pnc_hub.hub import download

        name, at = download.split_revision(str(id_or_folder), revision)
        folder = Path(str(id_or_folder))
        locate: download.FolderFiles | download.HubFiles
        is_folder = os.path.isdir(folder)  # Path.is_dir raises where it may not look, or where the name is too long
        if is_folder:
            name = str(folder)
        pin = None if lock is None else find(lock, folder if is_folder else name)
        if is_folder:
            locate, commit = download.FolderFiles(folder.resolve()), None
        elif download.is_repo_id(name):
            locate = download.HubFiles(
                name,
                pin.resolve(at) if pin else at,
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
            content = files.read_small(locate(files.CONFIG, None), files.CONFIG)
            config = CloneConfig.from_dict(files.parse_json(content, files.CONFIG))
        except ArtifactError as error:
            error.file = error.file or files.CONFIG
            raise error.at(repo_id=name, revision=commit or at) from None
        clone = cls(config, {}, locate=locate, repo_id=name, revision=commit)
        clone._read_from = hashlib.sha256(content).hexdigest()
        if pin:
            pin.check(clone)
        return clone

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the artifact's files to ``folder``: all of them, or none.

        Raises:
            PublishError: ``folder`` holds other files than a clone's, or can not be written.
        """
        folder = Path(folder).resolve()
        self._load_all()
        try:
            if folder.exists() and not is_replaceable(folder):
                raise PublishError(f"{folder} holds something else than a clone; choose a new or empty folder")
            put(folder, self.write_files)
        except OSError as error:
            raise PublishError(f"the clone can not be written to {folder} ({error}); nothing was changed") from error
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
        datasets: Sequence[str] | None = None,
    ) -> CommitInfo:
        """Publish the clone as one commit of a Hub model repository, which is created if it is not there.

        Where the repository holds the same module already, its adapters for other targets stay, and only what is new is
        uploaded; a clone of another module takes the place of the one that is there. Content that is there already makes
        no commit. What others publish at the same moment is not lost: either both are in, or this one is refused.

        Args:
            repo_id: ``"user/name"``.
            private: visibility of a repository that is created.
            token: Hub token; by default the one that is stored on this machine.
            revision: branch to commit to, which must be there.
            create_pr: open a pull request instead of committing.
            commit_message: the commit's title.
            datasets: what the source was trained on, as you name it; Hub ids (``user/name``) are linked from the page.

        Returns:
            What huggingface_hub says of the commit; ``.oid`` is the sha to pin.

        Raises:
            PublishError: the Hub refused or failed, another publisher came first with something else, or the repository
                holds another library's model; what it holds is complete.
        """
        from pnc_hub.hub import card, publishing

        if datasets:
            card.name_datasets(self, datasets)
        return publishing.push(
            self,
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
        """The shipped input of ``adapter`` and what is expected of it, as ``pnc_hub.artifact.probe`` describes them."""
        with self._named():
            tensors = self._tensors.get(files.PROBE)
            if tensors is None:
                found = files.read_header(self._path(files.PROBE, files.MAX_PROBE_BYTES), files.PROBE)
                tensors = self._read(files.PROBE, probe.expected(self.config, found))
        prefix = f"{adapter.name}/"
        return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

    def _read(self, file: str, expected: dict[str, files.TensorSpec]) -> dict[str, Tensor]:
        if file not in self._tensors:
            self._tensors[file] = files.read_tensors(
                self._path(file, files.most_bytes(expected)), expected, self._digest(file), file
            )
        return self._tensors[file]

    def _path(self, file: str, most: int = files.MAX_FILE_BYTES) -> Path:
        if self._locate is None:
            raise CloneNotFoundError("this clone was made without it", file=file)
        return self._locate(file, self.recorded.get(file), most)

    @property
    def recorded(self) -> dict[str, str]:
        """sha256 by name, as the configuration records them."""
        return {**{adapter.file: adapter.sha256 for adapter in self.config.adapters}, **self.config.files}

    @property
    def origin(self) -> str | Path | None:
        """The Hub id or the folder that it was read from."""
        from pnc_hub.hub import download

        return self._locate.folder if isinstance(self._locate, download.FolderFiles) else self.repo_id

    @property
    def digests(self) -> dict[str, str]:
        """sha256 by name of every file but the card, as they were when config.json, which records the others, was read.

        Raises:
            CloneNotFoundError: the clone was not read from files.
        """
        if not self._read_from:
            raise CloneNotFoundError("this clone was made without it; save it, and read it again", file=files.CONFIG)
        return {files.CONFIG: self._read_from, **self.recorded}

    def _digest(self, file: str) -> str:
        digest = self.recorded.get(file)
        if not digest:
            raise MalformedArtifactError("the configuration records no sha256 for it", file=file)
        return digest

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

    def write_files(self, folder: Path, kept: Container[str] = (), repo_id: str | None = None) -> list[str]:
        """Write to ``folder`` the files whose tensors are in memory, the configuration, the card and its figures.

        Args:
            folder: where to.
            kept: files that are not in memory and stay recorded, because they are where the others go already.
            repo_id: where they go, for the card.

        Returns:
            The names of what was written.
        """
        from pnc_hub.hub import card
        from pnc_hub.report import figures

        for file, tensors in self._tensors.items():
            files.write_tensors(folder / file, tensors)
        for adapter in self.config.adapters:
            if adapter.file in self._tensors:
                adapter.sha256 = files.sha256(folder / adapter.file)
        shared = {file: digest for file, digest in self.config.files.items() if file in kept}
        shared |= {file: files.sha256(folder / file) for file in self._tensors if not file.startswith("adapters/")}
        self.config.files = dict(sorted(shared.items()))
        files.write_json(folder / files.CONFIG, self.config.to_dict())
        (folder / files.CARD).write_text(card.render(self, repo_id), encoding="utf-8")
        drawn = figures.draw(self)
        for file, content in drawn.items():
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / file).write_bytes(content)
        return [*self._tensors, files.CONFIG, files.CARD, *drawn]


def open_clone(clone: str | Path | Clone, *, lock: Lock | None = None, **options: Any) -> Clone:
    """``clone`` itself, or what ``Clone.from_pretrained`` reads; either must be in ``lock``, if one is given."""
    if not isinstance(clone, Clone):
        return Clone.from_pretrained(clone, lock=lock, **options)
    if lock is not None:
        find(lock, clone.origin).check(clone)
    return clone
