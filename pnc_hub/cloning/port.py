"""``pnc_hub.port``: the same module for one more target.

A clone that carries the source's first layers is a source: what those make of an image at the cut is what the new target's
adapter has to reproduce, and what the tail makes of it is the answer to be compared with. Images need no labels; the source
says what they show. Everything is solved in closed form. Tail and head stay as they are, bit for bit.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from pnc_hub.artifact import files
from pnc_hub.artifact.assembly import rebuilt
from pnc_hub.attachment.plan import check_target, unwrapped
from pnc_hub.cloning.fitting.stitch import Candidate, Stitches
from pnc_hub.cloning.images.batches import PARTS, Batches, Loader
from pnc_hub.cloning.images.classes import FEW, covers, relabel_target
from pnc_hub.cloning.images.data import Images, open_dataset
from pnc_hub.cloning.images.kept import Kept
from pnc_hub.cloning.images.shown import Remembered, Shown
from pnc_hub.cloning.measuring.evaluate import accuracy, gather
from pnc_hub.cloning.named import named_model
from pnc_hub.cloning.networks import OUTPUT, Lesson, Reader
from pnc_hub.cloning.package import extend
from pnc_hub.cloning.search.curve import Judged, insertion_curve
from pnc_hub.cloning.search.learned import Learned, with_gates
from pnc_hub.cloning.search.select import search_pairs
from pnc_hub.cloning.session import MAX_REPORT_IMAGES, Session
from pnc_hub.errors import DataError, SourceError, TargetError
from pnc_hub.hub.clone import Clone, open_clone
from pnc_hub.models.fingerprint import matches
from pnc_hub.models.insertion import InsertionPoint
from pnc_hub.module import CloneModule

# Images that are looked at; of each side so many make the adapter, which nothing refines later.
MAX_IMAGES, MAX_RIDGE_IMAGES = 10_000, 1000
POOR = 0.3  # share of the variance of the source's logits
# What the report of a port says of the target with the clone, beside the agreement with the source.
MEASURED = ("target_alone", "ori", "diverted", "missed", "auroc", "kl", "restored")


def port(
    clone: Clone | str | Path,
    target: nn.Module | str,
    images: Any,
    *,
    target_data: Any = None,
    insertion: str | None = None,
    locality_budget: float | None = None,
    name: str | None = None,
    target_id: str | None = None,
    held_out: float = 0.1,
    batch_size: int = 64,
    workers: int = 0,
    seed: int = 0,
    device: str | None = None,
    progress: bool = True,
) -> Clone:
    """Fit an adapter and a gate that attach ``clone`` to one more target, inside it. Neither is changed.

    Args:
        clone: a clone with the source's first layers (``pnc_hub.clone(..., universal=True)``), or the id or folder of one.
        target: timm model that is to receive it, or the name of a pretrained one.
        images: what the target will be shown, cloned classes among it, in the forms that ``pnc_hub.clone`` takes for
            ``data``. Labels are not read: the source, through its own first layers, says which images show a cloned class.
        target_data: images of the target's classes, as for ``pnc_hub.clone``; the gate is then learned and calibrated on
            these, else on those of ``images`` that the source does not take for its own.
        insertion: read the target here; by default the best place is searched for.
        locality_budget: largest share of the images like those in ``target_data`` that may be diverted to the clone.
        name: of the adapter in the artifact; by default the target's architecture and fingerprint.
        target_id: Hub id of the target's weights, for the record (known where ``target`` is a name).
        held_out: share of the images that is kept back three times: to choose, to calibrate and to report.
        batch_size: images at a time, of all processes together.
        workers: processes that load images.
        seed: makes the split reproducible; the caller's random state is not touched.
        device: ``"cpu"`` to stay off an accelerator.
        progress: show a progress bar.

    Returns:
        A clone with one more adapter; it can be saved and published in place of the old one. ``report.ported`` says how it
        does on held-out images beside the source itself.

    Raises:
        SourceError: the clone does not have the source's first layers.
        TargetError: the clone has an adapter for this model already, or it is none that can take one.
        DataError: none of the images shows a cloned class, or there are too few.
        InsertionPointError: no such insertion point, or none that fits the cut.
        ValueError: an option is out of range.

    Example:
        >>> import pnc_hub
        >>> ported = pnc_hub.port("user/clone-birds", "vit_small_patch16_224", "photos/")  # doctest: +SKIP
        >>> ported.push_to_hub("user/clone-birds")  # doctest: +SKIP
    """
    session = Session(locality_budget, held_out, batch_size, workers, seed, device, progress, (target_id,))
    clone = open_clone(clone)
    target, target_id, _ = named_model(target, target_id, None, TargetError)
    target = unwrapped(target)
    check_target(target)
    _check_new(clone, target)
    with session.running("port", total=4) as bar, torch.no_grad():
        recalled = Recalled(clone, target, session.accelerator.device)
        shown = Images(open_dataset(images, seed), recalled.target.preprocess, None)
        order = torch.randperm(len(shown), generator=torch.Generator().manual_seed(seed))[:MAX_IMAGES]
        shown = shown.only(order.sort().values.tolist())
        kept, entries = Kept(), [(shown, position) for position in range(len(shown))]
        loader = Loader(entries, session.accelerator, batch_size, workers, kept)
        cloned, others, covered = _sorted(recalled, shown, loader, target_data is None)
        bar.update()
        if target_data is not None:
            opened = open_dataset(target_data, seed)
            others = Images(opened, recalled.target.preprocess, relabel_target(target, opened, clone.labels))
            covered = covers(others.labels, target)
        batches = session.batches(cloned, others, of_target=target_data is not None, covered=covered, kept=kept)
        learned, curve = _fitted(recalled, batches, insertion, locality_budget, bar)
        result, adapter = extend(clone, learned, recalled.target, target, target_id, name)
        observed, facts = session.report(result, adapter, learned, recalled, batches, curve)
        shares = observed.shares()
        adapter.series |= {"gate": observed.series()["gate"]}
        adapter.metrics |= {
            **{name: shares[name] for name in MEASURED},
            **facts,
            "agreement": shares["tar"],
            "agreement_among_cloned": _agreement(learned, recalled, batches),
            "adapter_bytes": result.nbytes(adapter.file),
            "regime": "ported",
        }
        bar.update()
        if learned.match < POOR:
            warnings.warn(
                f"the adapter reproduces {max(0.0, learned.match):.0%} of what the source says of these images: the clone will"
                " hardly work with this target; give more images, or a target that sees what the source does",
                stacklevel=2,
            )
    return session.ended(result, adapter)


class Recalled:
    """The source as far as a clone holds it, beside a new target: what the steps of learning ask of ``Networks``."""

    def __init__(self, clone: Clone, target: nn.Module, device: torch.device) -> None:
        """A frozen copy of the target, and the clone's own module behind the source's first layers, on ``device``."""
        config = clone.config
        self.device, self.target, self.labels = device, Reader(target, device), clone.labels
        universal = next(adapter for adapter in config.adapters if adapter.target is None)
        module, gate = clone.build(universal, self.target.preprocess)
        self.module, self.gate = module.to(device), gate.to(device)
        source = rebuilt(config)
        self.cut = source.point(config.cut)
        self._remembered = Remembered(self._read, exact=(OUTPUT,))
        self.odds = (source.num_classes - len(clone.labels)) / len(clone.labels)

    def teach(self, images: Shown | Tensor, cuts: Collection[str] = ()) -> Lesson:
        """What the source says of the target's ``images`` [B, C, H, W]."""
        found = self._remembered(images, {OUTPUT, *cuts})
        cloned, rejected, penultimate = self.module.answer(found[OUTPUT])
        return Lesson(cloned, rejected, penultimate, {cut: found[cut] for cut in cuts})

    def _read(self, pixels: Tensor, cuts: Collection[str]) -> dict[str, Tensor]:
        feature = self.module.adapter(pixels)
        # the tail may work in place
        return {**dict.fromkeys(cuts, feature), OUTPUT: self.module.tail(feature.clone())}

    def cuts(self) -> dict[str, InsertionPoint]:
        """Where the source is cut."""
        return {self.cut.name: self.cut}


def _check_new(clone: Clone, target: nn.Module) -> None:
    """Raise unless the clone holds the source's first layers and has no adapter for ``target`` yet."""
    adapters = clone.config.adapters
    if all(adapter.target is not None for adapter in adapters):
        raise SourceError(
            f"{clone!r} does not hold the source's first layers ({files.TRUNK}), and those are what an adapter for another"
            " target is fitted to. Learn it again with pnc_hub.clone(..., universal=True), or ask its publisher to"
        )
    names = {name for name, _ in target.named_modules()}
    for adapter in adapters:
        at, made_for = adapter.insertion.name, adapter.target
        if made_for is not None and at in names and matches(target, made_for.trunk, made_for.fingerprint):
            raise TargetError(
                f"{clone!r} has an adapter for this {type(target).__name__} already, {adapter.name!r}, which reads it at"
                f" {at}: attach it as it is. For another one, port the clone as it was without that adapter"
            )


def _sorted(
    recalled: Recalled, shown: Images, loader: Iterable[Any], alone: bool
) -> tuple[Images, Images | None, bool]:
    """Images that the source takes for cloned classes, labelled as it does, and the others.

    Returns:
        The two sides, and whether the target sees most of its classes in the second.
    """

    def answers(images: Tensor) -> dict[str, Tensor]:
        logits, lesson = recalled.target(images)[0], recalled.teach(images)
        log_odds = recalled.gate(logits, lesson.cloned, lesson.rejected, lesson.penultimate)
        # without the offset, which was calibrated on what another target makes of its images
        taken = log_odds + recalled.gate.offset > 0
        return {"taken": taken, "of_source": lesson.cloned.argmax(1), "of_target": logits.argmax(1)}

    given, labels = gather(answers, loader), recalled.labels
    taken, of_source = given["taken"], given["of_source"]
    few = of_source[taken].bincount(minlength=len(labels)) < PARTS
    missing = ", ".join(label for label, is_missing in zip(labels, few.tolist(), strict=True) if is_missing)
    if few.all():
        raise DataError(
            f"the source takes {int(taken.sum())} of {len(shown)} images for a cloned class ({', '.join(labels)}), and"
            f" {PARTS} of at least one of them are needed; give images that show them"
        )
    if missing:
        warnings.warn(
            f"there are fewer than {PARTS} images of {missing}: they are left out of fit and report", stacklevel=3
        )
    usable = (taken & ~few[of_source]).nonzero().flatten().tolist()
    rest = (~taken).nonzero().flatten().tolist()
    cloned = shown.only(usable, of_source[usable].tolist())
    if len(rest) < FEW:
        if alone:
            warnings.warn(
                "the source takes nearly all images for cloned classes, so nothing can be said of what the gate does to others:"
                " give images of the target's classes as target_data, or among images",
                stacklevel=3,
            )
        return cloned, None, False
    return cloned, shown.only(rest), covers(given["of_target"][rest].tolist(), recalled.target.model)


def _fitted(
    recalled: Recalled, batches: Batches, insertion: str | None, budget: float | None, bar: tqdm[Any]
) -> tuple[Learned, list[Judged]]:
    """The best adapter before the clone's own tail and head, with its gate; and the curve it was chosen from."""
    pairs = search_pairs(recalled, (insertion, recalled.cut.name))
    stitches = Stitches(recalled, batches, pairs, MAX_RIDGE_IMAGES)
    for _ in stitches.read():
        pass
    bar.update()
    tail, head = recalled.module.tail, recalled.module.head

    def whole(candidate: Candidate) -> CloneModule:
        return CloneModule(candidate.adapter, tail, head)

    curve = insertion_curve(recalled, batches, stitches, whole, lambda judged: bar.update())
    return with_gates(whole(curve[0].candidate), curve[0], recalled, batches, budget, False), curve


def _agreement(learned: Learned, recalled: Recalled, batches: Batches) -> float:
    """How often the clone's answer is the source's, no matter what the gate says, on the part that no choice was made on."""
    module, point = learned.module.to(recalled.device), learned.insertion.name

    def answers(images: Tensor) -> dict[str, Tensor]:
        return {"logits": module(recalled.target.feature(images, point)).logits}

    given = gather(answers, batches.sides("report", MAX_REPORT_IMAGES)[0])
    return accuracy(given["logits"], given["labels"])
