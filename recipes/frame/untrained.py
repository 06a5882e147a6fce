"""Models and clones in which nothing was learned, for measurements in which accuracy plays no part."""

import timm
import torch
from torch import nn

from pnc_hub.cloning.networks import Networks
from pnc_hub.cloning.package import package, source_config
from pnc_hub.cloning.pruning.localize import prune
from pnc_hub.cloning.search.learned import Learned
from pnc_hub.hub.clone import Clone
from pnc_hub.models.cost import parameters
from pnc_hub.models.insertion import empty
from pnc_hub.module import Adapter, CloneModule, Gate


def untrained_clone(
    target: nn.Module,
    source: nn.Module,
    labels: tuple[str, ...],
    insertion: str,
    cut: str,
    *,
    keep: float | None = None,
    seed: int = 0,
) -> Clone:
    """A clone of the first ``labels`` rows of ``source`` for ``target``, with a random adapter and gate.

    Args:
        target: the model that it will be attached to, a timm model.
        source: built by ``timm.create_model`` from its name and a number of classes, with no other argument.
        labels: names of the cloned classes.
        insertion: name of the target's insertion point.
        cut: name of the source's module after which the tail begins.
        keep: share of the tail's parameters that pruning leaves; the whole tail if None.
        seed: of everything that is random.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        networks = Networks(source, target, list(range(len(labels))), torch.device("cpu"))
        at, after = networks.target.skeleton.points[insertion], networks.cuts()[cut]
        tail, head = networks.tail(cut), networks.head_rows((0.1 * torch.randn(1, networks.width), torch.zeros(1)))
        if keep is not None:
            feature = torch.randn_like(empty(after, batch=2))
            local = [(feature, torch.zeros(2, dtype=torch.long), torch.ones(2))]
            tail, head = prune(tail, head, after, local, int(keep * (parameters(tail) + parameters(head))))
        module = CloneModule(Adapter(at, after), tail, head).eval().requires_grad_(False)
        gate = Gate(head.in_features).requires_grad_(False)
        for parameter in gate.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape))
        learned = Learned(module, gate, None, at, after, 0.0)
        described = source_config(source, {}, None, "apache-2.0", networks)
        classes = {label: row for row, label in enumerate(labels)}
        return package(learned, networks, described, classes, None, target)


def random_model(name: str, seed: int = 0) -> nn.Module:
    """``name`` of timm with random weights, none of them zero by initialisation (pruning would find nothing to choose)."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = timm.create_model(name).eval().requires_grad_(False)
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return model
