"""The method beside its baselines on one benchmark: accuracy of old and new classes, locality, size and time.

python recipes/method/benchmark.py digits --seeds 0 --regime R4 --methods clone --json digits.json
python recipes/method/benchmark.py cifar10 --data DIR --json cifar10.json
"""

from __future__ import annotations

import argparse
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from recipes.frame import protocol
from recipes.frame.pairs import Pair
from recipes.frame.reading import CIFAR_MEAN, CIFAR_STD, MNIST_MEAN, MNIST_STD, Raw, cifar10, cifar100, mnist
from recipes.frame.task import REGIMES, Task
from recipes.method import digits, real

Reader = Callable[[str], tuple[Raw, Raw]]


def halves(
    name: str,
    read: Reader,
    *,
    target_classes: int,
    clone: tuple[int, tuple[int, ...]],
    epochs: tuple[int, int],
    networks: tuple[str, str] = ("resnet14", "resnet18"),
    unrelated: Reader | None = None,
    **options: Any,
) -> protocol.Benchmark:
    """A data set whose classes are shared out between a target and a source.

    Args:
        name: as in the tables.
        read: the data set.
        target_classes: how many of them the target knows.
        clone: how many of the source's are cloned, and the numbers that may be asked for.
        epochs: passes of the training, in the preset quick and in full.
        networks: what is trained in either preset, both as source and as target.
        unrelated: a data set of other classes, for R2.
        options: more for ``Pair``.
    """

    @lru_cache(maxsize=1)
    def pair(data: str, preset: str) -> Pair:
        size = ("quick", "full").index(preset)
        others = unrelated(data)[0] if unrelated else None
        both = {"source": networks[size], "target": networks[size], "epochs": epochs[size]}
        return Pair(name, *read(data), target_classes=target_classes, unrelated=others, **both, **options)

    def make(arguments: Namespace, seed: int, regime: str) -> Task:
        return pair(arguments.data, arguments.preset).task(seed, regime, arguments.clone, arguments.device)

    default, choices = clone
    return protocol.Benchmark(
        name=name,
        make=make,
        options={"--clone": {"type": int, "default": default, "choices": choices, "help": "classes to clone"}},
        describe=lambda arguments, seed: pair(arguments.data, arguments.preset).accuracies(seed, arguments.device),
        regimes=tuple(regime for regime in REGIMES if unrelated or regime != "R2"),
    )


CIFAR = {"mean": CIFAR_MEAN, "std": CIFAR_STD}
MNIST = {"mean": MNIST_MEAN, "std": MNIST_STD, "flip": False, "networks": ("resnet14", "resnet14")}
BENCHMARKS = {
    "cifar10": halves(
        "C10", cifar10, target_classes=5, clone=(5, (1, 3, 5)), epochs=(15, 60), unrelated=cifar100, **CIFAR
    ),
    "cifar100": halves(
        "C100", cifar100, target_classes=50, clone=(20, (10, 20, 50)), epochs=(12, 60), unrelated=cifar10, **CIFAR
    ),
    "mnist": halves("MNIST", mnist, target_classes=5, clone=(3, (1, 3, 5)), epochs=(5, 20), **MNIST),
    "digits": digits.BENCHMARK,
    "real": real.BENCHMARK,
}


def main(argv: Sequence[str] | None = None) -> list[dict]:
    """Run the benchmark that is named first; returns its rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    named = parser.add_subparsers(dest="benchmark", required=True)
    for name, one in BENCHMARKS.items():
        protocol.add_options(named.add_parser(name, description=f"Benchmark {one.name}."), one)
    arguments = parser.parse_args(argv)
    return protocol.carried_out(BENCHMARKS[arguments.benchmark], arguments)


if __name__ == "__main__":
    main()
