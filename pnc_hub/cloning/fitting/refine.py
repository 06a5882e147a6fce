"""Refinement: the stitched module is distilled from the source on the target's features.

Source and target are frozen. What is trained is the clone's own: the adapter, the head's rows and, with ``tune``, its copy
of the tail. The goal is the source's distribution over the cloned classes *and everything else it knows*, which is what
the reject logit stands for.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain, islice, repeat

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F

from pnc_hub.cloning.images.batches import Batches
from pnc_hub.cloning.networks import Lesson, Networks
from pnc_hub.module import CloneModule

ANCHOR = 0.3  # weight of the level of the logits


@dataclass(frozen=True)
class Recipe:
    """How to refine."""

    epochs: float  # number of passes; parts of one count
    rate: float  # largest learning rate
    tune: bool  # whether the copy of the tail is trained too
    universal: bool = True  # whether the tail should also serve targets without an adapter
    flip: bool = True  # whether a mirrored image shows the same class
    anchored: bool = False  # whether the level of the clone's logits matters (``distillation_loss``)


def refine(
    module: CloneModule,
    networks: Networks,
    batches: Batches,
    pair: tuple[str, str],
    recipe: Recipe,
    score: Callable[[CloneModule], float],
    tick: Callable[[], object],
) -> float:
    """Train ``module`` in place; it ends as it was at its best held-out score, which is returned.

    ``pair`` is (insertion point, cut). ``score`` is asked before the first pass, after each and at the end, ``tick`` is called
    at every step.
    """
    accelerator, shown = batches.accelerator, batches.mixed("fit", shuffle=True)
    generator = torch.Generator().manual_seed(batches.seed + accelerator.process_index)  # of the augmentation
    steps = round(recipe.epochs * len(shown))
    best = score(module)
    if steps == 0:
        return best
    kept = copy.deepcopy(module.state_dict())
    module.requires_grad_(False)
    trained = [module.adapter, module.head, *([module.tail] if recipe.tune else [])]
    parameters = [parameter for part in trained for parameter in part.requires_grad_(True).parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.rate, total_steps=steps + 1)
    learner, optimizer = accelerator.prepare(module, optimizer)
    both = recipe.tune and recipe.universal
    # batch statistics follow the target's features, but stay the source's where its own features come in as well
    learner.train(recipe.tune and not both)
    for step, (batch, labels) in enumerate(islice(chain.from_iterable(repeat(shown)), steps), 1):
        images = augmented(batch.pixels(), generator, recipe.flip)
        feature = networks.target.feature(images, pair[0])
        lesson = networks.teach(images, [pair[1]] if both else ())
        loss = distillation_loss(learner(feature), lesson, labels, recipe.anchored)
        if both:
            # the same tail serves other targets through other adapters, and any through the source's own trunk
            own = module.answer(module.tail(lesson.features[pair[1]]))
            loss = loss + distillation_loss(own, lesson, labels, recipe.anchored)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        tick()
        if step % len(shown) == 0 or step == steps:
            _share_statistics(module, accelerator)
            now = score(module.eval())
            module.train(recipe.tune and not both)
            if now > best:
                best, kept = now, copy.deepcopy(module.state_dict())
    accelerator.unwrap_model(learner, keep_fp32_wrapper=False)  # mixed precision ends with the training
    accelerator.free_memory()
    module.eval()
    module.load_state_dict(kept)
    module.requires_grad_(False)
    return best


def _share_statistics(module: CloneModule, accelerator: Accelerator) -> None:
    """Running statistics that each process has taken from its own batches become their mean."""
    for buffer in module.buffers():
        if module.training and buffer.is_floating_point():
            buffer.copy_(accelerator.reduce(buffer, "mean"))


def distillation_loss(output: tuple[Tensor, ...], lesson: Lesson, labels: Tensor, anchored: bool) -> Tensor:
    """How far the module is from what it should say: KL over the cloned classes and "something else".

    On images of the cloned classes the goal is half the source's distribution, half the label; on the target's images it is
    "something else". Both sides weigh the same, whatever their numbers.

    Args:
        output: clone logits [B, K], reject logit [B], and whatever follows.
        lesson: the source on the same images.
        labels: position among the cloned classes [B]; -1 for the target's images.
        anchored: also keep the level of the clone logits that of the source's, which a softmax does not see.
    """
    cloned, reject = output[:2]
    logits = torch.cat([cloned, reject[:, None]], 1)
    taught = torch.cat([lesson.cloned, lesson.rejected[:, None]], 1).softmax(1)
    truth = F.one_hot(torch.where(labels >= 0, labels, cloned.shape[1]), logits.shape[1])
    goal = torch.where(labels[:, None] >= 0, (taught + truth) / 2, truth)
    new = (labels >= 0).float()
    sides = 1 + (new.min() != new.max())
    weight = (new / new.sum().clamp_min(1) + (1 - new) / (1 - new).sum().clamp_min(1)) / sides
    loss = (F.kl_div(logits.log_softmax(1), goal, reduction="none").sum(1) * weight).sum()
    if anchored:
        error = ((cloned - lesson.cloned) ** 2).mean(1) / (1 + lesson.cloned.var(correction=0))
        loss = loss + ANCHOR * (error * weight).sum()
    return loss


def augmented(images: Tensor, generator: torch.Generator, flip: bool) -> Tensor:
    """Each image [B, C, H, W] shifted by up to an eighth of its size, zeros coming in, and by chance mirrored."""
    count, _, height, width = images.shape

    def positions(size: int, mirror: bool) -> Tensor:
        margin = size // 8
        start = torch.randint(2 * margin + 1, (count, 1), generator=generator)
        order = torch.arange(size).expand(count, size)
        if mirror:
            order = torch.where(torch.rand(count, 1, generator=generator) < 0.5, order.flip(1), order)
        return (start + order).to(images.device)

    rows, columns = positions(height, False), positions(width, flip)
    padded = F.pad(images, [width // 8] * 2 + [height // 8] * 2)
    which = torch.arange(count, device=images.device)[:, None, None]
    return padded[which, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
