"""A unit's mask does what its removal does, and sizes are known before anything is removed."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from cloning.learning import few
from cloning.test_localize import parts
from pnc_hub.cloning.pruning.localize import _stand_in
from pnc_hub.cloning.pruning.units import masked, units_of
from pnc_hub.models.cost import parameters
from pnc_hub.models.insertion import empty


def prunable(family):
    """(network, units, cut, feature)."""
    _, _, cut, tail, head, local_set = parts(family)
    whole = nn.Sequential(_stand_in(cut, torch.device("cpu")), tail, head).eval().requires_grad_(True)
    return whole, units_of(whole, empty(cut, batch=2)), cut, local_set[0][0]


def some(units, seed=0, but=lambda group: False):
    """Of each group a random half."""
    generator = torch.Generator().manual_seed(seed)
    kept = [torch.rand(group.count, generator=generator) < 0.5 for group in units.groups]
    for group, stays in zip(units.groups, kept, strict=True):
        stays[0] = True
        if but(group):
            stays[:] = True
    return kept


def normalised_over_channels(group):
    return any(isinstance(dep.target.module, nn.LayerNorm) for dep, _ in group.dependency or ())


@pytest.mark.parametrize("family", few("mobilenet", "swin"))
def test_masks_do_what_removal_does(family):
    whole, units, _, feature = prunable(family)
    kept = some(units, but=normalised_over_channels)
    with torch.no_grad():
        plain = whole(feature)
        with masked(units.groups, [stays.float() for stays in kept]):
            expected = whole(feature)
        assert torch.equal(whole(feature), plain)
    for group, stays in zip(units.groups, kept, strict=True):
        if not stays.all():
            group.remove((~stays).nonzero().flatten().tolist())
    assert (expected - plain).abs().max() > 1e-3
    assert_close(whole(feature), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", few("mobilenet", "swin"))
def test_sizes_are_known_in_advance(family):
    whole, units, _, _ = prunable(family)
    assert units.size == parameters(whole[1:])
    kept = some(units)
    expected = units.parameters([int(stays.sum()) for stays in kept])
    for group, stays in zip(units.groups, kept, strict=True):
        if not stays.all():
            group.remove((~stays).nonzero().flatten().tolist())
    assert parameters(whole[1:]) == expected < units.size


@pytest.mark.parametrize("family", few("mobilenet", "swin"))
def test_masks_of_single_images(family):
    """Each image has its own mask, also where attention works on windows of several images at once."""
    whole, units, _, feature = prunable(family)
    one, other = ([stays.float() for stays in some(units, seed)] for seed in (0, 1))
    mixed = [torch.stack([a, b]).repeat_interleave(8, 0) for a, b in zip(one, other, strict=True)]
    with torch.no_grad():
        with masked(units.groups, mixed):
            found = whole(feature)
        for masks, rows in ((one, slice(0, 8)), (other, slice(8, 16))):
            with masked(units.groups, masks):
                assert_close(found[rows], whole(feature)[rows], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", few("mobilenet", "swin"))
def test_what_touches_the_input_is_no_unit(family):
    whole, units, _, _ = prunable(family)
    fixed = {id(tensor) for tensor in whole[0].parameters()}
    assert units.groups
    assert not any(
        id(tensor) in fixed for group in units.groups for tensor, dimension, _ in group.shares if not dimension
    )
    assert not any(
        whole[2].weight is tensor for group in units.groups for tensor, dimension, _ in group.shares if not dimension
    )


def test_attention_of_another_form_keeps_its_heads():
    whole, units, cut, _ = prunable("vit")
    heads = sum(group.dependency is None for group in units.groups)
    assert heads == sum(hasattr(layer, "qkv") for layer in whole.modules())
    for layer in whole.modules():
        if hasattr(layer, "qkv"):
            layer.scale_of_heads = nn.Parameter(torch.ones(layer.num_heads))
    assert not any(group.dependency is None for group in units_of(whole, empty(cut, batch=2)).groups)
