"""What was measured of a clone on held-out images, as a person would want to read it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pnc_hub.artifact import Clone


@dataclass(frozen=True)
class Report:
    """Measurements of one clone with one target, all on images that cloning made no choice on.

    Where source or target were trained on the same images, their accuracies are those of training images all the same.

    Attributes:
        metrics: name -> value; accuracies and rates are fractions between 0 and 1, None where there were no images to
            measure on. Keys: ``ori`` (target classes), ``tar`` (cloned classes), ``avg`` (both, weighted by their numbers
            of classes), ``avg_u`` (their mean), ``diverted`` (other images whose prediction left the target), ``auroc``
            (gate; ``auroc_stitched`` and ``auroc_pruned`` are those before refinement, on a few hundred of the images that
            the place was chosen by), ``kl`` (locality, nats), ``target_alone``, ``source_alone`` (among the cloned classes),
            ``source_alone_among_all``, ``kept_parameters``, ``source_parameters``, ``bytes``, ``prefix_bytes``,
            ``seconds``, ``insertion``, ``cut``, ``match`` (of the closed form, before pruning), ``regime``, ``images``,
            ``restored``.
        labels: names of the cloned classes.
    """

    metrics: dict[str, Any]
    labels: tuple[str, ...]

    @classmethod
    def of(cls, clone: Clone) -> Report:
        """The report of the first target that ``clone`` was made for."""
        return cls(dict(clone.config.adapters[0].metrics), clone.labels)

    def __getitem__(self, name: str) -> Any:
        return self.metrics[name]

    def __str__(self) -> str:
        rows = [f"  {text:<44}{shown(self.metrics.get(name), kind)}" for name, text, kind in ROWS]
        return "\n".join([f"Clone of {len(self.labels)} classes: {', '.join(self.labels)}", *rows])


ROWS = (
    ("insertion", "read from the target at", "text"),
    ("cut", "source cut after", "text"),
    ("target_alone", "target alone, its own classes", "percent"),
    ("ori", "with the clone, the target's classes (Ori)", "percent"),
    ("source_alone", "source alone, the cloned classes", "percent"),
    ("tar", "with the clone, the cloned classes (Tar)", "percent"),
    ("avg", "both, weighted by numbers of classes (Avg)", "percent"),
    ("diverted", "target images diverted to the clone", "percent"),
    ("auroc", "gate AUROC", "number"),
    ("kept_parameters", "parameters added", "count"),
    ("source_parameters", "parameters of the source", "count"),
    ("bytes", "bytes (module, adapter and gate)", "count"),
    ("prefix_bytes", "bytes of the source's first layers, for other targets", "count"),
    ("seconds", "seconds to learn", "number"),
)


def shown(value: Any, kind: str) -> str:
    """A measurement as text; ``kind`` is that of its row in ``ROWS``."""
    if value is None:
        return "not measured"
    if kind == "text" or isinstance(value, str):
        return str(value)
    if kind == "percent":
        return f"{100 * value:.1f} %"
    if kind == "count":
        return f"{value:,}"
    return f"{value:.3f}"
