"""``check``: would a clone attach to a model, how, and at what cost? Told without its weights, by the code that attaches."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pnc_hub.attachment.plan import Plan, Target
from pnc_hub.errors import ClassCollisionError, HubError, PncHubError
from pnc_hub.hub.clone import Clone, open_clone
from pnc_hub.hub.lock import Lock
from pnc_hub.models.cost import macs, parameters
from pnc_hub.models.insertion import INPUT, empty
from pnc_hub.report.rows import PORTED_ROWS, ROWS, listed, rows_of, shown


@dataclass
class Compatibility:
    """Whether and how a clone would attach to a model. None stands for what was not examined because an earlier step failed.

    Attributes:
        labels: the classes that the clone adds.
        repo_id: where the clone is: a Hub id, a folder, or None.
        revision: the commit that was looked at.
        problem: the error that ``attach`` would raise, or None.
        adapter: name of the adapter that would be used.
        universal: whether that is the one that attaches at the input of any model.
        insertion: the model's module that would be read (``"input"`` for the image itself).
        others: why not, for each of the other adapters, by name.
        warnings: what ``attach`` would warn of.
        collisions: those of the labels that the model, or a clone attached to it, already has.
        bytes: size of the files that would be read.
        download: how much of that is not on this machine yet.
        parameters: numbers in the module and gate.
        macs: multiply-accumulates that the module adds per image.
        metrics: what was measured when the adapter was made, by the names of ``pnc_hub.report.Report``.
    """

    labels: tuple[str, ...]
    repo_id: str | None = None
    revision: str | None = None
    problem: PncHubError | None = None
    adapter: str | None = None
    universal: bool | None = None
    insertion: str | None = None
    others: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    collisions: tuple[str, ...] = ()
    bytes: int | None = None
    download: int | None = None
    parameters: int | None = None
    macs: int | None = None
    metrics: dict[str, Any] = field(default_factory=dict)

    @property
    def attaches(self) -> bool:
        """Whether ``attach`` would succeed."""
        return self.problem is None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as written to JSON."""
        problem = self.problem and {"type": type(self.problem).__name__, "message": str(self.problem)}
        return {"attaches": self.attaches, **vars(self), "problem": problem}

    def __str__(self) -> str:
        name = f"{self.repo_id}@{self.revision}" if self.revision else self.repo_id or "the clone"
        verdict = f"no: {type(self.problem).__name__}: {self.problem}" if self.problem else "yes"
        rows = {
            "attaches": verdict,
            "adds": f"{len(self.labels)} classes: {', '.join(self.labels)}",
            "adapter": self.adapter,
            "reads the model at": self.insertion,
            "bytes to download": self.download is not None and f"{self.download:,} of {self.bytes:,}",
            "parameters": self.parameters and f"{self.parameters:,}",
            "multiply-accumulates per image": self.macs and f"{self.macs:,}",
            "classes that are there already": ", ".join(self.collisions),
        }
        measured = [row for row in rows_of(self.metrics, _MEASURED) if row[0] in self.metrics]
        more = [(text, shown(self.metrics[key], kind)) for key, text, kind in measured]
        more += [(f"not {name}", reason) for name, reason in self.others.items()]
        more += [("warning", text) for text in self.warnings]
        lines = [(text, value) for text, value in [*rows.items(), *more] if value]
        return listed(name, lines)


# Sizes and the insertion point are worked out here; only accuracies are taken from the artifact.
_ROWS = {row[0]: row for row in (*PORTED_ROWS, *ROWS)}
_MEASURED = tuple(row for row in _ROWS.values() if row[2] == "percent" or row[0] == "auroc")


def check(
    model: nn.Module,
    clone: str | Path | Clone,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    lock: Lock | None = None,
) -> Compatibility:
    """Find out whether ``attach(model, clone)`` would succeed; no weights are downloaded, the model is only read.

    Adapter, classes and structure are settled by the code that attaches, from ``config.json``, the headers of the weight
    files and the sha256 that the Hub knows of them. Numbers that are still on the Hub are not looked at: a file whose sha256
    is as recorded can hold NaN, which ``attach`` refuses. Files that are on this machine are read.

    Args:
        model: the timm classifier that the clone is meant for, with its weights.
        clone: ``"user/name"``, ``"user/name@revision"``, a local folder, or a ``Clone``.
        revision: branch, tag or commit sha on the Hub.
        token: Hub token.
        cache_dir: the Hub client's cache.
        local_files_only: do not ask the Hub.
        lock: as for ``attach``.

    Returns:
        The answer; ``.attaches`` is yes or no, ``.problem`` the error that ``attach`` would raise.

    Raises:
        ArtifactError: there is no clone to check: it was not found, is not the locked one, or its configuration is not valid.
        HubError: the Hub did not answer.

    Example:
        >>> import pnc_hub, timm
        >>> model = timm.create_model("resnet18").eval()
        >>> print(pnc_hub.check(model, "user/clone-birds"))  # doctest: +SKIP
    """
    clone = open_clone(
        clone, revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only, lock=lock
    )
    result = Compatibility(clone.labels, clone.repo_id, clone.revision)
    try:
        _examine(model, clone, result)
    except HubError:
        raise
    except PncHubError as error:
        result.problem = result.problem or error
    return result


def _examine(model: nn.Module, clone: Clone, result: Compatibility) -> None:
    """Plan as ``attach`` does; ``result`` holds what has been settled when an error ends it."""
    target = Target(model)
    result.others = target.reasons(clone)
    plan = target.plan(clone)
    adapter = plan.adapter
    del result.others[adapter.name]
    result.adapter, result.universal, result.insertion = adapter.name, adapter.target is None, adapter.insertion.name
    result.metrics, result.warnings, result.collisions = dict(adapter.metrics), plan.warnings, tuple(plan.collisions)
    try:
        plan.refuse_collisions()
    except ClassCollisionError as error:  # one that may be allowed: the rest is of interest all the same
        result.problem = error
    with ThreadPoolExecutor(1) as pool:  # inference mode and the like are the caller's alone
        pool.submit(_measure, plan, clone, result).result()


def _measure(plan: Plan, clone: Clone, result: Compatibility) -> None:
    """Put the clone together from headers, and count."""
    outline = clone.outline(plan.adapter, plan.given)
    if not outline.download:  # numbers that are here may be beyond the model's precision
        outline.module.to(plan.dtype)
    module, insertion = outline.module.to("meta", torch.float32), plan.adapter.insertion
    image = torch.empty(1, *plan.given.input_size, device="meta")
    result.bytes, result.download = outline.bytes, outline.download
    result.parameters = parameters(module) + parameters(outline.gate)
    result.macs = macs(module, image if insertion.name == INPUT else empty(insertion, device="meta"))
