"""The whole story on scikit-learn's handwritten digits: offline, without an account, in about two minutes.

A small ResNet learns the digits 5 to 9, a small ConvNeXt the digits 0 to 4. What the first knows is cloned, attached to
the second, measured on digits that neither has seen, and detached again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from pnc_hub.cloning.learn import clone
from pnc_hub.cloning.measuring.evaluate import accuracy, measure
from pnc_hub.hub.clone import Clone

SIDE, EPOCHS = 32, 20
SOURCE_ARGS: dict[str, Any] = {"channels": (16, 32, 64, 128), "stem_width": 16}
TARGET_ARGS: dict[str, Any] = {"dims": (24, 48, 96, 192), "depths": (1, 1, 2, 1)}
SOURCE_DIGITS, TARGET_DIGITS = range(5, 10), range(5)
CLONED = {"five": (5, 6, 7, 8, 9), "three": (5, 7, 9)}


class Digits(Dataset[Any]):
    """Some of scikit-learn's 1,797 digits [1, 32, 32], normalised, labelled by their position in ``digits``."""

    def __init__(self, digits: Sequence[int], seed: int, train: bool, augment: bool = False) -> None:
        """Seven of ten images of each digit are for training, drawn by ``seed``; the others are held out."""
        from sklearn.datasets import load_digits

        bunch = load_digits()
        rng = np.random.RandomState(seed)
        members = [rng.permutation(np.flatnonzero(bunch.target == digit)) for digit in digits]
        cuts = [int(0.7 * len(indices)) for indices in members]
        parts = [indices[:cut] if train else indices[cut:] for indices, cut in zip(members, cuts, strict=True)]
        images = torch.from_numpy(bunch.images[np.concatenate(parts)]).float()[:, None] / 8 - 1
        self.images = nn.functional.interpolate(images, size=(SIDE, SIDE), mode="bilinear")
        self.targets = [position for position, part in enumerate(parts) for _ in part]
        self.augment = augment

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.images[index]
        if self.augment:
            rows, columns = (int(shift) for shift in torch.randint(-3, 4, (2,)))
            image = torch.roll(image, (rows, columns), (1, 2))
        return image, self.targets[index]


def run(output: Path, seed: int = 0, say: Callable[[str], None] = print, progress: bool = True) -> dict[str, Any]:
    """Train, clone, attach, measure, detach; write to ``output`` the clones, two reports and a figure.

    ``report.html`` is the last clone's own report, ``report.json`` and ``demo.png`` compare all of them.

    Returns:
        What ``report.json`` holds.
    """
    output.mkdir(parents=True, exist_ok=True)
    say(f"Training a ResNet on the digits 5 to 9 and a ConvNeXt on the digits 0 to 4 (seed {seed}) ...")
    source = _trained("resnet18", SOURCE_DIGITS, seed, progress, **SOURCE_ARGS)
    target = _trained("convnext_atto", TARGET_DIGITS, seed, progress, **TARGET_ARGS)
    held_old = Digits(TARGET_DIGITS, seed, train=False)
    report: dict[str, Any] = {
        "seed": seed,
        "source_accuracy": _accuracy(source, Digits(SOURCE_DIGITS, seed, train=False)),
        "target_accuracy": _accuracy(target, held_old),
        "clones": {},
    }
    for name, digits in CLONED.items():
        say(f"Cloning what the ResNet knows of the digits {', '.join(map(str, digits))} ...")
        learned = clone(
            source,
            target,
            {str(digit): SOURCE_DIGITS.index(digit) for digit in digits},
            Digits(SOURCE_DIGITS, seed, train=True),
            target_data=Digits(TARGET_DIGITS, seed, train=True),
            source_args=SOURCE_ARGS,
            flip=False,
            seed=seed,
            progress=progress,
        )
        folder = learned.save_pretrained(output / f"clone-{name}")
        held_new = Digits(digits, seed, train=False)
        measured = measure(target, Clone.from_pretrained(folder), DataLoader(held_new, 128), DataLoader(held_old, 128))
        alone = _accuracy(source, held_new, [SOURCE_DIGITS.index(digit) for digit in digits])
        report["clones"][name] = _row(learned, measured, digits, alone)
    learned.report.save(output / "report.html")
    (output / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    _draw(report, output / "demo.png")
    say(table(report))
    say(
        f"Written: {output / 'report.html'} (of the last clone: open it in a browser), report.json, demo.png and the clones."
    )
    return report


def table(report: dict[str, Any]) -> str:
    """The result as a newcomer reads it."""
    lines = [
        "",
        f"{'accuracy on held-out digits':<44}{'digits 0-4':>12}{'new digits':>12}{'both':>8}",
        f"{'ConvNeXt alone (knows 0-4)':<44}{_percent(report['target_accuracy']):>12}{'-':>12}{'-':>8}",
    ]
    for row in report["clones"].values():
        digits = ", ".join(map(str, row["digits"]))
        lines.append(f"{f'ResNet alone, on {digits}':<44}{'-':>12}{_percent(row['source_alone']):>12}{'-':>8}")
        what = f"ConvNeXt + clone of {digits}"
        lines.append(f"{what:<44}{_percent(row['ori']):>12}{_percent(row['tar']):>12}{_percent(row['avg']):>8}")
    lines.append("")
    for name, row in report["clones"].items():
        lines.append(
            f"clone-{name}: {row['kept_parameters']:,} parameters, {row['kept']:.0%} of the ResNet; reads the ConvNeXt at"
            f" {row['insertion']}; {_percent(row['diverted'])} of the old digits diverted;"
            f" after detaching the ConvNeXt is {'exactly what it was' if row['restored'] else 'CHANGED'}."
        )
    return "\n".join(lines)


def _row(learned: Clone, measured: dict[str, Any], digits: Sequence[int], source_alone: float) -> dict[str, Any]:
    report = learned.report
    return {
        "digits": list(digits),
        "source_alone": source_alone,
        **{name: measured[name] for name in ("ori", "tar", "avg", "diverted", "auroc", "restored")},
        **{name: report[name] for name in ("insertion", "cut", "kept_parameters", "bytes", "seconds")},
        "kept": report["kept_parameters"] / report["source_parameters"],
    }


def _trained(
    name: str, digits: Sequence[int], seed: int, progress: bool, epochs: int = EPOCHS, **arguments: Any
) -> nn.Module:
    """A timm classifier of ``digits``, trained from scratch in seconds."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        cfg = {"input_size": (1, SIDE, SIDE), "mean": (0.5,), "std": (0.5,), "label_names": tuple(map(str, digits))}
        model = timm.create_model(name, num_classes=len(digits), in_chans=1, pretrained_cfg_overlay=cfg, **arguments)
        accelerator = Accelerator()
        loader = DataLoader(Digits(digits, seed, train=True, augment=True), 48, shuffle=True)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, epochs * len(loader))
        model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)
        bar = tqdm(total=epochs * len(loader), desc=name, unit="step", disable=not progress, leave=False)
        model.train()
        for _ in range(epochs):
            for images, labels in loader:
                loss = nn.functional.cross_entropy(model(images), labels, label_smoothing=0.05)
                accelerator.backward(loss)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                bar.update()
        bar.close()
        trained: nn.Module = accelerator.unwrap_model(model)
        return trained.cpu().eval()


@torch.inference_mode()
def _accuracy(model: nn.Module, digits: Digits, columns: Sequence[int] | None = None) -> float:
    logits = model(digits.images)
    return accuracy(logits if columns is None else logits[:, list(columns)], torch.tensor(digits.targets))


def _draw(report: dict[str, Any], path: Path) -> None:
    """One figure: old and new digits, before and after."""
    from matplotlib.figure import Figure

    rows = report["clones"]
    figure = Figure(figsize=(3.4 * len(rows) + 1.2, 3.6), layout="constrained")
    for axes, row in zip(figure.subplots(1, len(rows), sharey=True, squeeze=False)[0], rows.values(), strict=True):
        alone, joint = [report["target_accuracy"], row["source_alone"]], [row["ori"], row["tar"]]
        series = (
            (-0.2, alone, "the network that knows them, alone", "#9aa5b1"),
            (0.2, joint, "ConvNeXt + clone", "#1f77b4"),
        )
        for shift, values, label, colour in series:
            bars = axes.bar(np.arange(2) + shift, [100 * value for value in values], 0.38, label=label, color=colour)
            axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=8)
        axes.set_xticks(range(2), ["digits 0-4", "digits " + ", ".join(map(str, row["digits"]))])
        axes.set_ylim(0, 110)
        axes.set_title(f"{len(row['digits'])} digits cloned, {row['kept']:.0%} of the ResNet kept", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("accuracy on held-out digits (%)")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, dpi=150)


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"
