"""``pnc_hub.clone``: localise, stitch, refine, gate, measure."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset
from tqdm.auto import tqdm

from pnc_hub.artifact import Clone
from pnc_hub.cloning import data as images_of
from pnc_hub.cloning import gate as gates
from pnc_hub.cloning import localize, stitch
from pnc_hub.cloning.evaluate import gather, measure
from pnc_hub.cloning.networks import Networks
from pnc_hub.cloning.package import Learned, package, source_config
from pnc_hub.cloning.refine import Recipe, distillation_loss, refine
from pnc_hub.errors import DataError, InsertionPointError, NoClassifierError, SourceError, TargetError
from pnc_hub.module import CloneModule
from pnc_hub.points import INPUT

MAX_RIDGE_IMAGES = 2000
MAX_RANKED_IMAGES = 128
FINALISTS = 3
# A candidate of the source's full size must be this much more accurate than one of no size to be preferred.
SIZE_PRICE = 0.02


@dataclass
class _Data:
    """Images of the cloned classes, and of the target's where they were given, each in three parts."""

    cloned: images_of.Split
    target: images_of.Split | None
    accelerator: Accelerator
    batch_size: int
    workers: int
    seed: int

    def loader(self, parts: Iterable[Dataset | None], shuffle: bool = False, most: int | None = None) -> DataLoader:
        """Batches over several data sets together; at most ``most`` images, drawn by the seed."""
        dataset: Any = ConcatDataset([part for part in parts if part is not None])
        generator = torch.Generator().manual_seed(self.seed)
        if most is not None and len(dataset) > most:
            dataset = Subset(dataset, torch.randperm(len(dataset), generator=generator)[:most].tolist())
        loader = DataLoader(
            dataset,
            self.batch_size,
            shuffle=shuffle,
            num_workers=self.workers,
            generator=generator if shuffle else None,
        )
        return self.accelerator.prepare(loader)

    def mixed(self, name: str, **options: Any) -> DataLoader:
        """Images of both sides from the part ``name``; the target's come unlabelled."""
        other = getattr(self.target, name) if self.target else None
        return self.loader([getattr(self.cloned, name), _Unlabelled(other) if other else None], **options)


class _Unlabelled(Dataset):
    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.dataset[index][0], images_of.UNLABELLED


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
    epochs: int = 10,
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
        prepared = _Data(*splits, accelerator, batch_size, workers, seed)
        bar = tqdm(desc="search", unit="step", disable=not (progress and accelerator.is_main_process), leave=False)
        with bar:
            learned = _learn(
                networks, prepared, (insertion, cut), keep, Recipe(epochs, learning_rate, tune), locality_budget, bar
            )
            bar.set_description("measure")
            result = package(learned, networks, described, wanted, target_id, target, universal)
            _report(result, learned, networks, prepared, time.perf_counter() - started)
    return result


def _learn(
    networks: Networks,
    prepared: _Data,
    fixed: tuple[str | None, str | None],
    keep: float,
    recipe: Recipe,
    budget: float | None,
    bar: tqdm,
) -> Learned:
    """The best of a few refined candidates, judged on held-out images."""
    cloned, target = prepared.cloned, prepared.target
    held_out = prepared.mixed("choose")
    reject = _reject_row(networks, prepared)
    candidates = _candidates(networks, prepared, fixed)
    largest = int(keep * networks.parameters)
    best: Learned | None = None
    skipped: list[str] = []
    for candidate in _finalists(candidates, networks):
        bar.set_description(f"{candidate.target.name} -> {candidate.source.name}")
        room = largest - localize.parameters(candidate.adapter) - networks.width - 10
        try:
            tail, head = localize.prune(
                networks.tail(candidate.source.name),
                networks.head_rows(reject),
                candidate.source,
                _local_set(networks, prepared, candidate.source.name),
                room,
            )
        except SourceError as error:
            skipped.append(str(error))
            continue
        module = CloneModule(candidate.adapter, tail, head, len(networks.classes)).to(networks.device)
        pair = (candidate.target.name, candidate.source.name)
        refine(
            module,
            networks,
            prepared.accelerator,
            pair,
            prepared.mixed("fit", shuffle=True),
            lambda module, pair=pair: -_held_out_loss(module, networks, pair, held_out),
            recipe,
            torch.Generator().manual_seed(prepared.seed),
            bar.update,
        )
        learned = _with_gate(module, candidate, networks, prepared, budget)
        size = localize.parameters(module) / networks.parameters
        learned.score -= SIZE_PRICE * size
        best = learned if best is None or learned.score > best.score else best
    if best is None:
        raise SourceError(
            f"no candidate fits into {keep:.0%} of the source's parameters: {skipped[0] if skipped else 'none was found'}"
        )
    best.curve = [(c.target.name, c.source.name, c.match, c.tail_parameters) for c in candidates]
    best.regime = "R4" if target else "R1"
    best.images = len(cloned.fit) + len(cloned.choose) + (len(target.fit) + len(target.choose) if target else 0)
    return best


def _with_gate(
    module: CloneModule, candidate: stitch.Candidate, networks: Networks, prepared: _Data, budget: float | None
) -> Learned:
    """Gates for this target and for any, calibrated and scored on the held-out part."""
    module.eval().requires_grad_(False)
    point = candidate.target.name

    def evidence(part: str) -> tuple[gates.Evidence, gates.Evidence | None]:
        cloned = gather(networks.target, module, point, prepared.loader([getattr(prepared.cloned, part)]))
        if prepared.target is None:
            return cloned, None
        return cloned, gather(networks.target, module, point, prepared.loader([getattr(prepared.target, part)]))

    fit, choose = evidence("fit"), evidence("choose")
    gate = gates.fit(*fit, choose, universal=False)
    gate.offset.fill_(gates.best_offset(gate, *choose, budget))
    anywhere = gates.fit(*fit, choose, universal=True)
    score = (
        ((choose[0].margin(gate) > 0) & (choose[0].clone_logits.argmax(1) == choose[0].labels)).float().mean().item()
    )
    if choose[1] is not None:
        score = (score + (choose[1].margin(gate) <= 0).float().mean().item()) / 2
    return Learned(module, gate, anywhere, candidate.target, candidate.source, score)


def _candidates(networks: Networks, prepared: _Data, fixed: tuple[str | None, str | None]) -> list[stitch.Candidate]:
    points, cuts = networks.points(), networks.cuts()
    for name, known, what in (
        (fixed[0], points, "insertion point of the target"),
        (fixed[1], cuts, "cut of the source"),
    ):
        if name is not None and name not in known:
            raise InsertionPointError(f"{name!r} is no {what}; there are {', '.join(known)}")
    if fixed[0] == INPUT:
        raise InsertionPointError(
            "an adapter reads an interior point; every clone made with universal=True fits the input"
        )
    pairs = stitch.admissible_pairs(points, cuts, *fixed)
    if not pairs:
        raise InsertionPointError(
            f"no pair of an insertion point ({fixed[0] or 'any'}) and a cut ({fixed[1] or 'any'}) fits: maps may grow at most"
            " twofold, and a vector can not become a map"
        )
    fit = prepared.mixed("fit", most=MAX_RIDGE_IMAGES)
    held_out = prepared.mixed("choose", most=MAX_RANKED_IMAGES)
    return stitch.search(networks, prepared.accelerator, fit, held_out, pairs, prepared.seed)


def _finalists(candidates: list[stitch.Candidate], networks: Networks) -> list[stitch.Candidate]:
    """The best match of each cut, the few best of those at a price for their size."""
    by_cut: dict[str, stitch.Candidate] = {}
    for candidate in candidates:
        by_cut.setdefault(candidate.source.name, candidate)

    def worth(candidate: stitch.Candidate) -> float:
        return candidate.match - 0.1 * candidate.tail_parameters / networks.parameters

    return sorted(by_cut.values(), key=worth, reverse=True)[:FINALISTS]


def _reject_row(networks: Networks, prepared: _Data) -> tuple[Tensor, Tensor] | None:
    """The energy of the source's other classes as one more linear row of its head; None where there are none."""
    if not len(networks.others):
        return None

    def rows(images: Tensor) -> tuple[Tensor, Tensor]:
        lesson = networks.teach(images)
        return lesson.penultimate, lesson.rejected[:, None]

    moments = [
        stitch.fit_rows(prepared.accelerator, prepared.mixed(part, most=MAX_RIDGE_IMAGES), rows)
        for part in ("fit", "choose")
    ]
    weights = stitch.ridge(*moments).float()
    return weights[:-1, 0], weights[-1, 0]


def _local_set(networks: Networks, prepared: _Data, cut: str) -> Iterable[tuple[Tensor, Tensor, Tensor]]:
    """Batches of (source feature at the cut, class or reject row, proximity): images, neighbours, and the target's images."""
    generator = torch.Generator().manual_seed(prepared.seed)
    for images, labels in prepared.loader([prepared.cloned.fit], most=MAX_RIDGE_IMAGES):
        changed, near = localize.neighbours(images, generator)
        for batch, weight in ((images, torch.ones_like(near)), (changed, near)):
            yield networks.teach(batch, [cut]).features[cut], labels, weight
    if prepared.target is not None and len(networks.others):
        for images, labels in prepared.loader([prepared.target.fit], most=MAX_RIDGE_IMAGES):
            reject = torch.full_like(labels, len(networks.classes))
            yield networks.teach(images, [cut]).features[cut], reject, torch.ones(len(labels), device=networks.device)


@torch.no_grad()
def _held_out_loss(module: CloneModule, networks: Networks, pair: tuple[str, str], batches: Iterable) -> float:
    total, count = 0.0, 0
    for images, labels in batches:
        _, read = networks.target(images, [pair[0]])
        ones = torch.ones(len(labels), device=networks.device)
        loss = distillation_loss(
            module(read[pair[0]]), networks.teach(images), labels, ones, module, bool(len(networks.others))
        )
        total, count = total + float(loss) * len(labels), count + len(labels)
    return total / count


def _report(result: Clone, learned: Learned, networks: Networks, prepared: _Data, seconds: float) -> None:
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
        "regime": learned.regime,
        "images": learned.images,
        "seconds": round(seconds, 2),
    }


def _splits(
    networks: Networks, wanted: dict[str, int], opened: Any, target_data: Any, seed: int
) -> tuple[images_of.Split, images_of.Split | None]:
    preprocess = networks.target.preprocess
    relabel = images_of.relabel_cloned(wanted, images_of.class_names(opened))
    cloned = images_of.Images(opened, preprocess, relabel)
    missing = sorted(set(range(len(wanted))) - set(cloned.labels))
    if missing:
        raise DataError(f"no images of {', '.join(list(wanted)[position] for position in missing)} in the data")
    if target_data is None:
        return images_of.Split.of(cloned, seed), None
    opened = images_of.open_dataset(target_data)
    old = images_of.Images(opened, preprocess, images_of.relabel_target(networks.target.model, opened))
    return images_of.Split.of(cloned, seed), images_of.Split.of(old, seed)


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
