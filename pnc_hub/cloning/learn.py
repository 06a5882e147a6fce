"""``pnc_hub.clone``: localise, stitch, refine, gate, measure."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from pnc_hub import attachment
from pnc_hub.artifact import files
from pnc_hub.cloning.fitting.refine import Recipe
from pnc_hub.cloning.images.batches import Batches
from pnc_hub.cloning.images.classes import covers, resolve_classes, sides
from pnc_hub.cloning.images.data import open_dataset
from pnc_hub.cloning.measuring.album import Album, class_names_of
from pnc_hub.cloning.measuring.evaluate import source_alone
from pnc_hub.cloning.named import named_arguments, named_model
from pnc_hub.cloning.networks import Networks
from pnc_hub.cloning.package import package, source_config
from pnc_hub.cloning.search.phases import begin
from pnc_hub.cloning.search.select import best_clone
from pnc_hub.cloning.search.trials import Size
from pnc_hub.cloning.session import MAX_REPORT_IMAGES, Session
from pnc_hub.errors import NoClassifierError, TargetError
from pnc_hub.hub.clone import Clone
from pnc_hub.models.classifier import as_classifier

PIXELS, MOST_PASSES = 10**8, 30


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
        target: timm model that is to receive them, or the name of a pretrained one.
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
        SourceError: the source has no such classes, or cannot be cut or rebuilt.
        DataError: the images do not fit.
        InsertionPointError: no such insertion point or cut.
        NoClassifierError: the target has no classifier.
        ValueError: an option is out of range.

    Example:
        >>> import pnc_hub
        >>> clone = pnc_hub.clone("resnet50.a1_in1k", "vit_small_patch16_224", ["painted bunting"], "photos/")  # doctest: +SKIP
    """
    if not 0 < keep <= 1 or not (epochs or 0) >= 0 or not learning_rate > 0:
        raise ValueError(
            f"keep is in (0, 1], epochs at least 0, learning_rate above 0; {keep=} {epochs=} {learning_rate=}"
        )
    session = Session(locality_budget, held_out, batch_size, workers, seed, device, progress, (source_id, target_id))
    if source_args is None and isinstance(source, str):
        source_args = named_arguments(source)
    source, source_id, license = named_model(source, source_id, license)
    target, target_id, _ = named_model(target, target_id, None, TargetError)
    _check(source, target)
    if attachment.attachments(source):
        source = copy.deepcopy(source)
        attachment.detach(source)
    with session.running("look at the models", unit="step") as bar:
        data = open_dataset(data, seed)
        wanted = resolve_classes(classes, source)
        networks = Networks(source, target, list(wanted.values()), session.accelerator.device)
        described = source_config(source, dict(source_args or {}), source_id, license, networks)
        size = _size(keep, budget, networks)
        target_data = None if target_data is None else open_dataset(target_data, seed)
        cloned, others, regime = sides(source, target, networks.target.preprocess, wanted, data, target_data)
        covered = others is not None and covers(others.labels, target) and regime != "R2"
        batches = session.batches(cloned, others, of_target=target_data is not None, covered=covered)
        if locality_budget is not None and others is not None and not covered:
            warnings.warn(
                f"target_data shows {len(set(others.labels))} of the target's {as_classifier(target).num_classes} classes:"
                " the locality budget holds for images of these",
                stacklevel=2,
            )
        passes = _passes(batches, networks) if epochs is None else epochs
        recipe = Recipe(passes, learning_rate, tune, universal, flip, anchored=not covered)
        learned, curve = best_clone(networks, batches, (insertion, cut), size, recipe, locality_budget, bar)
        begin(bar, "measure")
        result = package(learned, networks, described, wanted, target_id, target)
        adapter = result.config.adapters[0]
        album = Album(networks.target.preprocess, class_names_of(target, target_data), result.labels)
        observed, facts = session.report(result, adapter, learned, networks, batches, curve, album)
        result.photos = album.photos()
        adapter.metrics |= {
            **observed.shares(),
            **facts,
            **learned.stages,
            **source_alone(networks, batches.sides("report", MAX_REPORT_IMAGES)[0]),
            "regime": regime,
            "source_parameters": networks.parameters,
            "trunk_bytes": result.nbytes(files.TRUNK),
        }
        adapter.series |= observed.series()
    return session.ended(result, adapter)


def _size(keep: float, budget: Mapping[str, float] | None, networks: Networks) -> Size:
    limits = dict(budget or {})
    parameters = min(keep * networks.parameters, limits.pop("parameters", math.inf))
    macs = limits.pop("macs", math.inf)
    if limits or not min(parameters, macs) > 0 or math.isnan(parameters) or math.isnan(macs):
        raise ValueError(f"budget has 'parameters' and 'macs' above 0; found {limits or (parameters, macs)}")
    return Size(int(parameters), macs)


def _passes(batches: Batches, networks: Networks) -> int:
    """As many as show ``PIXELS`` of both sides, so that the time grows neither with the images nor with their size."""
    _, height, width = networks.target.preprocess.input_size
    images = sum(len(split.fit) for split in (batches.cloned, batches.target) if split is not None)
    return min(MOST_PASSES, max(1, round(PIXELS / (images * height * width))))


def _check(source: nn.Module, target: nn.Module) -> None:
    for model, what in ((source, "source"), (target, "target")):
        if not isinstance(model, nn.Module):
            raise TargetError(f"the {what} is a timm model or the name of one, received a {type(model).__name__}")
        if getattr(model, "num_classes", 0) < 1:
            raise NoClassifierError(
                f"the {what} ({type(model).__name__}) has no classifier head (num_classes=0); build it with its classes"
            )
