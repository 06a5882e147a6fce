"""CIFAR-10: a target that knows five classes, a source that knows the other five.

python recipes/cifar10.py --data DIR --json cifar10.json
"""

from __future__ import annotations

from functools import lru_cache

import protocol
import reading
from pairs import Pair, benchmark


@lru_cache(maxsize=1)
def pair(data: str, preset: str) -> Pair:
    """The networks of this benchmark."""
    quick = preset == "quick"
    return Pair(
        benchmark="C10",
        train=reading.cifar10(data)[0],
        test=reading.cifar10(data)[1],
        target_classes=5,
        mean=reading.CIFAR_MEAN,
        std=reading.CIFAR_STD,
        unrelated=reading.cifar100(data)[0],
        source="resnet14" if quick else "resnet18",
        target="resnet14" if quick else "resnet18",
        epochs=15 if quick else 60,
    )


BENCHMARK = benchmark("C10", pair, clone=(5, (1, 3, 5)))

if __name__ == "__main__":
    protocol.main(BENCHMARK)
