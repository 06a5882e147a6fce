"""CIFAR-100: a target that knows fifty classes, a source that knows the other fifty.

python recipes/cifar100.py --data DIR --json cifar100.json
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


BENCHMARK = benchmark("C100", pair, clone=(20, (10, 20, 50)))

if __name__ == "__main__":
    protocol.main(BENCHMARK)
