"""Is cloning better than training? A network of a clone's size, trained from scratch, joined to the target as a clone is."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pnc_hub.cloning.pruning.units import Units
from pnc_hub.models.cost import parameters
from pnc_hub.models.insertion import INPUT
from recipes.compare.narrowing import narrowed
from recipes.compare.study import Study, gated
from recipes.frame.task import Result, Task

KEEP = 0.5  # share of the source's parameters, as of a clone


def side_network(task: Task) -> Result:
    """The source's architecture with channels removed until half of its parameters are left, and random weights.

    It learns the cloned classes and, where the regime has other images, that those are none of them. Gate and fusion are
    ours.
    """
    study = Study(task)
    others = study.old[0] if study.old else None
    data = study.joint_data(fit=True)
    if others is not None and not study.labelled:
        data = type(data)(*data.parts, (others, 0))

    def loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy over the cloned classes and, last, everything else; each of them weighs the same."""
        new = labels >= study.known
        goal = torch.where(new, labels - study.known, study.count)
        weight = torch.ones(study.count + 1, device=images.device)
        # few images of others would not be heard beside many new ones, and the other way round
        share = (len(data) - len(study.new[0])) / len(data)
        if share:
            weight[-1] = (1 - share) / share / study.count
        logits = model(images)
        if not share:
            return F.cross_entropy(logits[:, :-1], goal)
        return F.cross_entropy(logits, goal, weight)

    model = study.train(narrow_network(study), data, 1.0, loss=loss).requires_grad_(False)

    @torch.no_grad()
    def read(images: Tensor) -> tuple[Tensor, ...]:
        features = model[:-1](images)
        logits = model[-1](features)
        return study.networks.target(images)[0], logits[:, :-1], logits[:, -1], features

    gate = study.fit_gate(read)
    return study.result(lambda images: gated(gate, read(images)), [model, gate])


def narrow_network(study: Study, keep: float = KEEP) -> nn.Sequential:
    """Images as the target takes them -> logits of the cloned classes and, last, of everything else; random weights.

    Every layer behind the source's first cut loses the same share of its channels.

    Raises:
        SourceError: it cannot be made that small.
    """
    networks = study.networks
    cut = next(point for name, point in networks.cuts().items() if name != INPUT)
    trunk, tail = copy.deepcopy(networks.trunk(cut.name)), networks.tail(cut.name)
    head = nn.Linear(networks.width, study.count + 1, device=study.device)
    largest = int(keep * networks.parameters) - parameters(trunk)
    part = narrowed(tail, head, cut, largest, _alike)
    model = nn.Sequential(networks.to_source, trunk, *part)
    _randomise(model, study.task.seed)
    return model.requires_grad_(True)


def _alike(_whole: nn.Module, units: Units) -> list[Tensor]:
    """What makes every layer lose the same share: the weights are random, none is worth more than another."""
    return [torch.arange(1, group.count + 1) / group.count for group in units.groups]


@torch.no_grad()
def _randomise(model: nn.Module, seed: int) -> None:
    """Forget everything that was learned."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        own: set[int] = set()
        for layer in model.modules():
            if hasattr(layer, "reset_parameters"):
                layer.reset_parameters()
                own.update(id(parameter) for parameter in layer.parameters(recurse=False))
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        for parameter in model.parameters():
            if id(parameter) not in own:
                parameter.fill_(1.0)  # scales of a layer's output, as in ConvNeXt
