"""What the baselines share: both networks of a task side by side, its images with a tenth held out, and what a method costs."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from pnc_hub.cloning.fitting import gate as gates
from pnc_hub.cloning.fitting.gate import Evidence
from pnc_hub.cloning.images.data import labels_of
from pnc_hub.cloning.networks import Networks
from pnc_hub.fusion import new_logits
from pnc_hub.models.cost import macs
from pnc_hub.module import Gate
from recipes.frame.task import Result, Task, clock
from recipes.frame.training import train

HELD_OUT = 0.1
BATCH, STEP = 256, 128  # images that are read together, and that make a step of training
LABELLED = ("R3", "R4")
# What is trained gets at least so many steps, so that ten images of a class are not seen a dozen times only.
LEAST_STEPS = 200
Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]
Recipe = tuple[str, float, float]  # optimizer, highest learning rate, weight decay


class Study:
    """A task being worked on by one method: its networks, its images in two parts, its clock.

    Attributes:
        networks: both networks, as frozen copies.
        new: images of the cloned classes, (part to fit on, held-out tenth).
        old: the same of the target's classes (R3, R4) or of neither side's (R2), or None.
        known: the number of the target's classes.
        count: the number of cloned classes.
    """

    def __init__(self, task: Task) -> None:
        """The clock starts here; nothing of the task is changed."""
        self.started = clock()
        self.task = task
        self.device = torch.device(task.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.networks = Networks(task.source, task.target, task.rows, self.device)
        self.known, self.count = int(task.target.num_classes), len(task.rows)
        self.new = held_out(task.new, task.seed)
        self.old = held_out(task.old, task.seed) if task.old is not None else None
        self.labelled = self.old is not None and task.regime in LABELLED

    def loader(self, dataset: Dataset) -> Iterable[tuple[Tensor, Tensor]]:
        """Batches in order, on the task's device."""
        for images, labels in DataLoader(dataset, BATCH):
            yield images.to(self.device), labels

    def evidence(self, dataset: Dataset, read: Callable[[Tensor], tuple[Tensor, ...]] | None = None) -> Evidence:
        """What ``read`` (by default both full networks) says of a data set."""
        with torch.no_grad():
            rows = [((*(read or self.read)(images), labels)) for images, labels in self.loader(dataset)]
        return Evidence(*(torch.cat([part.cpu() for part in column]) for column in zip(*rows, strict=True)))

    def read(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(target's logits, source's of the cloned classes, energy of its others, its penultimate feature)."""
        lesson = self.networks.teach(images)
        # a source whose classes are all cloned has nothing to reject with
        rejected = torch.where(lesson.rejected.isinf(), 0.0, lesson.rejected)
        return self.networks.target(images)[0], lesson.cloned, rejected, lesson.penultimate

    def fit_gate(self, read: Callable[[Tensor], tuple[Tensor, ...]], odds: float = 0.0) -> Gate:
        """The gate of a clone on what ``read`` says; without images of most of the target's classes, both side by side.

        ``odds`` as in ``gates.fit``, where ``read`` gives the source's own reject logit.

        Chosen on C10, seed 1992: letting through what looks like the cloned classes is much worse.
        """
        if self.old is None:
            return gates.side_by_side(read(self.task.new[0][0][None].to(self.device))[3].shape[1]).to(self.device)
        cloned = [self.evidence(part, read) for part in self.new]
        others = [self.evidence(part, read) for part in self.old]
        # as `clone` decides it
        shown = set(self.task.old.targets)
        covered = self.labelled and 2 * len(shown) >= self.known
        gate = gates.fit(cloned[0], others[0], (cloned[1], others[1]), False, covered, odds)
        gate.offset.fill_(gates.best_offset(gate, cloned[1], others[1], None, covered))
        return gate.to(self.device)

    def held_out_score(self, predict: Callable[[Tensor], Tensor]) -> float:
        """Accuracy on held-out images, the mean of both sides; of the cloned classes alone without the target's images."""
        sides = [(self.new[1], self.known), *([(self.old[1], 0)] if self.labelled else [])]
        return float(np.mean([self._accuracy(predict, dataset, shift) for dataset, shift in sides]))

    def _accuracy(self, predict: Callable[[Tensor], Tensor], dataset: Dataset, shift: int) -> float:
        right = sum(
            int((predict(images).argmax(1).cpu() == labels + shift).sum()) for images, labels in self.loader(dataset)
        )
        return right / len(dataset)

    def joint_data(self, repeat: bool = False, fit: bool = False) -> Joined:
        """Training images labelled with joint classes: the cloned ones, and the target's where the regime has them.

        Args:
            repeat: show the target's few images again until they are as many as the new ones.
            fit: leave out the held-out ones, for methods that choose by them.
        """
        new, old = (self.new[0], self.old[0] if self.old else None) if fit else (self.task.new, self.task.old)
        if not self.labelled:
            return Joined((new, self.known))
        times = max(1, round(len(new) / len(old))) if repeat else 1
        return Joined((new, self.known), *[(old, 0)] * times)

    def train(
        self, model: nn.Module, data: Dataset, share: float, recipe: Recipe | None = None, loss: Loss | None = None
    ) -> nn.Module:
        """Train a copy of ``model`` for a share of the benchmark's passes, or ``LEAST_STEPS`` steps if those are more.

        Args:
            model: what to start from; it is not changed.
            data: images and labels.
            share: of the passes that networks of this benchmark are trained for.
            recipe: by default that for random weights.
            loss: as in ``training.train``.
        """
        kind, rate, decay = recipe or scratch(model)
        return train(
            copy.deepcopy(model),
            data,
            max(1, round(share * self.task.epochs), -(-LEAST_STEPS * STEP // len(data))),
            self.task.seed,
            loss=loss,
            learning_rate=rate,
            batch_size=STEP,
            flip=self.task.new[0][0].shape[0] > 1,  # what has no colour is a character
            optimizer=kind,
            weight_decay=decay,
            device=self.task.device,
        )

    def result(
        self, predict: Callable[[Tensor], Tensor], modules: Iterable[nn.Module], images: int | None = None, **extra: Any
    ) -> Result:
        """The method's result.

        Args:
            predict: images on the task's device -> joint logits.
            modules: all that it adds or changes.
            images: how many images it read; by default all.
            extra: as in ``Result``.
        """
        seconds = clock() - self.started

        @torch.no_grad()
        def on_device(images: Tensor) -> Tensor:
            return predict(images.to(self.device)).float().cpu()

        tensors = {id(t): t for module in modules for t in (*module.parameters(), *module.buffers())}.values()
        everything = len(self.task.new) + (len(self.task.old) if self.task.old is not None else 0)
        example = self.task.new[0][0][None].to(self.device)
        return Result(
            on_device,
            params=sum(tensor.numel() for tensor in tensors if isinstance(tensor, nn.Parameter)),
            macs=macs(on_device, example) - macs(self.networks.target, example),
            bytes=sum(tensor.numel() * tensor.element_size() for tensor in tensors),
            images=everything if images is None else images,
            seconds=seconds,
            extra=extra,
        )


class Joined(Dataset):
    """Several data sets as one, each with its labels moved up by its own number."""

    def __init__(self, *parts: tuple[Dataset, int]) -> None:
        """``parts`` are (data set of (image, label), shift)."""
        self.parts = parts
        self.places = [(part, index) for part, (dataset, _) in enumerate(parts) for index in range(len(dataset))]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        part, place = self.places[index]
        dataset, shift = self.parts[part]
        image, label = dataset[place]
        return image, int(label) + shift

    def batch(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Images and labels at ``positions``, from each part together: what ``training.train`` asks for."""
        places = [self.places[position] for position in positions.tolist()]
        images, labels = [], []
        for part, (dataset, shift) in enumerate(self.parts):
            chosen = [place for owner, place in places if owner == part]
            if chosen:
                taken = dataset.batch(chosen) if hasattr(dataset, "batch") else _stacked(dataset, chosen)
                images.append(taken[0])
                labels.append(taken[1] + shift)
        return torch.cat(images), torch.cat(labels)


def held_out(dataset: Dataset, seed: int) -> tuple[Subset, Subset]:
    """A tenth of every class, at least one image, and before it the rest; drawn by ``seed``."""
    rng = np.random.RandomState(seed)
    fit, held = [], []
    for members in _by_class(dataset):
        members = rng.permutation(members).tolist()
        most = max(1, round(HELD_OUT * len(members)))
        held += members[:most]
        fit += members[most:]
    return Subset(dataset, sorted(fit)), Subset(dataset, sorted(held))


def few_of_each(dataset: Dataset, most: int, seed: int) -> Subset:
    """At most so many images of each class, drawn by ``seed``."""
    rng = np.random.RandomState(seed)
    chosen = [index for members in _by_class(dataset) for index in rng.permutation(members)[:most].tolist()]
    return Subset(dataset, sorted(chosen))


def gated(gate: Gate, said: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
    """Joint logits by our fusion; ``said`` is (target's logits, logits of the cloned classes, reject, features)."""
    return torch.cat([said[0], new_logits(said[0], said[1], gate(*said))], 1)


def scratch(model: nn.Module) -> Recipe:
    """How to train random weights: attention and LayerNorm do not learn with the settings of a residual network."""
    normalised = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    return ("sgd", 0.2, 5e-4) if normalised else ("adamw", 2e-3, 0.05)


def _by_class(dataset: Dataset) -> list[list[int]]:
    members = defaultdict(list)
    for index, label in enumerate(_labels_of(dataset)):
        members[label].append(index)
    return [members[label] for label in sorted(members)]


def _labels_of(dataset: Dataset) -> list[int]:
    if isinstance(dataset, Subset):
        labels = _labels_of(dataset.dataset)
        return [labels[index] for index in dataset.indices]
    return labels_of(dataset)


def _stacked(dataset: Dataset, places: list[int]) -> tuple[Tensor, Tensor]:
    images, labels = zip(*(dataset[place] for place in places), strict=True)
    return torch.stack(images), torch.tensor([int(label) for label in labels])
