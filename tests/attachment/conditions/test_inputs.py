"""Batches of any size, images of other sizes than those trained on, and other ways to hand them over."""

import dataclasses
from functools import lru_cache

import battery
import pytest
import torch
from common import FAMILIES, images, tiny_model
from torch.testing import assert_close

import pnc_hub
from attachment.conditions.cases import assert_answers, clone_for, everywhere, join, joined, small
from pnc_hub.errors import ImageError
from pnc_hub.models.insertion import INPUT
from pnc_hub.models.preprocess import Preprocess


@everywhere
def test_one_image_and_many(family, at):
    found = join(family, at)
    with torch.no_grad():
        for count in (1, 2, 33):
            batch = images(count)
            together = found.model(batch)
            assert torch.equal(together[:, :7], found.plain(batch))
            clone, insertion = found.attachment.clone, found.attachment.insertion
            assert_close(together[:, 7:], battery.direct(found.plain, clone, batch, insertion))


@everywhere
def test_no_image(family, at):
    found = join(family, at)
    with torch.no_grad():
        answer = found.model(images(0))
        assert answer.shape == (0, found.together.shape[1])
        assert answer.shape[1] - found.plain(images(0)).shape[1] == len(found.attachment.labels)
        assert torch.equal(found.model(images()), found.together)


def dynamic_vit():
    return small("vit_tiny_patch16_224", dynamic_img_size=True, **FAMILIES["vit"][1])


MODELS = {"resnet": lambda: tiny_model("resnet"), "convnext": lambda: tiny_model("convnext"), "vit": dynamic_vit}


def expected(plain, clone, batch, insertion):
    """``battery.direct`` with the tokens of a transformer in the grid that they come from."""
    adapter = next(a for a in clone.config.adapters if a.insertion.name == insertion)
    point = adapter.insertion if insertion != INPUT else None
    if point is None or point.layout != "NLC":
        return battery.direct(plain, clone, batch, insertion)
    seen = []
    with plain.get_submodule(insertion).register_forward_hook(lambda _m, _a, output: seen.append(output)):
        own = plain(batch)
    grid = [side // 8 for side in batch.shape[2:]]
    maps = seen[0][:, point.prefix_tokens :].transpose(1, 2).unflatten(2, grid)
    module, gate = clone.build(adapter, Preprocess.of(plain))
    module.adapter.target = dataclasses.replace(point, layout="NCHW", prefix_tokens=0)
    logits, reject, features = module(maps)
    log_odds = gate(own, logits, reject, features)
    return logits.log_softmax(1) + log_odds[:, None] + own.logsumexp(1, keepdim=True)


@lru_cache(maxsize=6)
def sized(name, at):
    """One of ``MODELS`` with a clone; every test leaves it so."""
    model = MODELS[name]()
    return joined(model, clone_for(model, at))


SIZES = [(64, 64), (40, 40), (32, 64), (64, 32), (40, 56)]
SMALL = [(16, 16), (16, 64)]  # too small for a convnext


@pytest.mark.parametrize("at", ["interior", INPUT])
@pytest.mark.parametrize(
    ("name", "size"),
    [(name, size) for name in MODELS for size in SIZES + (SMALL if name != "convnext" else [])],
    ids=str,
)
def test_images_of_other_sizes(name, at, size):
    """The right answer, or an ``ImageError``; 16x64 pixels are as many tokens as 32x32, in another grid."""
    found = sized(name, at)
    batch = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        try:
            together = found.model(batch)
        except ImageError:
            assert size[0] != size[1]
        else:
            wanted = expected(found.plain, found.attachment.clone, batch, found.attachment.insertion)
            assert torch.equal(together[:, :7], found.plain(batch))
            assert_close(together[:, 7:], wanted)
        assert torch.equal(found.model(images()), found.together)


@pytest.mark.parametrize("at", ["interior", INPUT])
def test_arguments_in_any_order(at):
    """A transformer of timm takes a mask beside the images."""
    found = join("vit", at)
    model, plain, batch = found.model, found.plain, images()
    mask = torch.ones(17, 17, dtype=torch.bool).tril()
    with torch.no_grad():
        for arguments in ({"x": batch}, {"x": batch, "attn_mask": None}, {"attn_mask": None, "x": batch}):
            assert_answers(model(**arguments), found.alone, found.together)
        assert_answers(model(batch, None), found.alone, found.together)
        masked = plain(batch, attn_mask=mask)
        assert not torch.allclose(masked, found.alone)
        answers = [model(batch, mask), model(x=batch, attn_mask=mask), model(attn_mask=mask, x=batch)]
    for answer in answers:
        assert torch.equal(answer, answers[0])
        assert torch.equal(answer[:, :7], masked)
        assert answer.shape == found.together.shape


def test_a_call_that_the_model_refuses_leaves_it_as_it_was():
    found = join("vit", "interior")
    for arguments in ({}, {"images": images()}, {"x": images(side=40)}):
        with pytest.raises((TypeError, AssertionError)):
            found.model(**arguments)
    with torch.no_grad():
        assert_answers(found.model(images()), found.alone, found.together)
        pnc_hub.detach(found.model)
        assert torch.equal(found.model(images()), found.alone)
