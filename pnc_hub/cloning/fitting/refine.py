"""Refinement: the stitched module is distilled from the source on the target's features.

Source and target are frozen, so that each is run once on an image and its copies, however often these are shown. What is
trained is the clone's own: the adapter, the head's rows and, with ``tune``, its copy of the tail. The goal is the source's
distribution over the cloned classes *and everything else it knows*, which is what the reject logit stands for.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import chain, islice, repeat
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from pnc_hub.cloning.fitting.goal import Goal
from pnc_hub.cloning.images.batches import Batches, Loader
from pnc_hub.cloning.images.copies import Copies
from pnc_hub.cloning.images.shown import Shown, at_once
from pnc_hub.cloning.networks import Lesson, Networks
from pnc_hub.module import CloneModule

# So many passes for each copy of an image. On CIFAR-10 three passes over the images as they are ended no worse than over as
# many copies, at less cost.
SHOWINGS = 3
# Of the images that are computed together in a step, on a CPU: what is kept of more for the way back comes in new pages each
# time, half of the time of a MobileNetV2.
PIXELS = 16 * 224 * 224


@dataclass(frozen=True)
class Recipe:
    """How to refine."""

    epochs: float  # number of passes; parts of one count
    rate: float  # largest learning rate
    tune: bool  # whether the copy of the tail is trained too
    universal: bool = True  # whether the tail should also serve targets without an adapter
    flip: bool = True  # whether a mirrored image shows the same class
    anchored: bool = False  # whether the level of the clone's logits matters (``Goal``)

    @property
    def both(self) -> bool:
        """Whether the tail is trained on the source's own features too."""
        return self.tune and self.universal


def refine(
    module: CloneModule,
    networks: Networks,
    batches: Batches,
    pair: tuple[str, str],
    recipe: Recipe,
    score: Callable[[CloneModule], float],
    tick: Callable[[], object],
    best: float | None = None,
) -> float:
    """Train ``module`` in place; it ends as it was at its best held-out score, which is returned.

    ``pair`` is (insertion point, cut). ``score`` is asked before the first pass, unless ``best`` is what it says there, after
    each and at the end; ``tick`` is called at every step.
    """
    accelerator, shown = batches.accelerator, batches.mixed("fit", shuffle=True)
    steps = round(recipe.epochs * len(shown))
    best = score(module) if best is None else best
    if steps == 0:
        return best
    kept = copy.deepcopy(module.state_dict())
    module.requires_grad_(False)
    trained = [module.adapter, module.head, *([module.tail] if recipe.tune else [])]
    parameters = [parameter for part in trained for parameter in part.requires_grad_(True).parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.rate, total_steps=steps + 1)
    on_cpu = networks.device.type == "cpu"
    if on_cpu:
        module.to(memory_format=torch.channels_last)
    learner, optimizer = accelerator.prepare(module, optimizer)
    # batch statistics follow the target's features, but stay the source's where its own features come in as well
    learner.train(recipe.tune and not recipe.both)
    # statistics are those of a whole batch
    most = None if module.training else at_once(networks.target.preprocess.input_size, networks.device, PIXELS)
    views = _views(shown, Copies(batches.seed, recipe.flip), max(1, round(recipe.epochs / SHOWINGS)))
    for step, (images, labels) in enumerate(islice(views, steps), 1):
        feature = networks.target.feature(images, pair[0])
        lesson = taught(networks, images, labels, [pair[1]] if recipe.both else (), recipe.anchored)
        goal = Goal.of(lesson, labels, recipe.anchored)
        for rows in torch.arange(len(labels), device=networks.device).split(most or len(labels)):
            with _precision(networks.device):
                output = learner(feature[rows])
                # the same tail serves other targets through other adapters, and any through the source's own trunk
                own = module.answer(module.tail(lesson.features[pair[1]][rows])) if recipe.both else None
            loss = goal.distance(output, rows)
            accelerator.backward(loss if own is None else loss + goal.distance(own, rows))
        accelerator.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        tick()
        if step % len(shown) == 0 or step == steps:
            _share_statistics(module, accelerator)
            now = score(module.eval())
            module.train(recipe.tune and not recipe.both)
            if now > best:
                best, kept = now, copy.deepcopy(module.state_dict())
    accelerator.unwrap_model(learner, keep_fp32_wrapper=False)  # mixed precision ends with the training
    accelerator.free_memory()
    module.eval()
    module.load_state_dict(kept)
    module.requires_grad_(False)
    if on_cpu:
        module.to(memory_format=torch.contiguous_format)
    return best


def taught(
    networks: Networks, images: Shown, labels: Tensor, cuts: Collection[str] = (), anchored: bool = False
) -> Lesson:
    """What the source says of ``images``, labelled as for ``Goal``; zeros of those of which the goal does not ask it."""
    rows = (labels >= 0).nonzero().flatten().tolist()
    if cuts or anchored or len(rows) in (0, len(labels)):
        return networks.teach(images, cuts)
    lesson = networks.teach(images.only(rows))

    def among_all(said: Tensor) -> Tensor:
        return said.new_zeros(len(labels), *said.shape[1:]).index_copy_(0, torch.tensor(rows, device=said.device), said)

    return Lesson(among_all(lesson.cloned), among_all(lesson.rejected), among_all(lesson.penultimate), {})


def _views(shown: Loader, copies: Copies, number: int) -> Iterator[tuple[Shown, Tensor]]:
    """Batches without end; each time that an image is shown it is the next of so many copies, the image itself among them.

    Of an image that a pass shows several times there are that many times more.
    """
    times = Counter[tuple[int, int]]()
    numbers = {key: number * count for key, count in shown.counts().items()}
    for images, labels in chain.from_iterable(repeat(shown)):
        which = []
        for key in images.keys:
            which.append((key[1] + times[key]) % numbers[key])
            times[key] += 1
        yield images.copied(copies, which), labels


def _precision(device: torch.device) -> AbstractContextManager[Any]:
    """bfloat16 on processors that compute with it, while the weights stay in float32; elsewhere accelerate has the say."""
    if device.type == "cpu" and torch.cpu.get_capabilities().get("avx512_bf16"):
        return torch.autocast("cpu", torch.bfloat16)
    return nullcontext()


def _share_statistics(module: CloneModule, accelerator: Accelerator) -> None:
    """Running statistics that each process has taken from its own batches become their mean."""
    for buffer in module.buffers():
        if module.training and buffer.is_floating_point():
            buffer.copy_(accelerator.reduce(buffer, "mean"))
