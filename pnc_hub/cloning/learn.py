"""``pnc_hub.clone``: localise, stitch, refine, gate, measure."""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list, reduce
from torch import nn
from tqdm.auto import tqdm

from pnc_hub import attachment
from pnc_hub.artifact import checks, files
from pnc_hub.cloning.fitting import gate as gates
from pnc_hub.cloning.fitting.refine import Recipe
from pnc_hub.cloning.images import classes as classes_of
from pnc_hub.cloning.images import data as images_of
from pnc_hub.cloning.images.batches import Batches, Split
from pnc_hub.cloning.measuring.album import Album, class_names_of
from pnc_hub.cloning.measuring.evaluate import observe
from pnc_hub.cloning.named import named_arguments, named_model
from pnc_hub.cloning.networks import Networks
from pnc_hub.cloning.package import package, source_config
from pnc_hub.cloning.search.learned import Learned
from pnc_hub.cloning.search.select import best_clone
from pnc_hub.cloning.search.trials import Size
from pnc_hub.errors import DataError, NoClassifierError, TargetError
from pnc_hub.hub.clone import Clone
from pnc_hub.models.classifier import as_classifier
from pnc_hub.models.preprocess import Preprocess
from pnc_hub.report.figures import curve_metrics

MAX_REPORT_IMAGES = 20_000  # of each side: shares are then known to a third of a point
PIXELS, MOST_PASSES = 10**8, 30
FEW = 20  # images of a class, or of all others together, from which on a gate can be learned


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
    budget: Mapping[str, float] | None = None,
    locality_budget: float | None = None,
    tune: bool = True,
    epochs: float | None = None,
    learning_rate: float = 4e-3,
    flip: bool = True,
    batch_size: int = 64,
    workers: int = 0,
    universal: bool = True,
    held_out: float = 0.1,
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
        data: images of these classes: a folder or tar file with a folder of images per class (named by label or index), a
            ``timm.data.create_dataset`` name as ``hfds/user/name`` or ``wds/folder``, or a ``Dataset`` of (image, label),
            see ``pnc_hub.cloning.images.data.open_dataset``. PIL images get the target's transform, tensors are taken as the
            target's inputs. Other classes in it are left out. Of a stream at most 500 images per class are drawn.
        target_data: images of the target's classes, in the same forms. With them the gate is learned and calibrated;
            without them nothing can be promised of the target's accuracy.
        insertion: read the target here (a name of ``insertion_points(target)``); by default it is searched for.
        cut: cut the source after this module; by default it is searched for.
        keep: largest number of parameters of the clone, as a share of the source's.
        budget: what the clone may cost in numbers, ``{"parameters": 500_000, "macs": 2e8}`` (multiply-accumulates per image)
            or one of the two; the best place within it is taken. ``clone.curve`` shows what there was to choose from.
        locality_budget: largest share of the target's images that may be diverted to the clone (split-conformal; holds for
            images like those in ``target_data`` that the target was not trained on; it needs enough of them: 990 for 0.01).
        tune: also train the clone's own copy of the tail, not only adapter and head.
        epochs: passes of the refinement; 0 keeps the closed-form solution. By default as many as show a hundred million pixels,
            between 1 and 30.
        learning_rate: of the refinement.
        flip: whether mirrored images are images of the same class; not so for text and digits.
        batch_size: images per step, of all processes together.
        workers: processes that load images.
        universal: also store the source's layers before the cut, so that the clone fits targets without an adapter.
        held_out: share of the images of each class that is kept back three times: to choose, to calibrate and to report.
        seed: makes splits, sampling and refinement reproducible; the caller's random state is not touched.
        source_args: constructor arguments that the source was built with, where they are not timm's defaults (of
            ``hf-hub:`` and ``local-dir:`` names those that stand beside the weights are known).
        source_id: Hub id of the source's weights, for the record (known where ``source`` is a name).
        target_id: the same for the target.
        license: licence of the source's weights (known where ``source`` is a name).
        device: ``"cpu"`` to stay off an accelerator.
        progress: show a progress bar.

    Returns:
        The clone; ``clone.report`` says what it does on held-out images. Under ``accelerate launch`` the processes share
        the work and each returns the same clone: save it in one of them (``if accelerator.is_main_process``).

    Raises:
        SourceError: the source has no such classes, or can not be cut or rebuilt.
        DataError: the images do not fit.
        InsertionPointError: no such insertion point or cut.
        NoClassifierError: the target has no classifier.
        ValueError: an option is out of range.

    Example:
        >>> import pnc_hub
        >>> clone = pnc_hub.clone("resnet50.a1_in1k", "vit_small_patch16_224", ["painted bunting"], "photos/")  # doctest: +SKIP
    """
    started = time.perf_counter()
    if not 0 < keep <= 1 or not (locality_budget is None or 0 < locality_budget < 1) or not (epochs or 0) >= 0:
        raise ValueError(
            f"keep is in (0, 1], locality_budget in (0, 1), epochs at least 0; {keep=} {locality_budget=} {epochs=}"
        )
    if not 0 < held_out < 0.33:
        raise ValueError(f"held_out is the share kept back three times, above 0 and below 0.33; {held_out=}")
    if batch_size < 1 or workers < 0 or seed < 0 or not learning_rate > 0:
        raise ValueError(
            "batch_size is at least 1, workers and seed at least 0, learning_rate above 0;"
            f" {batch_size=} {workers=} {seed=} {learning_rate=}"
        )
    accelerator = Accelerator(
        cpu=device == "cpu",
        dataloader_config=DataLoaderConfiguration(even_batches=False),  # no image counts twice
        kwargs_handlers=[DistributedDataParallelKwargs(static_graph=True)],  # a tail may have parameters without use
    )
    for name in (source_id, target_id):  # what no artifact can record shows now, not after all the learning
        checks.hub_id(name)
    if source_args is None and isinstance(source, str):
        source_args = named_arguments(source)
    source, source_id, license = named_model(source, source_id, license)
    target, target_id, _ = named_model(target, target_id, None, TargetError)
    _check(source, target)
    if attachment.attachments(source):
        source = copy.deepcopy(source)
        attachment.detach(source)
    with torch.random.fork_rng(), torch.inference_mode(False), torch.enable_grad():
        torch.manual_seed(seed)
        opened = images_of.open_dataset(data, seed)
        wanted = classes_of.resolve_classes(classes, source)
        networks = Networks(source, target, list(wanted.values()), accelerator.device)
        described = source_config(source, dict(source_args or {}), source_id, license, networks)
        size = _size(keep, budget, networks)
        others = None if target_data is None else images_of.open_dataset(target_data, seed)
        cloned, old, regime = _sides(source, target, networks.target.preprocess, wanted, opened, others)
        known = None if old is None else Split.of(old, seed, held_out)
        check_budget(locality_budget, known if target_data is not None else None)
        covered = target_data is None or old is None or covers(old, target)
        if locality_budget is not None and old is not None and not covered:
            warnings.warn(
                f"target_data shows {len(set(old.labels))} of the target's {as_classifier(target).num_classes} classes: the"
                " locality budget holds for images of these",
                stacklevel=2,
            )
        covered = covered and regime != "R2"
        prepared = Batches(Split.of(cloned, seed, held_out), known, accelerator, batch_size, workers, seed, covered)
        bar = tqdm(desc="search", unit="step", disable=not (progress and accelerator.is_main_process), leave=False)
        with bar:
            if epochs is None:
                epochs = _passes(prepared, networks)
            recipe = Recipe(epochs, learning_rate, tune, universal, flip, not covered or old is None)
            learned, curve = best_clone(networks, prepared, (insertion, cut), size, recipe, locality_budget, bar)
            bar.set_description("measure")
            result = package(learned, networks, described, wanted, target_id, target)
            result.curve = tuple(judged.row() for judged in curve)
            album = Album(networks.target.preprocess, class_names_of(target, others), result.labels)
            _report(result, learned, networks, prepared, album)
            result.config.adapters[0].metrics |= {
                "regime": regime,
                "locality_budget": locality_budget,
                "seconds": round(time.perf_counter() - started, 2),
            }
    everywhere: list[Clone] = broadcast_object_list([result])
    return everywhere[0]


def _report(result: Clone, learned: Learned, networks: Networks, prepared: Batches, album: Album) -> None:
    """Measure on the part that no choice was made on, record it with the adapter, and keep a few of its photos in memory."""
    old = prepared.loader([prepared.target.report], most=MAX_REPORT_IMAGES) if prepared.target else None
    cloned = prepared.loader([prepared.cloned.report], most=MAX_REPORT_IMAGES)
    adapter = result.config.adapters[0]
    observed = observe(networks.target.model, result, cloned, old, album)
    among_cloned, among_all = _source_alone(networks, cloned)
    adapter.metrics = {
        **adapter.metrics,
        **observed.shares(),
        "source_alone": among_cloned,
        "source_alone_among_all": among_all,
        "insertion": learned.insertion.name,
        "cut": learned.cut.name,
        "kept_parameters": learned.parameters(),
        "source_parameters": networks.parameters,
        "bytes": result.nbytes(files.WEIGHTS, adapter.file),
        "trunk_bytes": result.nbytes(files.TRUNK),
        "match": learned.match,
        **learned.stages,
        "images": prepared.used,
        **curve_metrics(result.curve, learned.insertion.name),
        **observed.series(),
    }
    result.photos = album.photos()


def _size(keep: float, budget: Mapping[str, float] | None, networks: Networks) -> Size:
    budget = dict(budget or {})
    parameters = min(keep * networks.parameters, budget.pop("parameters", math.inf))
    macs = budget.pop("macs", math.inf)
    if budget or not min(parameters, macs) > 0 or math.isnan(parameters) or math.isnan(macs):
        raise ValueError(f"budget has 'parameters' and 'macs' above 0; found {budget or (parameters, macs)}")
    return Size(int(parameters), macs)


def _sides(
    source: nn.Module,
    target: nn.Module,
    preprocess: Preprocess,
    wanted: dict[str, int],
    opened: Any,
    shown: Any,
) -> tuple[images_of.Images, images_of.Images | None, str]:
    """Images of the cloned classes, images of others (the target's, else the source's), and the regime that makes."""
    relabel = classes_of.relabel_cloned(wanted, source, opened)
    cloned = images_of.Images(opened, preprocess, relabel)
    missing = sorted(set(range(len(wanted))) - set(cloned.labels))
    if missing:
        raise DataError(f"no images of {', '.join(list(wanted)[position] for position in missing)} in the data")
    if shown is not None:
        old = images_of.Images(shown, preprocess, classes_of.relabel_target(target, shown, wanted))
        fewest = min(Counter(old.labels).values(), default=0)
        return cloned, old, "R3" if fewest <= FEW else "R4"
    old = images_of.Images(opened, preprocess, classes_of.other_classes(opened, relabel))
    if len(old) >= FEW:
        return cloned, old, "R2"
    warnings.warn(
        "the gate has seen images of the cloned classes alone, so nothing can be said of what it does to others: give images"
        " of the target's classes as target_data, or leave images of the source's other classes in data",
        stacklevel=3,
    )
    return cloned, None, "R1"


def _passes(prepared: Batches, networks: Networks) -> int:
    """As many as show ``PIXELS`` of both sides, so that the time grows neither with the images nor with their size."""
    _, height, width = networks.target.preprocess.input_size
    images = sum(len(split.fit) for split in (prepared.cloned, prepared.target) if split is not None)
    return min(MOST_PASSES, max(1, round(PIXELS / (images * height * width))))


def covers(old: images_of.Images, target: nn.Module) -> bool:
    """Whether there are images of at least half of the target's classes, or of classes that nobody named."""
    shown = set(old.labels)
    return images_of.UNLABELLED in shown or 2 * len(shown) >= as_classifier(target).num_classes


@torch.no_grad()
def _source_alone(networks: Networks, batches: Iterable[Any]) -> tuple[float, float]:
    """Accuracy of the source among the cloned classes and among all of its own; warns if the labels do not seem to fit."""
    among_cloned, among_all, count = 0, 0, 0
    for images, labels in batches:
        lesson = networks.teach(images)
        right = lesson.cloned.argmax(1) == labels
        among_cloned, count = among_cloned + int(right.sum()), count + len(labels)
        among_all += int((right & lesson.cloned_wins).sum())
    counts = torch.tensor([among_cloned, among_all, count], device=networks.device)
    among_cloned, among_all, count = reduce(counts, "sum").tolist()
    if among_all / count <= 1.5 / networks.num_classes:
        warnings.warn(
            f"the source recognises {among_all} of {count} images of the cloned classes, no more than by chance: check that"
            " classes= maps each label to its index in the source",
            stacklevel=4,
        )
    return among_cloned / count, among_all / count


def check_budget(budget: float | None, target: Split | None) -> None:
    """Raise ``DataError`` where ``target`` has too few images to calibrate ``budget`` on."""
    if budget is None:
        return
    if target is None:
        raise DataError("a locality_budget is calibrated on images of the target; give them as target_data")
    needed, found = gates.images_needed(budget), len(target.calibrate)
    if found < needed:
        raise DataError(
            f"a locality_budget of {budget:g} is calibrated on at least {needed} images of the target, and target_data has"
            f" {found} to spare for it (a tenth); give more, or a budget of at least"
            f" {math.ceil(1000 / (found + 1)) / 1000:g}"
        )


def _check(source: nn.Module, target: nn.Module) -> None:
    for model, what in ((source, "source"), (target, "target")):
        if not isinstance(model, nn.Module):
            raise TargetError(f"the {what} is a timm model or the name of one, received a {type(model).__name__}")
        if getattr(model, "num_classes", 0) < 1:
            raise NoClassifierError(
                f"the {what} ({type(model).__name__}) has no classifier head (num_classes=0); build it with its classes"
            )
