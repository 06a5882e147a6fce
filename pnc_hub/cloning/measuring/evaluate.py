"""Measuring a clone: the joint answer over old and new classes, with no hint which side an image belongs to."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, NamedTuple

import torch
from accelerate import PartialState
from accelerate.utils import concatenate, gather_object, send_to_device
from torch import Tensor, nn

from pnc_hub import attachment, fusion
from pnc_hub.cloning.fitting.gate import Evidence, Sides, auroc
from pnc_hub.cloning.images.batches import Batches
from pnc_hub.cloning.measuring.album import Album
from pnc_hub.cloning.networks import Networks
from pnc_hub.hub.clone import Clone
from pnc_hub.models.fingerprint import state_digest
from pnc_hub.report.series import Histogram, Reliability, Table, class_table, pair_table

# what is read of images of the cloned classes, and of others if there are any
Gathered = tuple[dict[str, Any], dict[str, Any] | None]


class Side(NamedTuple):
    """A few numbers of each image of one side, with the clone attached."""

    answers: Tensor  # [N] among all classes, the target's first
    confidences: Tensor  # [N] probability of the answer
    gate_logits: Tensor  # [N]
    margins: Tensor  # [N] by how much the best cloned class beats the target's best, in log-odds
    digests: Tensor  # [N] of the target's own logits
    labels: Tensor  # [N] the target's class or -1, or the position among the cloned classes


@dataclass(frozen=True)
class Observed:
    """What was seen of a clone on held-out images."""

    width: int  # number of the target's classes
    count: int  # number of cloned classes
    new: Side  # images of the cloned classes
    old: Side | None  # images of the target's classes, if there were any
    alone: tuple[Tensor, Tensor] | None  # answer [N] and confidence [N] of the target alone on ``old``
    restored: bool  # whether outputs and state were the same bit for bit once the clone was gone

    def shares(self) -> dict[str, Any]:
        """What ``measure`` returns."""
        new, old = self.new, self.old
        names = ("ori", "avg", "avg_u", "diverted", "missed", "auroc", "kl", "target_alone", "ece", "ece_alone")
        result: dict[str, Any] = {"tar": _share(new.answers == new.labels + self.width), **dict.fromkeys(names)}
        result["missed"] = _share(new.answers < self.width)
        if old is not None:
            result["diverted"] = _share(old.answers >= self.width)
            result["auroc"] = auroc(new.gate_logits, old.gate_logits)
            result["kl"] = float(fusion.divergence(old.gate_logits).mean())
        if old is not None and self.alone is not None and self.labelled:
            right = self.alone[0] == old.labels
            result["ori"], result["target_alone"] = _share(old.answers == old.labels), _share(right)
            result["avg_u"] = (result["ori"] + result["tar"]) / 2
            result["avg"] = (self.width * result["ori"] + self.count * result["tar"]) / (self.width + self.count)
            result["ece"] = self._reliability(old).ece
            result["ece_alone"] = Reliability.count(self.alone[1].tolist(), right.tolist()).ece
        return {**result, "restored": self.restored}

    def held_out(self) -> dict[str, int]:
        """How many images were seen of each side."""
        counts = {"held_out.new": len(self.new.labels)}
        return counts if self.old is None else {**counts, "held_out.old": len(self.old.labels)}

    def series(self) -> dict[str, Table]:
        """What figures are drawn of, see ``pnc_hub.report.series``: shares are not enough for them."""
        new, old = self.new, self.old
        labels, crossed = new.labels.tolist(), new.answers < self.width
        pairs = zip(new.labels[crossed].tolist(), new.answers[crossed].tolist(), strict=True)
        tables = {
            "gate": Histogram.count(new.margins.tolist(), [] if old is None else old.margins.tolist()).table(),
            "class": class_table(labels, (new.answers == new.labels + self.width).tolist(), crossed.tolist()),
            "confused_new": pair_table(pairs),
        }
        if old is not None and self.labelled:
            gone = old.answers >= self.width
            answers = (old.answers[gone] - self.width).tolist()
            tables["confused_old"] = pair_table(zip(old.labels[gone].tolist(), answers, strict=True))
            tables["calibration"] = self._reliability(old).table()
        return tables

    @property
    def labelled(self) -> bool:
        """Whether the class of every image of the target's is known."""
        return self.old is not None and bool((self.old.labels >= 0).all())

    def _reliability(self, old: Side) -> Reliability:
        """Over the images of both sides."""
        right = torch.cat([self.new.answers == self.new.labels + self.width, old.answers == old.labels])
        return Reliability.count(torch.cat([self.new.confidences, old.confidences]).tolist(), right.tolist())


def measure(target: nn.Module, clone: Clone, cloned: Iterable[Any], old: Iterable[Any] | None) -> dict[str, Any]:
    """Attach ``clone`` to ``target``, run it on held-out images, detach it.

    Args:
        target: the model, in eval mode.
        clone: the clone.
        cloned: batches of (images, position among the cloned classes).
        old: batches of (images, class of the target, or -1 where it is not known), or None.

    Returns:
        ``ori``, ``tar``, ``avg`` (weighted by numbers of classes), ``avg_u``, ``diverted``, ``missed`` (images of the cloned
        classes that the target answers), ``auroc``, ``kl``, ``target_alone``, ``ece`` (expected calibration error of the joint
        answer over both sides, 15 bins), ``ece_alone`` (of the target alone on its own) (fractions; None where there is
        nothing to measure), and ``restored``: whether outputs and state were the same bit for bit.
    """
    return observe(target, clone, cloned, old).shares()


@torch.inference_mode()
def observe(
    target: nn.Module, clone: Clone, cloned: Iterable[Any], old: Iterable[Any] | None, album: Album | None = None
) -> Observed:
    """As ``measure``, and all that figures need. Of each image a few numbers are kept, and ``album`` keeps a few images."""
    before = state_digest(target)
    device = next(target.parameters()).device
    example: list[Tensor] = []  # the last batch, if this process has any

    def joint(images: Tensor) -> dict[str, Tensor]:
        example[:] = [images.to(device)]
        logits = target(*example)
        best, own = logits.double().log_softmax(1).max(1), logits[:, :width]
        seen[:] = [logits]
        return {
            "answers": best.indices,
            "confidences": best.values.exp(),
            # s, read back: log-odds of the new columns under the joint softmax
            "gate_logits": logits[:, width:].double().logsumexp(1) - own.double().logsumexp(1),
            "margins": logits[:, width:].double().amax(1) - own.double().amax(1),
            "digests": _digest(own),
        }

    def by_itself(images: Tensor) -> dict[str, Tensor]:
        logits = target(images.to(device))
        best = logits.double().softmax(1).max(1)
        return {"answers": best.indices, "confidences": best.values, "digests": _digest(logits)}

    others = alone = None
    seen: list[Tensor] = []

    def shown(batches: Iterable[Any], new: bool) -> Iterable[Any]:
        """The same batches; each goes to the album once it was answered."""
        for images, labels in batches:
            yield images, labels
            if album is not None:
                album.see(images, labels, seen[0], width, new)

    with attachment.attach(target, clone, on_collision="allow") as joined:
        width, count = joined.logit_slice.start, len(clone.labels)
        new = Side(**gather(joint, shown(cloned, True)))
        if old is not None:
            others = Side(**gather(joint, shown(old, False)))
        attached_part = [target(images)[:, :width] for images in example]
    same = all(map(torch.equal, map(target, example), attached_part))
    if others is not None and old is not None:
        unattached = gather(by_itself, old)
        alone = unattached["answers"], unattached["confidences"]
        same = same and torch.equal(others.digests, unattached["digests"])
    same = same and state_digest(target) == before
    return Observed(width, count, new, others, alone, all(gather_object([bool(same)])))


def source_alone(networks: Networks, batches: Iterable[Any]) -> dict[str, float]:
    """Accuracy of the source on images of the cloned classes: among these alone, and among all of its own.

    It is what a clone can be expected to know; a warning says so if the labels do not seem to fit.
    """

    def answers(images: Tensor) -> dict[str, Any]:
        lesson = networks.teach(images)
        return {"answers": lesson.cloned.argmax(1), "cloned_wins": lesson.cloned_wins}

    given = gather(answers, batches)
    right = given["answers"] == given["labels"]
    count, among_all = len(right), int((right & given["cloned_wins"]).sum())
    if among_all / count <= 1.5 / networks.num_classes:
        warnings.warn(
            f"the source recognises {among_all} of {count} images of the cloned classes, no more than by chance: check that"
            " classes= maps each label to its index in the source",
            stacklevel=3,
        )
    return {"source_alone": int(right.sum()) / count, "source_alone_among_all": among_all / count}


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of rows whose largest logit is at their label."""
    return _share(logits.argmax(1) == labels)


@torch.no_grad()
def gather(read: Callable[[Any], dict[str, Any]], batches: Iterable[Any]) -> dict[str, Any]:
    """What ``read(images)`` returns by name, and ``labels``, over batches of (images, labels), in the order of one process.

    By each name there is a tensor, or lists and tuples of them. Where there are several processes each has seen its share,
    and all get everything: only for what is small and bounded.
    """
    rows = [send_to_device({**read(images), "labels": labels}, "cpu") for images, labels in batches]
    if PartialState().num_processes > 1:
        rounds = zip_longest(*gather_object([rows]))  # batch i was read by process i modulo their number
        rows = [batch for turn in rounds for batch in turn if batch is not None]
    joined: dict[str, Any] = concatenate(rows)
    return joined


def gather_sides(read: Callable[[Any], dict[str, Any]], batches: Batches, part: str, most: int) -> Gathered:
    """The same of at most so many images of each side of that part; None where there are no others."""
    cloned, others = batches.sides(part, most)
    return gather(read, cloned), None if others is None else gather(read, others)


def evidence(sides: Gathered, which: Any) -> Sides:
    """For a gate, from "target" (its logits) and that one of the "answers", (logits, reject) or (logits, reject, features)."""

    def of(side: dict[str, Any]) -> Evidence:
        logits, reject, *rest = side["answers"][which]
        features = rest[0] if rest else logits.new_zeros(len(logits), 0)
        return Evidence(side["target"], logits, reject, features, side["labels"])

    return of(sides[0]), None if sides[1] is None else of(sides[1])


def _share(right: Tensor) -> float:
    return float(right.float().mean())


def _digest(logits: Tensor) -> Tensor:
    """One integer [B] for each row's bits, so that outputs can be compared without being kept."""
    bits = logits.float().contiguous().view(torch.int32).long()
    odd = 2 * torch.arange(bits.shape[1], device=bits.device) + 1
    return (bits * odd * 0x9E3779B97F4A7C1).sum(1)  # any change of one logit changes it: products with odd numbers
