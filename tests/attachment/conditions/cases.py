"""Attached models to put into a condition, and what is asserted of each: it answers as ever, and detach restores it."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import NamedTuple

import battery
import pytest
import timm
import torch
from common import SIDE, images, tiny_clone, tiny_model
from torch import Tensor, nn
from torch.testing import assert_close

import pnc_hub
from pnc_hub.attachment import Attachment
from pnc_hub.hub.clone import Clone
from pnc_hub.models.insertion import INPUT

OTHERS = ("fly", "moth")

everywhere = pytest.mark.parametrize(
    ("family", "at"),
    [
        ("resnet", "interior"),
        ("vit", INPUT),
        pytest.param("vit", "interior", marks=pytest.mark.slow),
        pytest.param("resnet", INPUT, marks=pytest.mark.slow),
    ],
)
once_each = pytest.mark.parametrize(("family", "at"), [("vit", "interior"), ("resnet", INPUT)])
crosswise = pytest.mark.parametrize(("family", "at"), [("resnet", "interior"), ("vit", INPUT)])


class Joined(NamedTuple):
    """A model with a clone attached, and its eager float32 answers to ``images()``."""

    model: nn.Module
    attachment: Attachment
    plain: nn.Module  # a copy that carries no clone
    alone: Tensor
    together: Tensor


@lru_cache(maxsize=8)
def pair(family: str, at: str) -> tuple[nn.Module, tuple[Clone, Clone]]:
    """A model and two clones that attach to it at interior points, or at its input. Not to be changed."""
    model, source = tiny_model(family), tiny_model("convnext", seed=1)
    made_for = tiny_model(family, seed=2) if at == INPUT else model
    points = [point.name for point in pnc_hub.insertion_points(model)]
    return model, (
        tiny_clone(source, made_for, family="convnext"),
        tiny_clone(source, made_for, family="convnext", labels=OTHERS, rows=(4, 5), insertion=points[-2], seed=1),
    )


def join(family: str, at: str) -> Joined:
    """A fresh model of ``family`` with a clone attached at ``at``."""
    model, clones = pair(family, at)
    alone, together = answers(family, at)
    attached = copy.deepcopy(model)
    return Joined(attached, pnc_hub.attach(attached, clones[0]), copy.deepcopy(model), alone, together)


@lru_cache(maxsize=8)
def answers(family: str, at: str) -> tuple[Tensor, Tensor]:
    """What the model and the attached model of ``join`` answer to ``images()``. Not to be changed."""
    model, clones = pair(family, at)
    return joined(copy.deepcopy(model), clones[0])[3:]


@torch.no_grad()
def joined(model: nn.Module, clone: Clone, batch: Tensor | None = None) -> Joined:
    """``model`` with ``clone`` attached; its answer is checked against the formula."""
    batch = images() if batch is None else batch
    plain = copy.deepcopy(model)
    alone = plain(batch)
    attachment = pnc_hub.attach(model, clone)
    together = model(batch)
    own = alone.shape[1]
    assert torch.equal(together[:, :own], alone)
    assert together[:, own:].std() > 1e-3
    assert_close(together[:, own:], battery.direct(plain, clone, batch, attachment.insertion))
    return Joined(model, attachment, plain, alone, together)


def assert_answers(found: Tensor, alone: Tensor, together: Tensor, *, rtol: float = 1e-4, atol: float = 1e-4) -> None:
    """``found`` holds ``alone``, the model's own answer in the same condition, bit for bit, and then the clone's logits."""
    own = alone.shape[1]
    assert found.shape == together.shape
    assert found.dtype == alone.dtype
    assert torch.equal(found[:, :own], alone)
    assert_close(found[:, own:].float(), together[:, own:].float(), rtol=rtol, atol=atol)


@contextmanager
def restored(model: nn.Module, batch: Tensor | None = None) -> Iterator[None]:
    """Whatever is attached within the block: detached at its end, the model is what it was."""
    batch = images() if batch is None else batch
    with torch.no_grad():
        alone, before = model(batch), battery.snapshot(model)
        yield
        pnc_hub.detach(model)
        assert pnc_hub.attachments(model) == ()
        assert battery.snapshot(model) == before
        assert torch.equal(model(batch), alone)


def small(
    name: str, *, side: int = SIDE, in_chans: int = 3, num_classes: int = 7, seed: int = 0, **arguments
) -> nn.Module:
    """Any timm model, made like ``tiny_model``: in eval mode, with weights that are not symmetric."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = timm.create_model(
            name,
            num_classes=num_classes,
            in_chans=in_chans,
            pretrained_cfg_overlay={"input_size": (in_chans, side, side)},
            **arguments,
        )
        for parameter in model.parameters():
            parameter.data += 0.02 * torch.randn_like(parameter)
        model.train()
        with torch.no_grad():
            model(torch.randn(8, in_chans, side, side))
    return model.eval()


@lru_cache(maxsize=1)
def universal() -> Clone:
    """A clone that attaches to any model, at its input. Not to be changed."""
    return tiny_clone(tiny_model("convnext", seed=1), tiny_model("resnet", seed=2), family="convnext")


def clone_for(model: nn.Module, at: str) -> Clone:
    """A clone that attaches to ``model`` at ``at``."""
    return universal() if at == INPUT else tiny_clone(tiny_model("convnext", seed=1), model, family="convnext")
