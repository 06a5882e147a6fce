"""Tiny models of many families, and clones between them that are real in everything but that nothing was learned."""

import copy
import gc
import hashlib
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from pnc_hub.cloning.networks import Networks
from pnc_hub.cloning.package import package, source_config
from pnc_hub.cloning.pruning.localize import prune
from pnc_hub.cloning.search.learned import Learned
from pnc_hub.hub.clone import Clone
from pnc_hub.models.fingerprint import state_digest
from pnc_hub.models.insertion import INPUT
from pnc_hub.module import Adapter, CloneModule, Gate

SIDE = 32
FAMILIES = {
    "resnet": ("resnet18", {"channels": (8, 16, 24, 32), "stem_width": 8}),
    "mobilenet": ("mobilenetv2_035", {}),
    "convnext": ("convnext_atto", {"dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1)}),
    "vit": ("vit_tiny_patch16_224", {"img_size": SIDE, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3}),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {
            "img_size": SIDE,
            "patch_size": 2,
            "window_size": 4,
            "embed_dim": 12,
            "depths": (1, 1, 2),
            "num_heads": (1, 2, 4),
        },
    ),
    "regnet": ("regnetx_002", {}),
}
LABELS = ("ant", "bee", "wasp")


def tiny_model(family: str, num_classes: int = 7, seed: int = 0, **arguments) -> nn.Module:
    """A small classifier of ``family`` for images [3, 32, 32], in eval mode, with weights that are not symmetric."""
    name, own = FAMILIES[family]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = timm.create_model(
            name,
            num_classes=num_classes,
            pretrained_cfg_overlay={"input_size": (3, SIDE, SIDE)},
            **{**own, **arguments},
        )
        for parameter in model.parameters():
            parameter.data += 0.02 * torch.randn_like(parameter)
        model.train()
        with torch.no_grad():
            model(torch.randn(8, 3, SIDE, SIDE))  # running statistics that are not those of initialisation
    return model.eval()


def source_args(family: str) -> dict:
    return FAMILIES[family][1]


def tiny_clone(source: nn.Module, target: nn.Module, **options) -> Clone:
    """A clone with random adapter and gate, see ``_made``; one that was made before is copied, which takes no time."""
    parts = [f"{state_digest(model)} {model} {model.pretrained_cfg}" for model in (source, target)]
    key = (*parts, repr(sorted(options.items())))
    if key not in _MADE:
        _MADE[key] = _made(source, target, **options)
    return copy.deepcopy(_MADE[key])


_MADE: dict[tuple, Clone] = {}


def _made(
    source: nn.Module,
    target: nn.Module,
    *,
    family: str = "resnet",
    labels: tuple[str, ...] = LABELS,
    rows: tuple[int, ...] | None = None,
    insertion: str | None = None,
    cut: str | None = None,
    keep: float | None = None,
    kernel: int = 1,
    universal: bool = True,
    seed: int = 0,
) -> Clone:
    """A clone of ``labels`` (rows ``rows`` of the source's head) with random adapter and gate, from the middle by default.

    ``family`` names the source's; ``keep`` prunes the tail to that share of its parameters; ``kernel`` is the adapter's.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        rows = rows or tuple(range(1, 1 + len(labels)))
        networks = Networks(source, target, list(rows), torch.device("cpu"))
        points = [point for name, point in networks.target.skeleton.points.items() if name != INPUT]
        cuts = list(networks.cuts().values())
        at = networks.target.skeleton.points[insertion] if insertion else points[len(points) // 2]
        after = networks.cuts()[cut] if cut else next(p for p in cuts[len(cuts) // 2 :] if p.layout != "NC")
        reject = (torch.randn(1, networks.width) * 0.1, torch.zeros(1))
        tail, head = networks.tail(after.name), networks.head_rows(reject)
        if keep is not None:
            size = sum(p.numel() for p in [*tail.parameters(), *head.parameters()])
            feature = networks.teach(torch.randn(4, *networks.target.preprocess.input_size), [after.name]).features[
                after.name
            ]
            local = [(feature, torch.zeros(4, dtype=torch.long), torch.ones(4))]
            tail, head = prune(tail, head, after, local, int(keep * size))
        module = CloneModule(Adapter(at, after, kernel), tail, head).eval().requires_grad_(False)
        gates = _random_gate(head), _random_gate(head) if universal else None
        learned = Learned(module, *gates, at, after, 0.0)
        described = source_config(source, source_args(family), None, "apache-2.0", networks)
        return package(learned, networks, described, dict(zip(labels, rows, strict=True)), None, target)


def images(count: int = 4, seed: int = 0, side: int = SIDE, channels: int = 3) -> torch.Tensor:
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(seed))


def slow(*values, id=None):
    """A case of a parametrized test that the quick suite leaves out."""
    return pytest.param(*values, marks=pytest.mark.slow, id=id)


def sha256(path: Path) -> str:
    """Of a file, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _random_gate(head: nn.Linear) -> Gate:
    gate = Gate(head.in_features).requires_grad_(False)
    for parameter in gate.parameters():
        parameter.copy_(0.1 * torch.randn(parameter.shape))
    return gate


def live(count):
    """Tensors in memory that are of ``count`` images, or their features."""
    gc.collect()
    return [
        thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor) and thing.shape[:1] == (count,)
    ]
