"""Which criterion finds the channels that a few classes need: accuracy and rejection at matched numbers of parameters.

A MobileNetV2 with 1,000 classes is cut; what follows is pruned to ten breeds of dogs and a reject row, and read through the
network's own layers before the cut, so that localisation alone is measured. Every criterion is tried with its ranking
normalised per group (as Torch-Pruning does) and per parameter, and the better of the two on held-out training photos is
shown: their accuracy and AUROC on test photos.

python recipes/method/localisation.py --data DIR --json localisation.json
"""

from __future__ import annotations

import argparse
import copy
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2]))

from pnc_hub.cloning.fitting import ridge
from pnc_hub.cloning.fitting.gate import auroc
from pnc_hub.cloning.networks import Networks
from pnc_hub.cloning.pruning import localize, repair
from pnc_hub.cloning.pruning.localize import Batches, local_loss
from pnc_hub.models import cost
from pnc_hub.models.cost import macs
from pnc_hub.models.insertion import InsertionPoint
from recipes.compare.neighbours import neighbours
from recipes.frame import networks, reading
from recipes.frame.reading import HALF, TensorImages
from recipes.frame.rows import Rows, markdown
from recipes.method.criteria import CRITERIA, LEARNED, learned, normalised, remembered
from recipes.method.real import cloned

SIZES = ("parameters", "macs", "bytes", "penultimate", "seconds")
KEPT = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
# Training photos per class to prune on and to choose on.
FIT, CHOOSE, BATCH = 20, 20, 32
REPAIRS = {
    "none": (),
    "all": repair.STEPS,
    "weights": ("weights",),
    "weights, statistics": ("weights", "statistics"),
    "head": ("head",),
    "weights, head": ("weights", "head"),
    "statistics, head": ("statistics", "head"),
}


@dataclass
class Study:
    """A cut network and photos as features at the cut.

    Attributes:
        cut: where.
        tail: after it.
        head: the rows of the cloned classes and one that rejects.
        plain: local set of photos alone.
        neighbours: the same and perturbed neighbours of the photos of cloned classes.
        choose: (features, labels) of held-out training photos.
        test: the same of test photos.
    """

    cut: InsertionPoint
    tail: nn.Module
    head: nn.Linear
    plain: Batches
    neighbours: Batches
    choose: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def study(data: str, cut: str, seed: int = 0) -> Study:
    """The ten breeds of dogs, in the first of the two networks."""
    source = networks.mobilenetv2_q8(Path(data) / "weights" / "mobilenetv2_100_in1k_tf1_q8.npz")
    breeds = cloned(data)
    teacher = Networks(source, source, list(breeds.values()), torch.device("cpu"))
    train, test = (_labelled(raw, breeds) for raw in reading.photos(data))
    fit, rest = _halves(train, FIT, seed)
    choose, _ = _halves(rest, CHOOSE, seed)
    head = teacher.head_rows(_reject_row(teacher, fit, choose))

    def features(images: Tensor) -> Tensor:
        return torch.cat([teacher.teach(part, [cut]).features[cut] for part in images.split(BATCH)])

    images, labels = fit.batch(range(len(fit)))
    mine = labels < len(breeds)
    changed, near = neighbours(images[mine], torch.Generator().manual_seed(seed))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    plain = _batches(features(images)[order], labels[order], torch.ones(len(labels)))
    other = _batches(features(changed), labels[mine], near)
    held_out, shown = (_features(part, features) for part in (choose, test))
    return Study(teacher.cuts()[cut], teacher.tail(cut), head, plain, [*plain, *other], held_out, shown)


def measured(
    of: Study, *, cut: str, kept: float, criterion: str, per: str, near: bool, repair: str, order: list[list[Tensor]]
) -> dict:
    """One pruned tail: its size, its loss on photos to choose by, accuracy and AUROC on both sets."""
    started = time.perf_counter()
    size = cost.parameters(of.tail) + cost.parameters(of.head)
    largest = round(kept * size)
    importance = learned(largest, per) if criterion == LEARNED else normalised(CRITERIA[criterion], per)
    importance = remembered(importance, order)
    classes = of.head.out_features - 1
    tail, head = localize.prune(
        copy.deepcopy(of.tail),
        of.head,
        of.cut,
        of.neighbours if near else of.plain,
        largest,
        classes=classes,
        importance=importance,
        repairs=REPAIRS[repair],
    )
    seconds = time.perf_counter() - started
    both = nn.Sequential(tail, head)
    row = {"parameters": cost.parameters(both), "whole": size, "seconds": round(seconds, 1)}
    row["macs"] = macs(both, of.test[0][:1])
    row["bytes"] = _file_bytes(both)
    row["penultimate"] = head.in_features
    for name, (features, labels) in (("choose", of.choose), ("test", of.test)):
        with torch.no_grad():
            logits = torch.cat([both(part) for part in features.split(100)])
        mine = labels < classes
        row[f"{name}_loss"] = float(local_loss(classes)(logits, labels).mean())
        row[f"{name}_accuracy"] = float((logits[mine, :classes].argmax(1) == labels[mine]).float().mean())
        score = logits[:, :classes].logsumexp(1) - logits[:, classes:].logsumexp(1)
        row[f"{name}_auroc"] = float(auroc(score[mine], score[~mine]))
    return row


def table(rows: Sequence[dict], kept: Sequence[float]) -> str:
    """Accuracy in points and AUROC on test photos; of two normalisations that with the smaller loss on held-out photos."""

    def cell(key: tuple, ratio: float) -> str:
        same = [row for row in own if (*_key(row), row["kept"]) == (*key, ratio)]
        best = min(same, key=lambda row: row["choose_loss"], default=None)
        return (best and f"{100 * best['test_accuracy']:.1f} / {best['test_auroc']:.4f} ({best['per'][0]})") or ""

    parts = []
    for cut in dict.fromkeys(row["cut"] for row in rows):
        own = [row for row in rows if row["cut"] == cut]
        keys = dict.fromkeys(map(_key, own))
        titles = " | ".join(["criterion | neighbours | repair", *(f"{ratio:g}" for ratio in kept)])
        defaults = sorted(filter(_is_default, own), key=lambda row: row["kept"])
        parts += [
            f"\nCut after `{cut}`, {own[0]['whole']:,} parameters.\n",
            markdown(
                titles, ([key[0], "yes" if key[1] else "no", key[2], *(cell(key, at) for at in kept)] for key in keys)
            ),
            "",
            markdown(
                "kept | parameters | multiply-accumulates | file, bytes | penultimate | seconds",
                ([f"{row['kept']:g}", *(f"{row[name]:,}" for name in SIZES)] for row in defaults),
            ),
        ]
    return "\n".join(parts)


def _key(row: dict) -> tuple[str, bool, str]:
    return row["criterion"], row["near"], row["repair"]


def _is_default(row: dict) -> bool:
    return (row["criterion"], row["per"], row["near"], row["repair"]) == ("mask Fisher", "parameter", True, "all")


def _labelled(raw: reading.Raw, breeds: dict[str, int]) -> TensorImages:
    order = list(breeds)
    labels = {label: order.index(w) if w in breeds else len(breeds) for label, w in enumerate(raw.classes)}
    images = TensorImages.of(raw, HALF, HALF)
    return images.relabelled(labels)


def _halves(images: TensorImages, most: int, seed: int) -> tuple[TensorImages, TensorImages]:
    """``most`` per breed and as many others altogether, and the rest."""
    few = {label: most for label in set(images.targets)}
    few[max(few)] = most * max(few)
    chosen, rest = [], []
    for position in torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).tolist():
        label = images.targets[position]
        few[label] -= 1
        (chosen if few[label] >= 0 else rest).append(position)
    return images.subset(chosen), images.subset(rest)


def _reject_row(teacher: Networks, fit: TensorImages, choose: TensorImages) -> tuple[Tensor, Tensor]:
    moments = []
    for part in (fit, choose):
        moments.append(ridge.Moments())
        for images in part.batch(range(len(part)))[0].split(BATCH):
            lesson = teacher.teach(images)
            moments[-1].add(lesson.penultimate, lesson.rejected[:, None])
    weights = ridge.ridge(*moments).float()
    return weights[:-1].T, weights[-1]


def _batches(features: Tensor, labels: Tensor, weights: Tensor) -> Batches:
    return list(zip(features.split(BATCH), labels.split(BATCH), weights.split(BATCH), strict=True))


def _features(images: TensorImages, features: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    parts = [images.batch(range(start, min(start + BATCH, len(images)))) for start in range(0, len(images), BATCH)]
    return torch.cat([features(part) for part, _ in parts]), torch.cat([labels for _, labels in parts])


def _file_bytes(module: nn.Module) -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "tail.safetensors")
        save_file({name: value.contiguous() for name, value in module.state_dict().items()}, path)
        return os.path.getsize(path)


def main(argv: Sequence[str] | None = None) -> None:
    """Fill in what the JSON file has not yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of photos20_224.zip and weights/")
    parser.add_argument("--cuts", nargs="+", default=["blocks.4.2"])
    parser.add_argument("--kept", nargs="+", type=float, default=KEPT)
    parser.add_argument("--criteria", nargs="+", default=[*CRITERIA, LEARNED], choices=[*CRITERIA, LEARNED])
    parser.add_argument("--per", nargs="+", default=["group", "parameter"], choices=["group", "parameter"])
    parser.add_argument("--neighbours", nargs="+", type=int, default=[1, 0], choices=[0, 1])
    parser.add_argument("--repair", nargs="+", default=["none", "all"], choices=REPAIRS)
    parser.add_argument("--json", type=Path, help="keep rows in this file, and take from it those that it has")
    asked = parser.parse_args(argv)
    rows, study_at = Rows(asked.json), lru_cache(maxsize=1)(partial(study, asked.data))
    for cut in asked.cuts:
        for near, criterion, kept, per in itertools.product(asked.neighbours, asked.criteria, asked.kept, asked.per):
            order: list[list[Tensor]] = []
            for steps in asked.repair:
                key = {
                    "cut": cut,
                    "kept": kept,
                    "criterion": criterion,
                    "per": per,
                    "near": bool(near),
                    "repair": steps,
                }
                rows.of(key, lambda key=key, order=order: measured(study_at(key["cut"]), order=order, **key))
    print(table(rows.rows, asked.kept))


if __name__ == "__main__":
    main()
