"""Clones across families of networks, and of two sources in one target, on scikit-learn's digits.

The source knows the digits 5 to 9, the target 0 to 4. Then a target receives 5, 6, 7 from one source and 8, 9 from another;
both are attached together, and each is removed while the other stays. All is measured on held-out digits that nobody trained
or chose on.

python recipes/architectures/families.py --seeds 0 1 2 --json families.json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).parents[2]))

import pnc_hub
from pnc_hub.cli import demo
from pnc_hub.cloning.measuring.evaluate import accuracy, measure
from pnc_hub.hub.clone import Clone
from recipes.frame import training
from recipes.frame.networks import NETWORKS
from recipes.frame.rows import Rows
from recipes.frame.task import clock

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


@lru_cache(maxsize=8)
def network(family: str, digits: tuple[int, ...], seed: int) -> nn.Module:
    """A network of ``FAMILIES`` that knows ``digits``, in eval mode; remembered on disk."""
    name, arguments, rate, epochs = FAMILIES[family]
    overlay = {"input_size": (1, demo.SIDE, demo.SIDE), "mean": (0.5,), "std": (0.5,)}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = timm.create_model(
            name, num_classes=len(digits), in_chans=1, pretrained_cfg_overlay=overlay, **arguments
        )
    settings = {"optimizer": "adamw", "learning_rate": rate, "weight_decay": 0.05, "batch_size": 48}
    shown = demo.Digits(digits, seed, train=True)
    return training.train(model, shown, epochs, seed, **settings, flip=False, half=False, name=f"digits-{family}").cpu()


def learned(source: str, digits: tuple[int, ...], target: str, seed: int, epochs: float) -> Clone:
    """All that a source of ``digits`` knows, cloned into a target of the digits 0 to 4."""
    return pnc_hub.clone(
        network(source, digits, seed),
        network(target, OLD, seed),
        {str(digit): position for position, digit in enumerate(digits)},
        demo.Digits(digits, seed, train=True),
        target_data=demo.Digits(OLD, seed, train=True),
        source_args=FAMILIES[source][1],
        universal=False,
        flip=False,
        epochs=epochs,
        seed=seed,
        progress=False,
    )


def one(source: str, target: str, seed: int, epochs: float) -> dict:
    """The row of a pair: what is lost on either side."""
    knows, receives = network(source, NEW, seed), network(target, OLD, seed)
    started = clock()
    clone = learned(source, NEW, target, seed, epochs)
    seconds = clock() - started
    new, old = (demo.Digits(digits, seed, train=False) for digits in (NEW, OLD))
    found = measure(receives, clone, DataLoader(new, 128), DataLoader(old, 128))
    if not found["restored"]:
        raise AssertionError(f"{target} is not what it was before the clone of {source}")
    return {
        "insertion": clone.report["insertion"],
        "cut": clone.report["cut"],
        **{name: found[name] for name in ("target_alone", "ori", "tar", "diverted", "auroc")},
        "source_alone": accuracy(logits(knows, new), torch.tensor(new.targets)),
        "kept": clone.report["kept_parameters"] / clone.report["source_parameters"],
        "seconds": round(seconds, 1),
    }


def several(seed: int, epochs: float) -> dict:
    """The row of two sources in one target: alone, together, and with either removed from under the other."""
    target = network(SEVERAL_TARGET, OLD, seed)
    shown = [demo.Digits(digits, seed, train=False) for digits in (OLD, NEW)]
    truth = torch.tensor(
        [digits[label] for digits, part in zip((OLD, NEW), shown, strict=True) for label in part.targets]
    )
    before = logits(target, *shown)
    sources = [network(source, digits, seed) for source, digits in SEVERAL]  # their training is not what is timed
    started = clock()
    clones = [learned(source, digits, SEVERAL_TARGET, seed, epochs) for source, digits in SEVERAL]
    seconds = clock() - started
    alone = []
    for clone in clones:
        with pnc_hub.attach(target, clone):
            alone.append(logits(target, *shown))
    together = None
    for removed in (0, 1):
        attached = [pnc_hub.attach(target, clone) for clone in clones]
        together = logits(target, *shown)
        attached[removed].detach()
        same_bits(logits(target, *shown), alone[1 - removed], f"{SEVERAL[1 - removed][0]} after the other was removed")
        attached[1 - removed].detach()
        same_bits(logits(target, *shown), before, "the target after both were removed")
    same_bits(together[:, : len(OLD)], before, "the target's own logits with both attached")
    row: dict[str, Any] = {
        "target_alone": share(before, truth, OLD, OLD),
        "ori": share(together, truth, OLD, OLD + NEW),
    }
    for place, (source, digits) in enumerate(SEVERAL):
        test = demo.Digits(digits, seed, train=False)
        by_itself = accuracy(logits(sources[place], test), torch.tensor(test.targets))
        report = clones[place].report
        row[f"source_{place}"] = {
            "source": source,
            "digits": list(digits),
            "insertion": report["insertion"],
            "cut": report["cut"],
            "source_alone": by_itself,
            "tar": share(together, truth, digits, OLD + NEW),
            "ori_alone": share(alone[place], truth, OLD, OLD + digits),
            "tar_alone": share(alone[place], truth, digits, OLD + digits),
            "kept": report["kept_parameters"] / report["source_parameters"],
        }
    # all the comparisons above hold, or there would be no row
    return row | {"seconds": round(seconds, 1), "bit_for_bit": True}


@torch.inference_mode()
def logits(model: nn.Module, *shown: demo.Digits) -> Tensor:
    """[N, C] for all images of ``shown``, in order."""
    return torch.cat([model(images) for digits in shown for images in digits.images.split(128)])


def same_bits(found: Tensor, expected: Tensor, what: str) -> None:
    """Raise an ``AssertionError`` if two sets of logits are not equal bit for bit."""
    if not torch.equal(found, expected):
        raise AssertionError(f"{what}: logits differ from those of it alone by {(found - expected).abs().max():g}")


def share(joint: Tensor, truth: Tensor, digits: Sequence[int], columns: Sequence[int]) -> float:
    """Accuracy on those images whose digit in ``truth`` [N] is one of ``digits``; ``columns`` are the digits of the logits."""
    right = torch.tensor(columns)[joint.argmax(1)] == truth
    return float(right[torch.isin(truth, torch.tensor(digits))].float().mean())


def table(rows: Sequence[dict]) -> str:
    """Pairs, then two sources in one target, as Markdown; accuracies in percent."""
    lines = [
        "| source | target | seed | insertion -> cut | target alone | Ori | source alone | Tar | AUROC | kept | seconds |",
        f"|{' --- |' * 11}",
    ]
    for row in (row for row in rows if row["target"] != "several"):
        shares = (f"{100 * row[name]:.1f}" for name in ("target_alone", "ori", "source_alone", "tar"))
        names = f"{row['source']} | {row['target']} | {row['seed']} | {row['insertion']} -> {row['cut']}"
        lines.append(
            f"| {names} | {' | '.join(shares)} | {row['auroc']:.4f} | {row['kept']:.0%} | {row['seconds']:.0f} |"
        )
    lines += [
        f"\nTwo sources in one {SEVERAL_TARGET}; bits: with either removed, the other's logits are those of it being attached"
        " alone, and with both removed the target's are its own, bit for bit.\n",
        "| seed | target alone | Ori, both | source | clones | source alone | Ori, it alone | Tar, it alone | Tar, both | kept"
        " | bits |",
        f"|{' --- |' * 11}",
    ]
    for row in (row for row in rows if row["target"] == "several"):
        for each in (row["source_0"], row["source_1"]):
            shares = (f"{100 * each[name]:.1f}" for name in ("source_alone", "ori_alone", "tar_alone", "tar"))
            digits = ", ".join(map(str, each["digits"]))
            lines.append(
                f"| {row['seed']} | {100 * row['target_alone']:.1f} | {100 * row['ori']:.1f} | {each['source']} | {digits} |"
                f" {' | '.join(shares)} | {each['kept']:.0%} | {'equal' if row['bit_for_bit'] else 'DIFFERENT'} |"
            )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> list[dict]:
    """Measure what the ``--json`` file does not have yet, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=float, default=EPOCHS, help="passes of the refinement")
    parser.add_argument("--json", type=Path, help="keep rows in this file, and take from it those that it has")
    arguments = parser.parse_args(argv)
    rows, shown = Rows(arguments.json), []
    for seed in arguments.seeds:
        for source, target in (*PAIRS, ("several", "several")):
            settings = {"source": source, "target": target, "seed": seed, "epochs": arguments.epochs}
            row = rows.find(settings)
            if row is None:
                found = several if target == "several" else partial(one, source, target)
                row = settings | found(seed, arguments.epochs)
                rows.add(row)
                print(row, file=sys.stderr, flush=True)
            shown.append(row)
    print(table(shown))
    return shown


if __name__ == "__main__":
    main()
