"""``pnc_hub.clone``: localise, stitch, refine, gate, measure."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from accelerate import Accelerator
from torch import nn
from tqdm.auto import tqdm

from pnc_hub.artifact import Clone
from pnc_hub.cloning import data as images_of
from pnc_hub.cloning.batches import Batches, Split
from pnc_hub.cloning.evaluate import measure
from pnc_hub.cloning.networks import Networks
from pnc_hub.cloning.package import Learned, package, source_config
from pnc_hub.cloning.refine import Recipe
from pnc_hub.cloning.select import best_clone
from pnc_hub.errors import DataError, NoClassifierError, TargetError


def clone(
    source: nn.Module | str,
    target: nn.Module | str,
    classes: Mapping[str, int] | Sequence[str | int],
    data: Any,
    *,
    target_data: Any = None,
    insertion: str | None = None,
    cut: str | None = None,
    keep: float = 0.5,
    locality_budget: float | None = None,
    tune: bool = True,
    epochs: int = 30,
    learning_rate: float = 2e-3,
    batch_size: int = 64,
    workers: int = 0,
    universal: bool = True,
    seed: int = 0,
    source_args: Mapping[str, Any] | None = None,
    source_id: str | None = None,
    target_id: str | None = None,
    license: str | None = None,
    device: str | None = None,
    progress: bool = True,
) -> Clone:
    """Learn to clone what ``source`` knows of ``classes`` into ``target``. Neither model is changed.

    Partial network cloning after Ye, Liu and Wang (CVPR 2023, arXiv:2303.10597): the source is cut, the part after the cut
    is pruned to what the cloned classes need, and joined to the target by an adapter at the insertion point that reproduces
    the source's last feature best. A gate decides which side an image belongs to.

    Args:
        source: timm model that knows the classes, or the name of a pretrained one.
        target: timm model that shall receive them, or the name of a pretrained one.
        classes: labels or indices of classes of the source, or a mapping from label to index.
        data: images of these classes: a folder with a folder of images per class (named by label or index), a
            ``timm.data.create_dataset`` name, or a torch ``Dataset`` of (image, label). PIL images get the target's
            transform, tensors are taken as the target's inputs. Other classes in it are left out.
        target_data: images of the target's classes, in the same forms. With them the gate is learned and calibrated;
            without them nothing can be promised of the target's accuracy.
        insertion: read the target here (a name of ``insertion_points(target)``); by default it is searched for.
        cut: cut the source after this module; by default it is searched for.
        keep: largest number of parameters of the clone, as a share of the source's.
        locality_budget: largest share of the target's images that may be diverted to the clone (split-conformal; holds for
            images like those in ``target_data``).
        tune: also train the clone's own copy of the tail, not only adapter and head.
        epochs: passes of the refinement; 0 keeps the closed-form solution.
        learning_rate: of the refinement.
        batch_size: images per step.
        workers: processes that load images.
        universal: also store the source's layers before the cut, so that the clone fits targets without an adapter.
        seed: makes splits, sampling and refinement reproducible; the caller's random state is not touched.
        source_args: constructor arguments that the source was built with, where they are not timm's defaults.
        source_id: Hub id of the source's weights, for the record (known where ``source`` is a name).
        target_id: the same for the target.
        license: licence of the source's weights (known where ``source`` is a name).
        device: ``"cpu"`` to stay off an accelerator.
        progress: show a progress bar.

    Returns:
        The clone; ``clone.report`` says what it does on held-out images.

    Raises:
        SourceError: the source has no such classes, or can not be cut or rebuilt.
        DataError: the images do not fit.
        InsertionPointError: no such insertion point or cut.
        NoClassifierError: the target has no classifier.
        ValueError: an option is out of range.

    Example:
        >>> import pnc_hub
        >>> clone = pnc_hub.clone("resnet50.a1_in1k", "vit_small_patch16_224", ["indigo bunting"], "photos/")  # doctest: +SKIP
    """
    started = time.perf_counter()
    if not 0 < keep <= 1 or not (locality_budget is None or 0 < locality_budget < 1) or epochs < 0:
        raise ValueError(
            f"keep is in (0, 1], locality_budget in (0, 1), epochs at least 0; {keep=} {locality_budget=} {epochs=}"
        )
    accelerator = Accelerator(cpu=device == "cpu")
    source, source_id, license = _model(source, source_id, license)
    target, target_id, _ = _model(target, target_id, None)
    _check(source, target)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        opened = images_of.open_dataset(data)
        wanted = images_of.resolve_classes(classes, source, images_of.class_names(opened))
        networks = Networks(source, target, list(wanted.values()), accelerator.device)
        described = source_config(source, dict(source_args or {}), source_id, license, networks)
        splits = _splits(networks, wanted, opened, target_data, seed)
        prepared = Batches(*splits, accelerator, batch_size, workers, seed)
        bar = tqdm(desc="search", unit="epoch", disable=not (progress and accelerator.is_main_process), leave=False)
        with bar:
            learned = best_clone(
                networks, prepared, (insertion, cut), keep, Recipe(epochs, learning_rate, tune), locality_budget, bar
            )
            bar.set_description("measure")
            result = package(learned, networks, described, wanted, target_id, target, universal)
            _report(result, learned, networks, prepared, time.perf_counter() - started)
    return result


def _report(result: Clone, learned: Learned, networks: Networks, prepared: Batches, seconds: float) -> None:
    """Measure on the part that no choice was made on, and record it with the adapter."""
    old = prepared.loader([prepared.target.report]) if prepared.target else None
    cloned = prepared.loader([prepared.cloned.report])
    adapter = result.config.adapters[0]
    measured = measure(networks.target.model, result, cloned, old)
    right, count = 0, 0
    for images, labels in cloned:
        lesson = networks.teach(images)
        right, count = right + int((lesson.cloned.argmax(1) == labels).sum()), count + len(labels)
    adapter.metrics = {
        **measured,
        "source_alone": right / count,
        "insertion": learned.target.name,
        "cut": learned.source.name,
        "kept_parameters": learned.parameters(),
        "source_parameters": networks.parameters,
        "bytes": 4 * learned.parameters(),
        "match": learned.match,
        "regime": "R4" if prepared.target else "R1",
        "images": prepared.used,
        "seconds": round(seconds, 2),
    }


def _splits(
    networks: Networks, wanted: dict[str, int], opened: Any, target_data: Any, seed: int
) -> tuple[Split, Split | None]:
    preprocess = networks.target.preprocess
    relabel = images_of.relabel_cloned(wanted, images_of.class_names(opened))
    cloned = images_of.Images(opened, preprocess, relabel)
    missing = sorted(set(range(len(wanted))) - set(cloned.labels))
    if missing:
        raise DataError(f"no images of {', '.join(list(wanted)[position] for position in missing)} in the data")
    if target_data is None:
        return Split.of(cloned, seed), None
    opened = images_of.open_dataset(target_data)
    old = images_of.Images(opened, preprocess, images_of.relabel_target(networks.target.model, opened))
    return Split.of(cloned, seed), Split.of(old, seed)


def _model(model: nn.Module | str, hub_id: str | None, license: str | None) -> tuple[nn.Module, str | None, str | None]:
    if not isinstance(model, (str, Path)):
        return model, hub_id, license
    loaded = timm.create_model(str(model), pretrained=True)
    cfg = loaded.pretrained_cfg
    return loaded, hub_id or cfg.get("hf_hub_id"), license or cfg.get("license")


def _check(source: nn.Module, target: nn.Module) -> None:
    for model, what in ((source, "source"), (target, "target")):
        if not isinstance(model, nn.Module):
            raise TargetError(f"the {what} is a timm model or the name of one, received a {type(model).__name__}")
        if getattr(model, "num_classes", 0) < 1:
            raise NoClassifierError(
                f"the {what} ({type(model).__name__}) has no classifier head (num_classes=0); build it with its classes"
            )
