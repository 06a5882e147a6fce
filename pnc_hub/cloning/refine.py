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
from torch import Tensor
from torch.nn import functional as F

from pnc_hub.cloning.localize import neighbours
from pnc_hub.cloning.networks import Lesson, Networks
from pnc_hub.module import CloneModule

MATCH = 0.3  # weight of the feature match
NEIGHBOURS = 0.7  # share of the images that are perturbed


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
        tick: called after every pass.
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
            images, near = _with_neighbours(images, generator)
            _, read = networks.target(images, [pair[0]])
            lesson = networks.teach(images, [pair[1]])
            loss = distillation_loss(learner(read[pair[0]]), lesson, labels, near)
            if recipe.tune:
                # the same tail serves other targets through other adapters, and any through the source's own prefix
                own = module.tail(lesson.features[pair[1]])
                logits = module.head(own)
                loss = loss + distillation_loss((logits[:, :-1], logits[:, -1], own), lesson, labels, near)
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


def distillation_loss(output: tuple[Tensor, Tensor, Tensor], lesson: Lesson, labels: Tensor, near: Tensor) -> Tensor:
    """How far the module is from what it shall say: KL over the cloned classes and "something else", and feature match.

    On images of the cloned classes the goal is half the source's distribution, half the label; on the target's images it is
    "something else". Both sides weigh the same, whatever their numbers.

    Args:
        output: clone logits [B, K], reject logit [B], penultimate feature [B, C].
        lesson: the source on the same images.
        labels: position among the cloned classes [B]; -1 for the target's images.
        near: weight of each image [B].
    """
    cloned, reject, penultimate = output
    logits = torch.cat([cloned, reject[:, None]], 1)
    taught = torch.cat([lesson.cloned, lesson.rejected[:, None]], 1).softmax(1)
    truth = F.one_hot(torch.where(labels >= 0, labels, cloned.shape[1]), logits.shape[1])
    goal = torch.where(labels[:, None] >= 0, (taught + truth) / 2, truth)
    new = (labels >= 0).float()
    weight = (
        near
        * (new / new.sum().clamp_min(1) + (1 - new) / (1 - new).sum().clamp_min(1))
        / (1 + (new.min() != new.max()))
    )
    loss = (F.kl_div(logits.log_softmax(1), goal, reduction="none").sum(1) * weight).sum()
    if penultimate.shape == lesson.penultimate.shape:
        error = ((penultimate - lesson.penultimate) ** 2).mean(1) / lesson.penultimate.var().clamp_min(1e-6)
        loss = loss + MATCH * (error * weight).sum()
    return loss


def _with_neighbours(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Replace most of the images by perturbed neighbours; returns (images, proximity)."""
    changed, near = neighbours(images, generator)
    choose = torch.rand(len(images), generator=generator).to(images.device) < NEIGHBOURS
    return torch.where(choose[:, None, None, None], changed, images), torch.where(choose, near, torch.ones_like(near))
