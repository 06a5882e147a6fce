"""``verify``: is an artifact whole, and does it compute what it says? Found out without any model of the user's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from pnc_hub.artifact import files
from pnc_hub.artifact.assembly import assemble
from pnc_hub.artifact.config import AdapterConfig
from pnc_hub.errors import ArtifactError, HubError, ProbeError
from pnc_hub.hub.clone import Clone, open_clone
from pnc_hub.hub.lock import Lock
from pnc_hub.models.insertion import INPUT

OK, FAILED, UNCHECKED = "ok", "FAILED", "not checked"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: ``outcome`` is ``"ok"``, ``"FAILED"`` or ``"not checked"``, ``detail`` why."""

    subject: str
    outcome: str
    detail: str


@dataclass(frozen=True)
class Verification:
    """What ``verify`` has found, in the order in which it looked.

    Attributes:
        repo_id: the Hub id or the folder.
        revision: the commit, of a clone on the Hub.
        findings: one per file and per adapter, and what could not be checked.
    """

    repo_id: str | None
    revision: str | None
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing that could be checked has failed."""
        return all(finding.outcome != FAILED for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as written to JSON."""
        return {"passed": self.passed, **asdict(self)}

    def __str__(self) -> str:
        name = f"{self.repo_id}@{self.revision}" if self.revision else self.repo_id or "the clone"
        failed = sum(finding.outcome == FAILED for finding in self.findings)
        rows = (f"  {finding.outcome:<13}{finding.subject}: {finding.detail}" for finding in self.findings)
        return "\n".join([f"{name}: {f'{failed} failed' if failed else 'passed'}", *rows])


def verify(
    clone: str | Path | Clone,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    lock: Lock | None = None,
) -> Verification:
    """Check every file of an artifact, and run its probes; nothing is attached to any model.

    The configuration is parsed, the source is rebuilt from it, every file must have the sha256 that is recorded and hold
    exactly the tensors that the source then needs, all finite, and what the clone answers to each of its probes must be what
    is recorded. A damaged file does not keep the others from being checked.

    Args:
        clone: ``"user/name"``, ``"user/name@revision"``, a local folder, or a ``Clone``; all its files are downloaded.
        revision: branch, tag or commit sha on the Hub.
        token: Hub token.
        cache_dir: the Hub client's cache.
        lock: as for ``attach``.

    Raises:
        ArtifactError: there is no clone to verify: it was not found, is not the locked one, or its configuration is not valid.
        HubError: the Hub did not answer.

    Example:
        >>> from pnc_hub.hub.verification import verify
        >>> print(verify("user/clone-birds"))  # doctest: +SKIP
    """
    clone = open_clone(clone, revision=revision, token=token, cache_dir=cache_dir, lock=lock)
    config = clone.config
    described = f"{len(clone.labels)} classes of {config.source.architecture}, cut after {config.cut}"
    findings = [Finding(files.CONFIG, OK, described)]
    reader = _Reader(clone)
    wrong = [finding for adapter in config.adapters if (finding := reader.check(adapter)).outcome == FAILED]
    findings += [*reader.findings.values(), *wrong]
    if all(finding.outcome == OK for finding in findings):
        findings += [_probed(clone, adapter) for adapter in config.adapters]
    else:
        findings.append(Finding("probes", UNCHECKED, "something before has failed"))
    findings += _unchecked(clone, {files.CONFIG, *reader.findings})
    return Verification(clone.repo_id, clone.revision, tuple(findings))


class _Reader:
    """Reads the weights of a clone, and goes on where a file is damaged: with tensors that have no numbers."""

    def __init__(self, clone: Clone) -> None:
        self.clone = clone
        self.findings: dict[str, Finding] = {}

    def __call__(self, file: str, expected: dict[str, files.TensorSpec]) -> dict[str, Tensor]:
        """As the ``read`` of ``pnc_hub.artifact.assembly.assemble``."""

        def described() -> str:
            tensors = self.clone.read(file, expected)
            size = sum(tensor.nbytes for tensor in tensors.values())
            return f"{len(tensors)} tensors of {size:,} bytes, as recorded, all finite"

        finding = self.findings[file] = _found(file, described)
        return self.clone.tensors[file] if finding.outcome == OK else files.without_memory(expected)

    def check(self, adapter: AdapterConfig) -> Finding:
        """Read what ``adapter`` needs; what is found is what is wrong beyond single files."""

        def described() -> str:
            assemble(self.clone.config, adapter, self.clone.config.preprocess, self)
            return "it can be put together"

        return _found(f"adapter {adapter.name}", described)


def _found(subject: str, described: Callable[[], str]) -> Finding:
    """What ``described`` returns, or the error of the artifact that it raises; one of the Hub goes on."""
    try:
        return Finding(subject, OK, described())
    except HubError:
        raise
    except (ArtifactError, ProbeError) as error:
        return Finding(subject, FAILED, error.reason if isinstance(error, ArtifactError) else str(error))


def _probed(clone: Clone, adapter: AdapterConfig) -> Finding:
    """Run the probe through the source's layers, rebuilt: on a feature, or on images where all layers are there."""
    through = "from image to logits" if adapter.insertion.name == INPUT else "from feature to logits"
    return _found(
        f"probe of {adapter.name}", lambda: f"{through}, within {clone.run_probe(adapter):.1g} of what is recorded"
    )


def _unchecked(clone: Clone, checked: set[str]) -> Iterator[Finding]:
    """What an artifact alone cannot show."""
    for adapter in clone.config.adapters:
        if adapter.target is not None and adapter.insertion.name != INPUT:
            name = adapter.target.hub_id or adapter.target.architecture or "the target"
            yield Finding(
                f"feature of {adapter.name}",
                UNCHECKED,
                f"that {name} gives it at {adapter.insertion.name} takes that model: attach, then Attachment.verify()",
            )
    yield Finding("measurements", UNCHECKED, "accuracies and costs are what the publisher recorded")
    others = sorted(set(clone.storage.names()) - checked - {files.PROBE})
    if others:
        more = f" and {len(others) - 5} more" if len(others) > 5 else ""
        yield Finding(
            "other files", UNCHECKED, f"{', '.join(f'{name!r:.80}' for name in others[:5])}{more}: nothing reads them"
        )
