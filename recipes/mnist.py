"""MNIST, from the original idx files: a target that knows five digits, a source that knows the other five.

python recipes/mnist.py --data DIR --json mnist.json
"""

from __future__ import annotations

from functools import lru_cache

import protocol
import reading
from pairs import Pair, benchmark


@lru_cache(maxsize=1)
def pair(data: str, preset: str) -> Pair:
    """The networks of this benchmark."""
    train, test = reading.mnist(data)
    return Pair(
        benchmark="MNIST",
        train=train,
        test=test,
        target_classes=5,
        mean=reading.MNIST_MEAN,
        std=reading.MNIST_STD,
        epochs=5 if preset == "quick" else 20,
        flip=False,
    )


BENCHMARK = benchmark("MNIST", pair, clone=(3, (1, 3, 5)), regimes=("R1", "R3", "R4"))

if __name__ == "__main__":
    protocol.main(BENCHMARK)
