"""What was measured of a clone on held-out images, as a person would want to read it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pnc_hub.artifact.config import CloneConfig
from pnc_hub.report.page import ShownPhoto, render
from pnc_hub.report.rows import PORTED_ROWS, ROWS, classes, listed, number, others, written


@dataclass(frozen=True)
class Report:
    """Measurements of one clone, all on images that cloning made no choice on.

    If source or target were trained on some of these images, their own accuracies are too high.

    Attributes:
        metrics: with the target that the clone was made for: name -> value; accuracies and rates are fractions between 0 and
            1, None where there were no images to measure on. Keys: ``ori`` (target classes), ``tar`` (cloned classes),
            ``avg`` (both, weighted by their numbers of classes), ``avg_u`` (their mean), ``diverted`` (other images whose
            prediction left the target), ``missed`` (images of the cloned classes whose prediction did not), ``ece`` (expected
            calibration error of the joint answer, 15 bins, over the images of both sides; ``ece_alone`` that of the target
            alone on its own), ``auroc`` (gate; ``auroc_stitched`` and ``auroc_pruned`` are those before refinement,
            on a few hundred of the images that the insertion point was chosen by), ``kl`` (locality, nats), ``target_alone``,
            ``source_alone`` (among the cloned classes), ``source_alone_among_all``, ``kept_parameters``,
            ``source_parameters``, ``bytes``, ``trunk_bytes``, ``seconds``, ``insertion``, ``cut``, ``match`` (of the closed
            form, before pruning), ``regime``, ``images``, ``restored``, ``macs``, ``locality_budget``, ``held_out.new`` and
            ``held_out.old`` (numbers of images), ``target_license`` and ``datasets`` (as the publisher names them).
        labels: names of the cloned classes.
        ported: the same with each target that it was ported to, by the adapter's name. Ported without labels, it is compared
            with the source itself (through its own first layers): ``agreement`` (images that the source takes for a cloned
            class and the joint answer for the same), ``agreement_among_cloned`` (no matter which side the gate chose),
            ``match`` (share of the variance of its logits that is reproduced); and ``adapter_bytes``.
        config: of the clone.
        photos: some of those whose answer changed, where the clone was learned just now. They are in no artifact.
    """

    metrics: dict[str, Any]
    labels: tuple[str, ...]
    ported: dict[str, dict[str, Any]]
    config: CloneConfig = field(repr=False)
    photos: tuple[ShownPhoto, ...] = field(default=(), repr=False)

    @classmethod
    def of(cls, config: CloneConfig, photos: tuple[ShownPhoto, ...] = ()) -> Report:
        """The report of the target that a clone was made for, and of those that it was ported to."""
        first, *later = config.adapters
        ported = {adapter.name: dict(adapter.metrics) for adapter in later if adapter.target is not None}
        return cls(dict(first.metrics), config.labels, ported, config, photos)

    def save(self, path: str | Path) -> Path:
        """Write the report as one HTML page that needs nothing else: no network, no scripts.

        Figures are drawn where matplotlib is installed (``pip install 'pnc-hub[clone]'``); their numbers are there without.

        Args:
            path: of the file; what was there before is replaced.

        Returns:
            The same path.

        Example:
            >>> import pnc_hub
            >>> pnc_hub.Clone.from_pretrained("user/clone-birds").report.save("report.html")  # doctest: +SKIP
        """
        path = Path(path)
        path.write_text(render(self.config, self.metrics, self.ported, self.photos), encoding="utf-8")
        return path

    def __getitem__(self, name: str) -> Any:
        return self.metrics[name]

    def __str__(self) -> str:
        title = f"Clone of {classes(len(self.labels))}: {', '.join(self.labels)}"
        later = (_text(f"Ported to {name}", metrics, PORTED_ROWS) for name, metrics in self.ported.items())
        return "\n".join([_text(title, self.metrics, ROWS), *later])


def _text(title: str, metrics: dict[str, Any], rows: tuple[tuple[str, str, str], ...]) -> str:
    new, old = number(metrics, "held_out.new"), number(metrics, "held_out.old")
    more = "" if old is None else f" and {old:,.0f} of {others(metrics)}"
    if new is not None:
        title += f"\n  measured on {new:,.0f} image{'s' if new != 1 else ''} of new{more} classes"
    return listed(title, written(metrics, rows))
