"""Clones across families of networks, and of two sources in one target, on scikit-learn's digits.

The source knows the digits 5 to 9, the target 0 to 4. Then a target receives 5, 6, 7 from one source and 8, 9 from another;
both are attached together, and each is removed while the other stays. All is measured on held-out digits that nobody trained
or chose on.

python recipes/architectures/families.py --seeds 0 1 2 --json families.json
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2]))

import pnc_hub
from pnc_hub.cli import demo
from pnc_hub.hub.clone import Clone
from recipes.frame import rehearsal, training
from recipes.frame.networks import NETWORKS
from recipes.frame.rows import Rows, markdown, over_seeds, points
from recipes.method import digits

# architecture and constructor arguments, highest learning rate and passes of its training
FAMILIES: dict[str, tuple[str, dict[str, Any], float, int]] = {
    "ResNet": ("resnet18", demo.SOURCE_ARGS, 3e-3, 20),
    "ConvNeXt": ("convnext_atto", demo.TARGET_ARGS, 3e-3, 20),
    "MobileNetV2": (*NETWORKS["mobilenet"], 3e-3, 20),
    "ViT": (
        "vit_tiny_patch16_224",
        {"img_size": demo.SIDE, "patch_size": 8, "embed_dim": 96, "depth": 4, "num_heads": 3},
        1e-3,
        40,
    ),
}
# source, target
PAIRS = (("ResNet", "MobileNetV2"), ("ConvNeXt", "ResNet"), ("ViT", "ResNet"), ("ResNet", "ViT"))
# two sources and what each knows, and the target
SEVERAL = (("ResNet", (5, 6, 7)), ("ViT", (8, 9)))
SEVERAL_TARGET = "ConvNeXt"
EPOCHS = 10
OLD, NEW = tuple(demo.TARGET_DIGITS), tuple(demo.SOURCE_DIGITS)
PAIR_TITLES = (
    "source | target | seed | insertion -> cut | target alone | Ori | source alone | Tar | AUROC | kept | seconds"
)
SEVERAL_TITLES = (
    "seed | target alone | Ori, both | source | clones | source alone | Ori, it | Tar, it | Tar, both | kept | bits"
)


@lru_cache(maxsize=8)
def network(family: str, known: tuple[int, ...], seed: int) -> nn.Module:
    """A network of ``FAMILIES`` that knows the digits ``known``, in eval mode; remembered on disk."""
    name, arguments, rate, epochs = FAMILIES[family]
    overlay = {"input_size": (1, demo.SIDE, demo.SIDE), "mean": (0.5,), "std": (0.5,)}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = timm.create_model(name, num_classes=len(known), in_chans=1, pretrained_cfg_overlay=overlay, **arguments)
    settings = {"optimizer": "adamw", "learning_rate": rate, "weight_decay": 0.05, "batch_size": 48}
    shown = demo.Digits(known, seed, train=True)
    return training.train(model, shown, epochs, seed, **settings, flip=False, half=False, name=f"digits-{family}").cpu()


def one(source: str, target: str, seed: int, epochs: float) -> dict:
    """The row of a pair: what is lost on either side."""
    knows, receives = network(source, NEW, seed), network(target, OLD, seed)
    clone, seconds = learned(source, NEW, target, seed, epochs)
    return {
        "insertion": clone.report["insertion"],
        "cut": clone.report["cut"],
        **digits.measured(clone, knows, receives, seed),
        "kept": clone.report["kept_parameters"] / clone.report["source_parameters"],
        "seconds": seconds,
    }


def learned(source: str, known: tuple[int, ...], target: str, seed: int, epochs: float) -> tuple[Clone, float]:
    """A clone of all that a source of the digits ``known`` knows, and the seconds that it took."""
    networks = network(source, known, seed), network(target, OLD, seed)
    return digits.cloned(*networks, seed, known, source_args=FAMILIES[source][1], universal=False, epochs=epochs)


def several(seed: int, epochs: float) -> dict:
    """The row of two sources in one target: alone, together, and with either removed from under the other."""
    target = network(SEVERAL_TARGET, OLD, seed)
    shown = [demo.Digits(known, seed, train=False) for known in (OLD, NEW)]
    truth = torch.tensor(
        [known[label] for known, part in zip((OLD, NEW), shown, strict=True) for label in part.targets]
    )
    before = logits(target, *shown)
    clones = [learned(source, known, SEVERAL_TARGET, seed, epochs) for source, known in SEVERAL]
    alone = []
    for clone, _ in clones:
        with pnc_hub.attach(target, clone):
            alone.append(logits(target, *shown))
    for removed in (0, 1):
        attached = [pnc_hub.attach(target, clone) for clone, _ in clones]
        together = logits(target, *shown)
        attached[removed].detach()
        same_bits(logits(target, *shown), alone[1 - removed], f"{SEVERAL[1 - removed][0]} after the other was removed")
        attached[1 - removed].detach()
        same_bits(logits(target, *shown), before, "the target after both were removed")
    same_bits(together[:, : len(OLD)], before, "the target's own logits with both attached")
    row: dict[str, Any] = {
        "target_alone": share(before, truth, OLD, OLD),
        "ori": share(together, truth, OLD, OLD + NEW),
        "seconds": sum(seconds for _, seconds in clones),
        "bit_for_bit": True,  # all the comparisons above hold, or there would be no row
    }
    for place, (source, known) in enumerate(SEVERAL):
        report = clones[place][0].report
        row[f"source_{place}"] = {
            "source": source,
            "digits": list(known),
            "insertion": report["insertion"],
            "cut": report["cut"],
            "source_alone": demo._accuracy(network(source, known, seed), demo.Digits(known, seed, train=False)),
            "tar": share(together, truth, known, OLD + NEW),
            "ori_alone": share(alone[place], truth, OLD, OLD + known),
            "tar_alone": share(alone[place], truth, known, OLD + known),
            "kept": report["kept_parameters"] / report["source_parameters"],
        }
    return row


@torch.inference_mode()
def logits(model: nn.Module, *shown: demo.Digits) -> Tensor:
    """[N, C] for all images of ``shown``, in order."""
    return torch.cat([model(images) for part in shown for images in part.images.split(128)])


def same_bits(answers: Tensor, expected: Tensor, what: str) -> None:
    """Raise an ``AssertionError`` if two sets of logits are not equal bit for bit."""
    if not torch.equal(answers, expected):
        raise AssertionError(f"{what}: logits differ from those of it alone by {(answers - expected).abs().max():g}")


def share(joint: Tensor, truth: Tensor, known: Sequence[int], columns: Sequence[int]) -> float:
    """Accuracy on those images whose digit in ``truth`` [N] is one of ``known``; ``columns`` are the digits of the logits."""
    right = torch.tensor(columns)[joint.argmax(1)] == truth
    return float(right[torch.isin(truth, torch.tensor(known))].float().mean())


def table(rows: Sequence[dict]) -> str:
    """Pairs, then two sources in one target, as Markdown; accuracies in percent."""
    pairs = [
        [
            *(row["source"], row["target"], row["seed"], f"{row['insertion']} -> {row['cut']}"),
            *points(row["target_alone"], row["ori"], row["source_alone"], row["tar"]),
            *(f"{row['auroc']:.4f}", f"{row['kept']:.0%}", f"{row['seconds']:.0f}"),
        ]
        for row in rows
        if row["target"] != "several"
    ]
    together = [
        [
            row["seed"],
            *points(row["target_alone"], row["ori"]),
            *(each["source"], ", ".join(map(str, each["digits"]))),
            *points(each["source_alone"], each["ori_alone"], each["tar_alone"], each["tar"]),
            *(f"{each['kept']:.0%}", "equal" if row["bit_for_bit"] else "DIFFERENT"),
        ]
        for row in rows
        if row["target"] == "several"
        for each in (row["source_0"], row["source_1"])
    ]
    return "\n".join(
        [
            markdown(PAIR_TITLES, pairs),
            f"\nTwo sources in one {SEVERAL_TARGET}; bits: with either removed, the other's logits are those of it being"
            " attached alone, and with both removed the target's are its own, bit for bit.\n",
            markdown(SEVERAL_TITLES, together),
        ]
    )


def rows_of(rows: Rows, seed: int, epochs: float) -> list[dict]:
    """Those of one seed; what the file has is not measured again."""
    shown = []
    for source, target in (*rehearsal.few(PAIRS), ("several", "several")):
        settings = {"source": source, "target": target, "seed": seed, "epochs": epochs}
        measured = several if target == "several" else partial(one, source, target)
        shown.append(rows.of(settings, partial(measured, seed, epochs)))
    return shown


if __name__ == "__main__":
    over_seeds(__doc__, rows_of, table, seeds=(0, 1, 2), epochs=EPOCHS)
