"""A source and a target that know different classes of one data set, both trained here, and the tasks between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from torch import nn

from recipes.frame import networks, protocol
from recipes.frame.reading import Raw, TensorImages
from recipes.frame.task import FEW, Task
from recipes.frame.training import seconds, train

UNRELATED = 5000
_SOURCE_SEED = 10_000  # added to the seed of the target


@dataclass(frozen=True, eq=False)
class Pair:
    """Which networks are trained, and on what.

    Attributes:
        benchmark: its name.
        train: training images of all classes.
        test: test images of all classes.
        target_classes: number of classes of the target; the source has the others.
        mean: of the training images.
        std: of the training images.
        unrelated: images of neither side's classes, for R2; None where there are none.
        source: name of the source in ``networks.NETWORKS``.
        target: name of the target there.
        epochs: passes of the training.
        flip: whether a mirrored image is one of the same class.
    """

    benchmark: str
    train: Raw
    test: Raw
    target_classes: int
    mean: Sequence[float]
    std: Sequence[float]
    unrelated: Raw | None = None
    source: str = "resnet14"
    target: str = "resnet14"
    epochs: int = 15
    flip: bool = True

    def order(self, seed: int) -> tuple[list[int], list[int]]:
        """Classes of the target and classes of the source."""
        order = np.random.RandomState(seed).permutation(len(self.train.classes)).tolist()
        return order[: self.target_classes], order[self.target_classes :]

    def images(self, raw: Raw) -> TensorImages:
        """All of ``raw``, normalised as both networks take them."""
        return TensorImages.of(raw, self.mean, self.std)

    def untrained(self, network: str, num_classes: int, seed: int) -> nn.Module:
        """A network with random weights."""
        channels = self.train.images.shape[1]
        return networks.build(network, num_classes, seed, in_chans=channels, mean=self.mean, std=self.std)

    @lru_cache(maxsize=2)  # noqa: B019 - a benchmark makes one pair, which lives as long as it runs
    def trained(self, seed: int, device: str | None = None) -> tuple[nn.Module, nn.Module]:
        """Source and target."""
        target_classes, source_classes = self.order(seed)
        models = []
        for role, network, classes, own in (
            ("source", self.source, source_classes, seed + _SOURCE_SEED),
            ("target", self.target, target_classes, seed),
        ):
            model = self.untrained(network, len(classes), own)
            data = self.images(self.train).of_classes(classes)
            name = f"{self.benchmark}-{role}-{network}-{seed}"
            # attention does not learn with the settings of a residual network
            options = {"optimizer": "adamw", "learning_rate": 2e-3, "weight_decay": 0.05} if _modern(network) else {}
            models.append(train(model, data, self.epochs, own, flip=self.flip, name=name, device=device, **options))
        return models[0], models[1]

    def accuracies(self, seed: int, device: str | None = None) -> str:
        """One line on what the two networks know."""
        parts = []
        for role, model, classes in zip(
            ("target", "source"), reversed(self.trained(seed, device)), self.order(seed), strict=True
        ):
            logits, labels = protocol.logits_of(model, self.images(self.test).of_classes(classes))
            right = (logits.argmax(1) == labels).float().mean()
            parts.append(f"{role} {100 * right:.1f} % ({seconds(model):.0f} s)")
        return f"{self.benchmark} seed {seed}: {', '.join(parts)}"

    def task(self, seed: int, regime: str, count: int, device: str | None = None) -> Task:
        """The task of cloning the first ``count`` classes of the source.

        Raises:
            ValueError: R2 was asked for where there are no unrelated images.
        """
        source, target = self.trained(seed, device)
        target_classes, source_classes = self.order(seed)
        training, test = self.images(self.train), self.images(self.test)
        return Task(
            benchmark=self.benchmark,
            seed=seed,
            regime=regime,
            source=source,
            target=target,
            labels=[self.train.classes[label] for label in source_classes[:count]],
            rows=list(range(count)),
            new=training.of_classes(source_classes[:count]),
            old=self._old(training.of_classes(target_classes), seed, regime),
            new_test=test.of_classes(source_classes[:count]),
            old_test=test.of_classes(target_classes),
            untrained=lambda num_classes: self.untrained(self.target, num_classes, seed),
            epochs=self.epochs,
            source_args=networks.source_args(self.source),
            device=device,
        )

    def _old(self, known: TensorImages, seed: int, regime: str) -> TensorImages | None:
        if regime == "R2":
            if self.unrelated is None:
                raise ValueError(f"{self.benchmark} has no unrelated images, so no regime R2")
            others = self.images(self.unrelated)
            chosen = np.random.RandomState(seed).permutation(len(others))[:UNRELATED]
            return others.subset(chosen).relabelled(-1)
        return {"R1": None, "R3": known.few(FEW, seed), "R4": known}[regime]


def _modern(network: str) -> bool:
    return network in ("vit", "convnext")
