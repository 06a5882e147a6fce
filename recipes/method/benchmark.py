"""The method beside its baselines on one benchmark: accuracy of old and new classes, locality, size and time.

python recipes/method/benchmark.py digits --seeds 0 --regime R4 --methods clone --json digits.json
python recipes/method/benchmark.py cifar10 --data DIR --json cifar10.json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from recipes.frame import protocol, reading
from recipes.frame.pairs import Pair, benchmark
from recipes.frame.reading import CIFAR_MEAN, CIFAR_STD, MNIST_MEAN, MNIST_STD, Raw
from recipes.frame.task import REGIMES
from recipes.method import digits, real

Reader = Callable[[str], tuple[Raw, Raw]]


@dataclass(frozen=True)
class Halves:
    """A data set whose classes are shared out between a target and a source.

    Attributes:
        name: as in the tables.
        read: the data set.
        target_classes: how many of them the target knows.
        clone: how many of the source's are cloned, and the numbers that may be asked for.
        epochs: passes of the training, in the preset quick and in full.
        networks: what is trained in either preset, both as source and as target.
        unrelated: a data set of other classes, for R2.
        mean: of the images.
        std: of the images.
        flip: whether a mirrored image is one of the same class.
    """

    name: str
    read: Reader
    target_classes: int
    clone: tuple[int, tuple[int, ...]]
    epochs: tuple[int, int]
    networks: tuple[str, str] = ("resnet14", "resnet18")
    unrelated: Reader | None = None
    mean: Sequence[float] = CIFAR_MEAN
    std: Sequence[float] = CIFAR_STD
    flip: bool = True

    @lru_cache(maxsize=1)  # noqa: B019 - there are as many as the table has, for as long as the program runs
    def pair(self, data: str, preset: str) -> Pair:
        """The networks, and what they are trained on."""
        size = ("quick", "full").index(preset)
        train, test = self.read(data)
        return Pair(
            benchmark=self.name,
            train=train,
            test=test,
            target_classes=self.target_classes,
            mean=self.mean,
            std=self.std,
            unrelated=self.unrelated and self.unrelated(data)[0],
            source=self.networks[size],
            target=self.networks[size],
            epochs=self.epochs[size],
            flip=self.flip,
        )

    def benchmark(self) -> protocol.Benchmark:
        """Its command line."""
        regimes = tuple(regime for regime in REGIMES if self.unrelated or regime != "R2")
        return benchmark(self.name, self.pair, self.clone, regimes)


HALVES = {
    "cifar10": Halves("C10", reading.cifar10, 5, (5, (1, 3, 5)), (15, 60), unrelated=reading.cifar100),
    "cifar100": Halves("C100", reading.cifar100, 50, (20, (10, 20, 50)), (12, 60), unrelated=reading.cifar10),
    "mnist": Halves(
        *("MNIST", reading.mnist, 5, (3, (1, 3, 5)), (5, 20), ("resnet14", "resnet14")),
        **{"mean": MNIST_MEAN, "std": MNIST_STD, "flip": False},
    ),
}
BENCHMARKS = {
    **{name: halves.benchmark() for name, halves in HALVES.items()},
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
