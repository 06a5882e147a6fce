"""Measuring a clone: the joint answer over old and new classes, with no hint which side an image belongs to."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pnc_hub import attachment, fusion
from pnc_hub.artifact import Clone
from pnc_hub.cloning.gate import Evidence, auroc
from pnc_hub.fingerprint import state_digest


@torch.inference_mode()
def measure(target: nn.Module, clone: Clone, cloned: Iterable, old: Iterable | None) -> dict[str, Any]:
    """Attach ``clone`` to ``target``, run it on held-out images, detach it.

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
    with attachment.attach(target, clone, on_collision="allow") as joined:
        width, count = joined.logit_slice.start, len(clone.labels)
        new = _run(target, cloned)
        known = _run(target, old) if old is not None else None
        first = next(iter(cloned))[0].to(next(target.parameters()).device)
        attached_part = target(first)[:, :width]
    alone = _run(target, old) if old is not None else None
    same = torch.equal(target(first), attached_part) and state_digest(target) == before
    result: dict[str, Any] = {"tar": accuracy(new[0], new[1] + width)}
    result.update(dict.fromkeys(("ori", "avg", "avg_u", "diverted", "auroc", "kl", "target_alone")))
    if known is not None:
        same = same and torch.equal(known[0][:, :width], alone[0])
        is_new = known[0].argmax(1) >= width
        result["diverted"] = float(is_new.float().mean())
        gates = [_gate_logit(logits, width) for logits in (new[0], known[0])]
        result["auroc"] = auroc(*gates)
        result["kl"] = float(fusion.divergence(gates[1]).mean())
        if bool((known[1] >= 0).all()):
            result["ori"] = accuracy(known[0], known[1])
            result["target_alone"] = accuracy(alone[0], alone[1])
            result["avg_u"] = (result["ori"] + result["tar"]) / 2
            result["avg"] = (width * result["ori"] + count * result["tar"]) / (width + count)
    result["restored"] = bool(same)
    return result


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of rows whose largest logit is at their label."""
    return float((logits.argmax(1) == labels).float().mean())


@torch.no_grad()
def gather(read: Callable[[Tensor], tuple[Tensor, ...]], batches: Iterable) -> Evidence:
    """``read(images)`` = (target logits, clone logits, reject logit, features) over batches of (images, labels)."""
    rows = [(*read(images), labels) for images, labels in batches]
    return Evidence(*(torch.cat(column).cpu() for column in zip(*rows, strict=True)))


def _run(model: nn.Module, batches: Iterable) -> tuple[Tensor, Tensor]:
    device = next(model.parameters()).device
    rows = [(model(images.to(device)).cpu(), labels.cpu()) for images, labels in batches]
    return torch.cat([row[0] for row in rows]), torch.cat([row[1] for row in rows])


def _gate_logit(logits: Tensor, width: int) -> Tensor:
    """s, read back from the fused logits: log-odds of the new columns under the joint softmax."""
    return logits[:, width:].double().logsumexp(1) - logits[:, :width].double().logsumexp(1)
