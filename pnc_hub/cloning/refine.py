"""Refinement: the stitched module is distilled from the source on the target's features.

Source and target are frozen. What is trained is the clone's own: the adapter, the head's rows and, with ``tune``, its copy
of the tail. The goal is the source's distribution over the cloned classes *and everything else it knows*, which is what
the reject logit stands for.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

from pnc_hub.cloning.localize import neighbours
from pnc_hub.cloning.networks import Lesson, Networks
from pnc_hub.module import CloneModule


@dataclass(frozen=True)
class Recipe:
    """How to refine: number of passes, learning rate, and whether the copy of the tail is trained too."""

    epochs: int
    rate: float
    tune: bool


def refine(
    module: CloneModule,
    networks: Networks,
    accelerator: Accelerator,
    pair: tuple[str, str],
    batches: Iterable,
    score: Callable[[CloneModule], float],
    recipe: Recipe,
    generator: torch.Generator,
    tick: Callable[[], None],
) -> float:
    """Train ``module`` in place; it ends as it was at its best held-out score, which is returned.

    Args:
        module: adapter, tail and head.
        networks: source and target.
        accelerator: runs the loop.
        pair: (insertion point, cut).
        batches: batches of (images, position among the cloned classes or -1).
        score: judged on held-out images after every pass; before the first, too.
        recipe: passes, rate, what is trained.
        generator: of the perturbed neighbours.
        tick: called after every batch.
    """
    best = score(module)
    if recipe.epochs == 0:
        return best
    kept = copy.deepcopy(module.state_dict())
    module.requires_grad_(False)
    trained = [module.adapter, module.head, *([module.tail] if recipe.tune else [])]
    parameters = [parameter for part in trained for parameter in part.requires_grad_(True).parameters()]
    steps = recipe.epochs * max(1, len(batches))
    optimizer = torch.optim.AdamW(parameters, lr=recipe.rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.rate, total_steps=steps + 1, pct_start=0.2)
    learner, optimizer, schedule = accelerator.prepare(module, optimizer, schedule)
    learner.eval()  # batch statistics stay the source's
    for _ in range(recipe.epochs):
        for images, labels in batches:
            images, near = _with_neighbours(images, labels, generator)
            _, read = networks.target(images, [pair[0]])
            lesson = networks.teach(images, [pair[1]])
            loss = distillation_loss(learner(read[pair[0]]), lesson, labels, near, module, bool(len(networks.others)))
            if (
                recipe.tune
            ):  # the same tail serves other targets, through other adapters and through the source's own prefix
                own = module.head(module.tail(lesson.features[pair[1]]))
                loss = loss + _divergence(own, _goal(lesson, own.shape[1]), near)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            tick()
        found = score(module)
        if found > best:
            best, kept = found, copy.deepcopy(module.state_dict())
    module.load_state_dict(kept)
    module.requires_grad_(False)
    return best


def distillation_loss(
    output: tuple[Tensor, Tensor, Tensor],
    lesson: Lesson,
    labels: Tensor,
    near: Tensor,
    module: CloneModule,
    has_reject: bool,
) -> Tensor:
    """KL to the source's distribution, cross-entropy where the label is known, and match of the penultimate feature."""
    cloned, reject, penultimate = output
    logits = torch.cat([cloned, reject[:, None]], 1) if has_reject else cloned
    loss = _divergence(logits, _goal(lesson, logits.shape[1]), near)
    known = labels >= 0
    if known.any():
        loss = loss + 0.5 * (F.cross_entropy(logits[known], labels[known], reduction="none") * near[known]).mean()
    if penultimate.shape == lesson.penultimate.shape:
        error = ((penultimate - lesson.penultimate) ** 2).mean(1) / lesson.penultimate.var().clamp_min(1e-6)
        loss = loss + (error * near).mean()
    return loss


def _divergence(logits: Tensor, goal: Tensor, weight: Tensor) -> Tensor:
    return (F.kl_div(logits.log_softmax(1), goal, reduction="none").sum(1) * weight).mean()


def _goal(lesson: Lesson, columns: int) -> Tensor:
    return lesson.all_logits[:, :columns].softmax(1)


def _with_neighbours(images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Replace half of the cloned classes' images by perturbed neighbours; returns (images, proximity)."""
    changed, near = neighbours(images, generator)
    choose = (torch.rand(len(images), generator=generator).to(images.device) < 0.5) & (labels >= 0)
    return torch.where(choose[:, None, None, None], changed, images), torch.where(choose, near, torch.ones_like(near))


def parts(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, detached copies on the CPU."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return {name: tensor.detach().cpu().clone() for name, tensor in tensors}
