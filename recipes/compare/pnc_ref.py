"""``pnc_ref``: our reading of Partial Network Cloning as it was published (Ye, Liu and Wang, CVPR 2023, arXiv:2303.10597).

The authors published no code, so this is no reproduction. As we read the paper: channel masks on the source's later layers
are learned, its weights fixed, so that near the images of the cloned classes it still says what it said; the part that is left
is joined to the target by a trained 1x1 convolution, tried from the deepest insertion point upwards until a try is worse
than the one before; the clone's logits stand beside the target's. There is no gate, no closed form and no tuning of the tail.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pnc_hub.cloning.pruning.units import Units, masked
from pnc_hub.errors import SourceError
from pnc_hub.models.cost import parameters
from pnc_hub.models.insertion import INPUT, InsertionPoint
from pnc_hub.module import Adapter
from recipes.compare.narrowing import narrowed
from recipes.compare.neighbours import neighbours
from recipes.compare.study import Study, few_of_each
from recipes.frame.task import Result, Task

# Usual values, not tuned.
KEEP = 0.5  # largest share of the source's parameters, adapter included
LOCAL_IMAGES = 100  # of each cloned class
SHARE = 0.5  # of the passes that a network is trained for, at each insertion point
TEMPERATURE = 2.0
RECIPE = ("adamw", 2e-3, 1e-4)
# Learning the masks: passes over the local set, batch, rate, weight of what is above the budget.
MASK_PASSES, MASK_BATCH, MASK_RATE, SPARSITY = 10, 64, 0.05, 10.0


def pnc_ref(task: Task) -> Result:
    """Localise, then insert from deep to shallow; keep the best validation score, stop at the first drop."""
    study = Study(task)
    pairs = _pairs(study)
    best: Insertion | None = None
    tried = 0
    for point, cut in pairs:
        inserted = _inserted(study, point, cut)
        if inserted is None:
            continue
        tried += 1
        if best is not None and inserted.score < best.score:
            break
        best = inserted if best is None or inserted.score > best.score else best
    if best is None:
        raise SourceError(f"nothing of the source fits into {KEEP:.0%} of its parameters")
    return study.result(
        best.predict, [best.module], insertion=best.point.name, cut=best.cut.name, insertions_tried=tried
    )


@dataclass
class Insertion:
    """One try: where, what is inserted there, and how it does on held-out images."""

    point: InsertionPoint
    cut: InsertionPoint
    module: nn.Sequential
    predict: Callable[[Tensor], Tensor]
    score: float


def _pairs(study: Study) -> list[tuple[InsertionPoint, InsertionPoint]]:
    """The last point of each of the target's stages, deepest first, and the source's last cut with a map of about that size.

    The paper inserts at the depth at which the source is cut.
    """
    stages = {}
    for point in study.networks.target.skeleton.points.values():
        if point.name != INPUT:
            stages[point.channels, point.grid, point.layout] = point
    cuts = list(study.networks.cuts().values())

    def cut_for(point: InsertionPoint) -> InsertionPoint:
        vector = point.layout == "NC"
        alike = [cut for cut in cuts if (cut.layout == "NC") == vector] or cuts
        return min(reversed(alike), key=lambda cut: abs(cut.grid[0] - point.grid[0]))

    return [(point, cut_for(point)) for point in reversed(stages.values())]


def _localised(study: Study, cut: InsertionPoint, largest: int) -> tuple[nn.Module, nn.Linear]:
    """Tail and head rows behind ``cut``, without the channels that the source's answers near the cloned classes need least.

    Raises:
        SourceError: it cannot be made that small.
    """
    networks, count = study.networks, study.count
    # the masked source is compared by all its classes: over a single cloned one there would be nothing to imitate
    order = torch.cat([networks.classes, networks.others])
    head = _linear(networks.head.weight[order], networks.head.bias[order])
    spare = head.weight[count:].numel() + len(head.bias[count:])  # counted by the pruning, and dropped after it
    chosen = few_of_each(study.new[0], LOCAL_IMAGES, study.task.seed)
    generator = torch.Generator().manual_seed(study.task.seed)
    local = []
    for images, labels in study.loader(chosen):
        changed, near = neighbours(images, generator)
        for batch, weight in ((images, torch.ones_like(near)), (changed, near)):
            feature = networks.source(networks.to_source(batch), [cut.name])[1][cut.name]
            local.append((feature, labels.to(study.device), weight))
    local = [part for batch in local for part in zip(*(value.split(MASK_BATCH) for value in batch), strict=True)]
    learn = LearnedMasks(local, largest + spare, generator)
    tail, head = narrowed(networks.tail(cut.name), head, cut, largest + spare, learn)
    return tail, _linear(head.weight[:count], head.bias[:count])


class LearnedMasks:
    """What units are worth: masks learned with the weights fixed, as ``narrowed`` asks for."""

    def __init__(self, local: list[tuple[Tensor, Tensor, Tensor]], largest: int, generator: torch.Generator) -> None:
        """``local``: batches of (feature at the cut, label, proximity); ``largest``: parameters that may stay."""
        self.local, self.largest, self.generator = local, largest, generator

    def __call__(self, whole: nn.Sequential, units: Units) -> list[Tensor]:
        """Mask values; they begin nearly open."""
        whole.requires_grad_(False)
        device = whole[2].weight.device
        masks = [torch.full((group.count,), 2.0, device=device, requires_grad=True) for group in units.groups]
        optimizer = torch.optim.Adam(masks, MASK_RATE)
        for _ in range(MASK_PASSES):
            for index in torch.randperm(len(self.local), generator=self.generator).tolist():
                feature, _, near = self.local[index]
                with torch.no_grad():
                    goal = (whole(feature) / TEMPERATURE).softmax(1)
                soft = [mask.sigmoid() for mask in masks]
                with masked(units.groups, soft):
                    said = (whole(feature) / TEMPERATURE).log_softmax(1)
                error = (F.kl_div(said, goal, reduction="none").sum(1) * near).sum() / near.sum()
                loss = error + SPARSITY * self._too_much(units, soft)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return [mask.detach().sigmoid() for mask in masks]

    def _too_much(self, units: Units, soft: list[Tensor]) -> Tensor:
        """Share of the parameters that is kept above the budget, as far as masks of single units tell."""
        removed = sum(cost * (1 - mask).sum() for cost, mask in zip(units.costs(), soft, strict=True))
        return ((units.size - removed - self.largest) / units.size).clamp_min(0)


@torch.no_grad()
def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], len(weight), device=weight.device).requires_grad_(False)
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)
    return layer


def _inserted(
    study: Study,
    point: InsertionPoint,
    cut: InsertionPoint,
) -> Insertion | None:
    """Adapter and head rows at ``point``, trained by distillation and cross-entropy; None where it cannot be small enough."""
    networks = study.networks
    with torch.random.fork_rng():
        torch.manual_seed(study.task.seed)
        adapter = Adapter(point, cut, device=study.device)
    try:
        tail, rows = _localised(study, cut, int(KEEP * networks.parameters) - parameters(adapter))
    except SourceError:
        return None
    module = nn.Sequential(adapter, tail.requires_grad_(False), rows.requires_grad_(True))

    def read(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        target, features = networks.target(images, [point.name])
        return target.float(), model(features[point.name]).float()

    def loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        model.eval()  # batch statistics stay the source's
        target, cloned = read(model, images)
        new = labels >= study.known
        # among the cloned classes; with the target's images also against the target's logits, which do not move
        judged = torch.cat([target, cloned], 1) if study.labelled else cloned
        truth = F.cross_entropy(judged, labels if study.labelled else labels - study.known, reduction="none")
        weight = _same_for_both(new)
        # the logits themselves, not their softmax: beside the target's, their level decides
        goal = networks.teach(images).cloned.float()
        distilled = ((cloned - goal) ** 2).mean(1) / goal.var().clamp_min(1e-6)
        return (weight * (truth + distilled)).sum()

    module = study.train(module, study.joint_data(repeat=True, fit=True), SHARE, RECIPE, loss).requires_grad_(False)

    @torch.no_grad()
    def predict(images: Tensor) -> Tensor:
        return torch.cat(read(module, images), 1)

    def among_cloned(images: Tensor) -> Tensor:
        return predict(images).index_fill(1, torch.arange(study.known, device=study.device), float("-inf"))

    # without the target's images the largest joint accuracy is that of a clone which shouts everything down
    score = study.held_out_score(predict if study.labelled else among_cloned)
    return Insertion(point, cut, module, predict, score)


def _same_for_both(new: Tensor) -> Tensor:
    """Weights [B] that sum to one, half of it for either side of which there are images."""
    sides = [side.float() for side in (new, ~new) if side.any()]
    return sum(side / side.sum() for side in sides) / len(sides)
