"""The demo's networks and digits over several seeds: what is lost on either side, at which size."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import timm
import torch
from torch import nn
from torch.utils.data import DataLoader

import pnc_hub
from pnc_hub.cli import demo
from pnc_hub.cloning.measuring.evaluate import measure
from pnc_hub.hub.clone import Clone
from recipes.frame import protocol, rehearsal
from recipes.frame.reading import TensorImages
from recipes.frame.task import FEW, Task, clock

MEAN = STD = (0.5,)


@lru_cache(maxsize=1)
def pair(seed: int) -> tuple[nn.Module, nn.Module]:
    """A ResNet that knows the digits 5 to 9 and a ConvNeXt that knows 0 to 4, trained as in the demo."""
    short = {"epochs": rehearsal.passes(demo.EPOCHS)}
    source = demo._trained("resnet18", demo.SOURCE_DIGITS, seed, progress=False, **short, **demo.SOURCE_ARGS)
    return source, demo._trained("convnext_atto", demo.TARGET_DIGITS, seed, progress=False, **short, **demo.TARGET_ARGS)


def cloned(
    source: nn.Module,
    target: nn.Module,
    seed: int,
    digits: Sequence[int] = demo.SOURCE_DIGITS,
    *,
    source_args: dict[str, Any] = demo.SOURCE_ARGS,
    **options: Any,
) -> tuple[Clone, float]:
    """All that a source of ``digits`` knows, cloned into a target of the digits 0 to 4; and how many seconds that took."""
    started = clock()
    clone = pnc_hub.clone(
        source,
        target,
        {str(digit): position for position, digit in enumerate(digits)},
        demo.Digits(digits, seed, train=True),
        target_data=demo.Digits(demo.TARGET_DIGITS, seed, train=True),
        source_args=source_args,
        flip=False,
        seed=seed,
        progress=False,
        **options,
    )
    return clone, round(clock() - started, 1)


def measured(
    clone: Clone, source: nn.Module, target: nn.Module, seed: int, digits: Sequence[int] = demo.SOURCE_DIGITS
) -> dict[str, float]:
    """What is lost on either side, on held-out digits."""
    new, old = (demo.Digits(known, seed, train=False) for known in (digits, demo.TARGET_DIGITS))
    observed = measure(target, clone, DataLoader(new, 128), DataLoader(old, 128))
    if not observed["restored"]:
        raise AssertionError(f"{type(target).__name__} is not what it was before the clone came")
    shares = {name: observed[name] for name in ("target_alone", "ori", "tar", "avg_u", "diverted", "auroc")}
    return shares | {"source_alone": demo._accuracy(source, new)}


def images(digits: range | tuple[int, ...], seed: int, train: bool) -> TensorImages:
    """The demo's images of ``digits``, labelled by position."""
    shown = demo.Digits(digits, seed, train)
    # the demo's are in [-1, 1] and already enlarged
    stored = (shown.images + 1).mul(127.5).round().to(torch.uint8)
    return TensorImages(stored, shown.targets, MEAN, STD)


def untrained(num_classes: int) -> nn.Module:
    """The demo's target with random weights."""
    overlay = {"input_size": (1, demo.SIDE, demo.SIDE), "mean": MEAN, "std": STD}
    return timm.create_model(
        "convnext_atto", num_classes=num_classes, in_chans=1, pretrained_cfg_overlay=overlay, **demo.TARGET_ARGS
    )


def make(arguments: Namespace, seed: int, regime: str) -> Task:
    """One task."""
    source, target = pair(seed)
    cloned = demo.CLONED[arguments.clone]
    known = images(demo.TARGET_DIGITS, seed, train=True)
    return Task(
        benchmark="digits",
        seed=seed,
        regime=regime,
        source=source,
        target=target,
        labels=[str(digit) for digit in cloned],
        rows=[demo.SOURCE_DIGITS.index(digit) for digit in cloned],
        new=images(cloned, seed, train=True),
        old={"R1": None, "R3": known.few(FEW, seed), "R4": known}[regime],
        new_test=images(cloned, seed, train=False),
        old_test=images(demo.TARGET_DIGITS, seed, train=False),
        untrained=untrained,
        epochs=20,
        source_args=demo.SOURCE_ARGS,
        device=arguments.device,
        held_out=0.1,
    )


BENCHMARK = protocol.Benchmark(
    name="digits",
    make=make,
    options={"--clone": {"choices": list(demo.CLONED), "default": "five", "help": "5, 6, 7, 8, 9 or 5, 7, 9"}},
    seeds=(0, 1, 2, 3, 4),
    regimes=("R1", "R3", "R4"),
    needs_data=False,
)
