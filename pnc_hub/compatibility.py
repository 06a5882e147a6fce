"""``check``: would a clone attach to a model, how, and at what cost? Told without its weights, by the code that attaches."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pnc_hub import plan, report
from pnc_hub.artifact import Clone, open_clone
from pnc_hub.assembly import assemble
from pnc_hub.attachment import attachments
from pnc_hub.config import AdapterConfig, ClassConfig
from pnc_hub.errors import ClassCollisionError, HubError, PncHubError, TargetError
from pnc_hub.headers import Headers
from pnc_hub.lock import Lock
from pnc_hub.module import empty
from pnc_hub.points import INPUT
from pnc_hub.preprocess import Preprocess


@dataclass
class Compatibility:
    """Whether and how a clone would attach to a model. What was not come to, because of a problem before, is None.

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
        measured = [
            (text, report.shown(self.metrics[key], kind))
            for key, text, kind in _MEASURED.values()
            if key in self.metrics
        ]
        more = [*measured, *((f"not {name}", reason) for name, reason in self.others.items())]
        more += [("warning", text) for text in self.warnings]
        shown = [(text, value) for text, value in [*rows.items(), *more] if value]
        return "\n".join([name, *(f"  {text:<44}{value}" for text, value in shown)])


# What the size of the module and the place of the insertion are is found out, not believed.
_MEASURED = {row[0]: row for row in (*report.PORTED_ROWS, *report.ROWS) if row[2] == "percent" or row[0] == "auroc"}


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
    found = Compatibility(clone.labels, clone.repo_id, clone.revision)
    try:
        _examine(model, clone, found)
    except HubError:
        raise
    except PncHubError as error:
        found.problem = found.problem or error
    return found


def macs(predict: Callable[[torch.Tensor], object], example: torch.Tensor) -> int:
    """Multiply-accumulates of ``predict``, a module or a function, for ``example``; both may be on the meta device."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        predict(example)
    return counter.get_total_flops() // 2


def _examine(model: nn.Module, clone: Clone, found: Compatibility) -> None:
    """The steps of ``attach`` before anything is done to the model; ``found`` holds what they have come to."""
    inside = plan.unwrapped(model)
    plan.check_target(inside)
    found.others = {adapter.name: _why_not(inside, clone, adapter) for adapter in clone.config.adapters}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        adapter = plan.choose_adapter(inside, clone, "error")
    del found.others[adapter.name]
    found.warnings = tuple(str(warning.message) for warning in told)
    found.adapter, found.universal, found.insertion = adapter.name, adapter.target is None, adapter.insertion.module
    found.metrics = dict(adapter.metrics)
    try:
        plan.check_labels(inside, clone, attachments(inside))
    except ClassCollisionError as error:  # one that may be allowed: the rest is of interest all the same
        found.problem, found.collisions = error, tuple(_collisions(inside, clone))
    with ThreadPoolExecutor(1) as pool, clone._named():  # inference mode and the like are the caller's alone
        pool.submit(_measure, clone, adapter, Preprocess.of(inside), found).result()


def _measure(clone: Clone, adapter: AdapterConfig, given: Preprocess, found: Compatibility) -> None:
    """Put the clone together from headers, and count."""
    headers = Headers(clone)
    module, gate = assemble(clone.config, adapter, given, headers)
    module = module.to("meta")
    image = torch.empty(1, *given.input_size, device="meta")
    at_input = adapter.insertion.module == INPUT
    found.bytes = sum(headers.sizes.values())
    found.download = sum(headers.sizes[file] for file in headers.absent)
    found.parameters = sum(parameter.numel() for part in (module, gate) for parameter in part.parameters())
    found.macs = macs(module, image if at_input else empty(adapter.insertion.point(), device="meta"))


def _why_not(model: nn.Module, clone: Clone, adapter: AdapterConfig) -> str:
    """What would be said if the clone had no other adapter."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            plan.choose_adapter(model, _with(clone, adapters=[adapter]), "error")
    except TargetError as error:
        return str(error)
    return "it would fit too; the one that is used comes first"


def _collisions(model: nn.Module, clone: Clone) -> Iterable[str]:
    for entry in clone.config.classes:
        try:
            plan.check_labels(model, _with(clone, classes=[entry]), attachments(model))
        except ClassCollisionError:
            yield entry.label


def _with(clone: Clone, **changes: list[AdapterConfig] | list[ClassConfig]) -> Clone:
    """``clone`` with a smaller configuration; it can be asked about, not attached."""
    return Clone(replace(clone.config, **changes), {}, repo_id=clone.repo_id, revision=clone.revision)
