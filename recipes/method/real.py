"""Two MobileNetV2 trained on ImageNet by others: one that lost ten breeds of dogs gets them back from the other.

The target's only images are those of ten easy classes (Imagenette), all of its other 980 classes are never shown.
"""

from __future__ import annotations

from argparse import Namespace
from functools import lru_cache
from pathlib import Path

from timm.data import ImageNetInfo
from torch import nn

from recipes.frame import networks, protocol, reading
from recipes.frame.reading import HALF, TensorImages
from recipes.frame.task import FEW, Task

# the ten classes of Imagenette; the other ten among the photos are the breeds of Imagewoof
_FIRST = ("n01440764", "n02102040", "n02979186", "n03000684", "n03028079")
IMAGENETTE = {*_FIRST, "n03394916", "n03417042", "n03425413", "n03445777", "n03888257"}


@lru_cache(maxsize=1)
def pair(data: str) -> tuple[nn.Module, nn.Module, list[str]]:
    """Source (1,000 classes), target (990 classes), and the WordNet ids of the target's classes."""
    wnids = ImageNetInfo("imagenet-1k").label_names()
    breeds = set(cloned(data))
    keep = [index for index, wnid in enumerate(wnids) if wnid not in breeds]
    weights = Path(data) / "weights"
    source = networks.mobilenetv2_q8(weights / "mobilenetv2_100_in1k_tf1_q8.npz")
    target = networks.mobilenetv2_q8(weights / "mobilenetv2_100_in1k_tf2_q8.npz", keep)
    return source, target, [wnids[index] for index in keep]


def cloned(data: str) -> dict[str, int]:
    """WordNet id -> ImageNet class, of the ten breeds among the photos."""
    wnids = ImageNetInfo("imagenet-1k").label_names()
    indices = {wnid: wnids.index(wnid) for wnid in reading.photos(data)[0].classes}
    return {wnid: index for wnid, index in indices.items() if wnid not in IMAGENETTE}


def make(arguments: Namespace, seed: int, regime: str) -> Task:
    """One task."""
    source, target, kept = pair(arguments.data)
    breeds = cloned(arguments.data)
    train, test = (TensorImages.of(raw, HALF, HALF) for raw in reading.photos(arguments.data))
    names = reading.photos(arguments.data)[0].classes
    new = {names.index(wnid): position for position, wnid in enumerate(breeds)}
    old = {label: kept.index(wnid) for label, wnid in enumerate(names) if wnid not in breeds}
    known = train.relabelled(old)
    return Task(
        benchmark="REAL",
        seed=seed,
        regime=regime,
        source=source,
        target=target,
        labels=list(breeds),
        rows=list(breeds.values()),
        new=train.relabelled(new),
        old={"R1": None, "R3": known.few(FEW, seed), "R4": known}[regime],
        new_test=test.relabelled(new),
        old_test=test.relabelled(old),
        source_args={"pad_type": "same"},
        device=arguments.device,
        held_out=0.15,  # of 800 photos enough to calibrate one in a hundred
    )


def describe(arguments: Namespace, seed: int) -> str:
    """How good the two are."""
    task = make(arguments, seed, "R4")
    parts = []
    for role, model, images, labels in (
        ("target", task.target, task.old_test, None),
        ("source", task.source, task.new_test, task.rows),
    ):
        logits, classes = protocol.logits_of(model, images)
        right = logits.argmax(1) == (classes if labels is None else classes.new_tensor(labels)[classes])
        parts.append(f"{role} {100 * right.float().mean():.1f} % among all of its {logits.shape[1]} classes")
    return f"REAL: {', '.join(parts)}"


BENCHMARK = protocol.Benchmark(name="REAL", make=make, describe=describe, seeds=(1993,), regimes=("R1", "R3", "R4"))
