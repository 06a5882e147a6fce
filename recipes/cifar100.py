"""CIFAR-100: a target that knows fifty classes, a source that knows the other fifty.

python recipes/cifar100.py --data DIR --json cifar100.json
"""

from __future__ import annotations

from argparse import Namespace
from functools import lru_cache

import protocol
import reading
from pairs import Pair
from task import Task


@lru_cache(maxsize=1)
def pair(data: str, preset: str) -> Pair:
    """The networks of this benchmark."""
    quick = preset == "quick"
    return Pair(
        benchmark="C100",
        train=reading.cifar100(data)[0],
        test=reading.cifar100(data)[1],
        target_classes=50,
        mean=reading.CIFAR_MEAN,
        std=reading.CIFAR_STD,
        unrelated=reading.cifar10(data)[0],
        source="resnet14" if quick else "resnet18",
        target="resnet14" if quick else "resnet18",
        epochs=12 if quick else 60,
    )


def make(arguments: Namespace, seed: int, regime: str) -> Task:
    """One task."""
    return pair(arguments.data, arguments.preset).task(seed, regime, arguments.clone, arguments.device)


BENCHMARK = protocol.Benchmark(
    name="C100",
    make=make,
    options={"--clone": {"type": int, "default": 20, "choices": (10, 20, 50), "help": "classes to clone"}},
    describe=lambda arguments, seed: pair(arguments.data, arguments.preset).accuracies(seed, arguments.device),
)

if __name__ == "__main__":
    protocol.main(BENCHMARK)
