"""Measuring a clone: the joint answer over old and new classes, with no hint which side an image belongs to."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import zip_longest
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor, nn

from pnc_hub import attachment, fusion
from pnc_hub.artifact import Clone
from pnc_hub.cloning.gate import auroc
from pnc_hub.fingerprint import state_digest


@torch.inference_mode()
def measure(target: nn.Module, clone: Clone, cloned: Iterable, old: Iterable | None) -> dict[str, Any]:
    """Attach ``clone`` to ``target``, run it on held-out images, detach it. Of each image a few numbers are kept.

    Args:
        target: the model, in eval mode.
        clone: the clone.
        cloned: batches of (images, position among the cloned classes).
        old: batches of (images, class of the target, or -1 where it is not known), or None.

    Returns:
        ``ori``, ``tar``, ``avg`` (weighted by numbers of classes), ``avg_u``, ``diverted``, ``auroc``, ``kl``,
        ``target_alone`` (fractions; None where there is nothing to measure), and ``restored``: whether outputs and state were
        the same bit for bit.
    """
    before = state_digest(target)
    device = next(target.parameters()).device
    example: list[Tensor] = []  # the last batch, if this process has any

    def joint(images: Tensor) -> tuple[Tensor, ...]:
        example[:] = [images.to(device)]
        logits = target(*example)
        return logits.argmax(1), _gate_logit(logits, width), _digest(logits[:, :width])

    def by_itself(images: Tensor) -> tuple[Tensor, ...]:
        logits = target(images.to(device))
        return logits.argmax(1), _digest(logits)

    known = alone = None
    with attachment.attach(target, clone, on_collision="allow") as joined:
        width, count = joined.logit_slice.start, len(clone.labels)
        answers, gate_logits, _, labels = gather(joint, cloned)
        if old is not None:
            known = gather(joint, old)
        attached_part = [target(images)[:, :width] for images in example]
    if old is not None:
        alone = gather(by_itself, old)
    same = all(map(torch.equal, map(target, example), attached_part)) and state_digest(target) == before
    result: dict[str, Any] = {"tar": _share(answers == labels + width)}
    result.update(dict.fromkeys(("ori", "avg", "avg_u", "diverted", "auroc", "kl", "target_alone")))
    if known is not None:
        same = same and torch.equal(known[2], alone[1])
        result["diverted"] = _share(known[0] >= width)
        result["auroc"] = auroc(gate_logits, known[1])
        result["kl"] = float(fusion.divergence(known[1]).mean())
        if bool((known[3] >= 0).all()):
            result["ori"] = _share(known[0] == known[3])
            result["target_alone"] = _share(alone[0] == alone[2])
            result["avg_u"] = (result["ori"] + result["tar"]) / 2
            result["avg"] = (width * result["ori"] + count * result["tar"]) / (width + count)
    result["restored"] = all(gather_object([bool(same)]))
    return result


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of rows whose largest logit is at their label."""
    return _share(logits.argmax(1) == labels)


@torch.no_grad()
def gather(read: Callable[[Tensor], tuple[Tensor, ...]], batches: Iterable) -> tuple[Tensor, ...]:
    """The columns ``read(images)`` and the labels, over batches of (images, labels), in the order of one process.

    Where there are several processes each has seen its share, and all get everything: only for what is small and bounded.
    """
    rows = [tuple(value.cpu() for value in (*read(images), labels)) for images, labels in batches]
    if PartialState().num_processes > 1:
        rounds = zip_longest(*gather_object([rows]))  # batch i was read by process i modulo their number
        rows = [batch for turn in rounds for batch in turn if batch is not None]
    return tuple(torch.cat(column) for column in zip(*rows, strict=True))


def _share(right: Tensor) -> float:
    return float(right.float().mean())


def _digest(logits: Tensor) -> Tensor:
    """One integer [B] for each row's bits, so that outputs can be compared without being kept."""
    bits = logits.float().contiguous().view(torch.int32).long()
    odd = 2 * torch.arange(bits.shape[1], device=bits.device) + 1
    return (bits * odd * 0x9E3779B97F4A7C1).sum(1)  # any change of one logit changes it: products with odd numbers


def _gate_logit(logits: Tensor, width: int) -> Tensor:
    """s, read back from the fused logits: log-odds of the new columns under the joint softmax."""
    return logits[:, width:].double().logsumexp(1) - logits[:, :width].double().logsumexp(1)
