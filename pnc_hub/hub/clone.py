"""``Clone``: the artifact as it comes and goes: learned, in a folder, on the Hub."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pnc_hub.artifact.contents import Contents
from pnc_hub.artifact.storage import Folder, Storage, is_replaceable, put
from pnc_hub.errors import CloneNotFoundError, PublishError
from pnc_hub.hub import card, download, publishing
from pnc_hub.hub.lock import Lock, find
from pnc_hub.report import Report
from pnc_hub.report.page import ShownPhoto

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo


class Clone(Contents):
    """What a source knows about some classes, ready to be attached to a target.

    Made by ``pnc_hub.clone`` or ``Clone.from_pretrained``, not by hand.

    Attributes:
        config: the parsed ``config.json``.
        curve: the candidates that learning compared, best first: ``insertion``, ``cut``, ``match``, ``tar``, ``avg_u``,
            ``auroc`` (closed form, held-out images), ``parameters`` and ``macs`` (unpruned). Empty for a clone that was read.
        photos: some images whose answer the clone changed, for its report. Empty for a clone that was read.
    """

    curve: tuple[dict[str, Any], ...] = ()
    photos: tuple[ShownPhoto, ...] = ()

    @property
    def report(self) -> Report:
        """What was measured when the clone was learned, for the first target that it was made for."""
        return Report.of(self.config, self.photos)

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
        name, at = download.split_revision(str(id_or_folder), revision)
        storage: Storage
        if os.path.isdir(id_or_folder):  # Path.is_dir raises where it may not look, or where the name is too long
            storage = Folder(id_or_folder)
            pin = None if lock is None else find(lock, storage.origin)
        elif download.is_repo_id(name):
            pin = None if lock is None else find(lock, name)
            storage = download.Hub(
                name,
                pin.resolve(at) if pin else at,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                force_download=force_download,
            )
        else:
            raise CloneNotFoundError(
                "no such folder, and not a Hub id. Valid are: 1. a folder that save_pretrained wrote; 2. 'user/name';"
                f" 3. 'user/name@revision'. Received: {str(id_or_folder)!r}",
                repo_id=str(id_or_folder),
            )
        clone = cls.open(storage)
        if pin:
            pin.check(clone)
        return clone

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the artifact's files to ``folder``: all of them, or none.

        Raises:
            PublishError: ``folder`` holds other files than a clone's, or cannot be written.
        """
        folder = Path(folder).resolve()
        self.load()
        config, written = self.serialized()
        written |= card.page(config, self.repo_id if self.revision else None)
        try:
            if folder.exists() and not is_replaceable(folder):
                raise PublishError(f"{folder} holds something else than a clone; choose a new or empty folder")
            put(folder, written)
        except OSError as error:
            raise PublishError(f"the clone cannot be written to {folder} ({error}); nothing was changed") from error
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
        config = card.with_datasets(self.config, datasets) if datasets else self.config
        clone, title = (
            Contents(config, self.tensors, storage=self.storage),
            f"Add clone of {', '.join(self.labels)[:60]}",
        )
        return publishing.push(clone, repo_id, private, token, revision, create_pr, commit_message or title)


def open_clone(clone: str | Path | Clone, *, lock: Lock | None = None, **options: Any) -> Clone:
    """``clone`` itself, or what ``Clone.from_pretrained`` reads; either must be in ``lock``, if one is given."""
    if not isinstance(clone, Clone):
        return Clone.from_pretrained(clone, lock=lock, **options)
    if lock is not None:
        find(lock, clone.origin).check(clone)
    return clone
