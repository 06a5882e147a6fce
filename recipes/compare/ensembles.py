"""Both full networks side by side, their logits joined in five ways: what a clone would be if its size were no matter."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from pnc_hub.cloning.fitting.gate import Evidence
from recipes.compare.study import Study, few_of_each, gated
from recipes.frame.task import Result, Task

Said = tuple[Tensor, Tensor, Tensor, Tensor]
# Two or four numbers are fitted: more images of a class change nothing.
CALIBRATION_IMAGES = 200


def ensemble_raw(task: Task) -> Result:
    """The target's logits and the source's of the cloned classes as they are."""
    study = Study(task)
    return _result(study, lambda said: torch.cat(said[:2], 1), images=0)


def ensemble_softmax(task: Task) -> Result:
    """Log probabilities, each network over all that it knows: an image of the source's other classes is none of the cloned."""
    study = Study(task)
    nothing_else = not len(study.networks.others)

    def join(said: Said) -> Tensor:
        target, cloned, rejected, _ = said
        energy = cloned.logsumexp(1)
        energy = energy if nothing_else else torch.logaddexp(energy, rejected)
        return torch.cat([target.log_softmax(1), cloned - energy[:, None]], 1)

    return _result(study, join, images=0)


def ensemble_energy(task: Task) -> Result:
    """Each side weighs as much as its energy stands out from what it usually is.

    The usual is mean and deviation over images of both sides, weighing the same (R3, R4), or over images that neither side
    knows (R2). Images of the cloned classes alone do not tell what is usual for the target.
    """
    study = Study(task)
    parts = [study.evidence(few_of_each(task.old, CALIBRATION_IMAGES, task.seed))]
    if study.labelled:
        parts.append(study.evidence(few_of_each(task.new, CALIBRATION_IMAGES, task.seed)))
    usual = [_usual([side(part) for part in parts]) for side in (_target_energy, _clone_energy)]

    def join(said: Said) -> Tensor:
        target, cloned = said[:2]
        standing = [
            (logits.logsumexp(1, keepdim=True) - mean) / deviation
            for logits, (mean, deviation) in zip((target, cloned), usual, strict=True)
        ]
        return torch.cat([target.log_softmax(1) + standing[0], cloned.log_softmax(1) + standing[1]], 1)

    return _result(study, join, images=sum(len(part) for part in parts))


def ensemble_bic(task: Task) -> Result:
    """The new logits scaled and shifted, both fitted on images of both sides (Wu et al., CVPR 2019).

    Nothing else is fitted, so no image was used before; every class weighs the same.
    """
    study = Study(task)
    old, new = (study.evidence(few_of_each(part, CALIBRATION_IMAGES, task.seed)) for part in (task.old, task.new))
    logits = [torch.cat([getattr(part, name) for part in (old, new)]) for name in ("target_logits", "clone_logits")]
    scale, shift = bias_correction(*logits, torch.cat([old.labels, new.labels + study.known]))

    def join(said: Said) -> Tensor:
        return torch.cat([said[0], scale * said[1] + shift], 1)

    return _result(study, join, images=len(old) + len(new), scale=scale, shift=shift)


def ensemble_gate(task: Task) -> Result:
    """Our gate and fusion on the full networks: on the scalars of both heads, or also on the source's features.

    Which of the two, held-out images decide, as for a clone.
    """
    study = Study(task)
    gate = study.fit_gate(study.read, study.networks.odds)
    return _result(study, lambda said: gated(gate, said), gate)


def bias_correction(target_logits: Tensor, new: Tensor, labels: Tensor) -> tuple[float, float]:
    """Scale and shift of ``new`` [N, K] beside ``target_logits`` [N, T] with the least cross-entropy, by joint ``labels``."""
    classes = target_logits.shape[1] + new.shape[1]
    weight = 1 / torch.bincount(labels, minlength=classes).clamp_min(1).double()
    target_logits, new = target_logits.double(), new.double()
    knobs = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([knobs], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(torch.cat([target_logits, knobs[0].exp() * new + knobs[1]], 1), labels, weight)
        value.backward()
        return value

    optimizer.step(loss)
    scale, shift = knobs.detach()
    return float(scale.exp()), float(shift)


def _result(study: Study, join: Callable[[Said], Tensor], *more: torch.nn.Module, **extra: object) -> Result:
    source = study.networks.source.model, study.networks.head
    return study.result(lambda images: join(study.read(images)), [*source, *more], **extra)


def _usual(parts: list[Tensor]) -> tuple[float, float]:
    """Mean and deviation of values in several parts that weigh the same."""
    mean = sum(float(part.mean()) for part in parts) / len(parts)
    variance = sum(float(((part - mean) ** 2).mean()) for part in parts) / len(parts)
    return mean, max(variance, 1e-12) ** 0.5


def _target_energy(said: Evidence) -> Tensor:
    return said.target_logits.logsumexp(1)


def _clone_energy(said: Evidence) -> Tensor:
    return said.clone_logits.logsumexp(1)
