"""Up to 32 clones in one model: each keeps its logits, whatever the order, and goes without a trace."""

import copy
import random
from functools import lru_cache

import battery
import pytest
import torch
from common import LABELS, images, tiny_clone, tiny_model
from torch.testing import assert_close

import pnc_hub
from pnc_hub.models.insertion import INPUT

NUMBERS = (1, 2, 4, 8, 16, 32)


@lru_cache(maxsize=1)
def many():
    """A model and 32 clones of other weights each: at three of its points in turn, of one to three classes."""
    model, source = tiny_model("vit"), tiny_model("convnext", seed=1)
    points = [point.name for point in pnc_hub.insertion_points(model) if point.name.startswith("blocks")]
    kinds = [
        tiny_clone(source, model, family="convnext", labels=LABELS[: count + 1], insertion=point, universal=False)
        for count, point in enumerate(points)
    ]
    assert len(kinds) == 3
    clones = [copy.deepcopy(kinds[number % 3]) for number in range(32)]
    generator = torch.Generator().manual_seed(0)
    for number, clone in enumerate(clones):
        for entry in clone.config.classes:
            entry.label += f" {number}"
        for tensors in clone.tensors.values():
            for name, value in tensors.items():
                if value.is_floating_point() and "running_var" not in name:
                    tensors[name] = value + 0.02 * torch.randn(value.shape, generator=generator)
    return model, clones


def answers(model, attached):
    """The logits of each clone by its labels, and the model's own."""
    with torch.no_grad():
        output = model(images())
    assert output.shape == (4, model.num_classes)
    own = 7
    assert model.num_classes == own + sum(len(attachment.labels) for attachment in attached)
    return {attachment.labels: output[:, attachment.logit_slice] for attachment in attached}, output[:, :own]


@lru_cache(maxsize=1)
def each_by_itself():
    """What the model answers with no clone, and the logits of each clone when it is the only one."""
    model, clones = many()
    model, expected = copy.deepcopy(model), {}
    with torch.no_grad():
        alone = model(images())
    for clone in clones:
        with pnc_hub.attach(model, clone) as attachment:
            found, own = answers(model, [attachment])
            assert torch.equal(own, alone)
            expected |= found
    assert len(expected) == 32
    return alone, expected


def assert_same(found, expected):
    for labels, logits in found.items():
        assert torch.equal(logits, expected[labels])


@pytest.mark.parametrize("number", [*(pytest.param(n, marks=pytest.mark.slow) for n in NUMBERS if n != 8), 8])
def test_order_does_not_matter(number):
    model, clones = many()
    model, clones = copy.deepcopy(model), clones[:number]
    alone, expected = each_by_itself()
    before, places = battery.snapshot(model), []
    for order in (clones, clones[::-1], random.Random(0).sample(clones, number)):
        attached = [pnc_hub.attach(model, clone) for clone in order]
        assert pnc_hub.attachments(model) == tuple(attached)
        found, own = answers(model, attached)
        assert_same(found, expected)
        assert torch.equal(own, alone)
        places.append([attachment.logit_slice.start for attachment in attached])
        pnc_hub.detach(model)
        assert battery.snapshot(model) == before
    assert all(starts == sorted(starts) and starts[0] == 7 for starts in places)


@pytest.mark.parametrize("number", [6, pytest.param(32, marks=pytest.mark.slow)])
def test_any_one_can_go(number):
    model, clones = many()
    model, clones = copy.deepcopy(model), clones[:number]
    before = battery.snapshot(model)
    attached = [pnc_hub.attach(model, clone) for clone in clones]
    expected, alone = answers(model, attached)
    assert len(expected) == number
    for place in random.Random(0).sample(range(number), number):
        gone = attached[place]
        attached[place] = None
        gone.detach()
        rest = [attachment for attachment in attached if attachment]
        found, own = answers(model, rest)
        assert_same(found, expected)
        assert torch.equal(own, alone)
    assert battery.snapshot(model) == before


def test_any_can_be_silent():
    model, clones = many()
    model = copy.deepcopy(model)
    attached = [pnc_hub.attach(model, clone) for clone in clones[:8]]
    expected, alone = answers(model, attached)
    for attachment in attached:
        with attachment.disabled():
            found, own = answers(model, [other for other in attached if other is not attachment])
            assert_same(found, expected)
            assert torch.equal(own, alone)
    assert_same(answers(model, attached)[0], expected)


def test_clones_at_one_point_share_its_hook():
    model, clones = many()
    model = copy.deepcopy(model)
    counts = []
    for number in (3, 32):
        attached = [pnc_hub.attach(model, clone) for clone in clones[:number]]
        points = {attachment.insertion for attachment in attached}
        assert len(points) == 3
        assert [len(model.get_submodule(point)._forward_hooks) for point in sorted(points)] == [1, 1, 1]
        counts.append(sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()))
        pnc_hub.detach(model)
    assert counts[0] == counts[1]


@pytest.mark.filterwarnings("ignore:.*it is attached at the input")
def test_clones_at_the_input_and_within_together():
    model, clones = many()
    source = tiny_model("convnext", seed=1)
    at_input = [
        tiny_clone(source, tiny_model("resnet"), family="convnext", labels=(f"seen {number}",), seed=number)
        for number in range(3)
    ]
    model, plain = copy.deepcopy(model), copy.deepcopy(model)
    mixed = [clone for both in zip(clones[:3], at_input, strict=True) for clone in both]
    attached = [pnc_hub.attach(model, clone) for clone in mixed]
    assert [attachment.insertion == INPUT for attachment in attached] == [False, True] * 3
    found, _ = answers(model, attached)
    for attachment, clone in zip(attached, mixed, strict=True):
        assert_close(found[clone.labels], battery.direct(plain, clone, images(), attachment.insertion))


def test_the_same_clone_many_times():
    model, clones = many()
    model = copy.deepcopy(model)
    attached = [pnc_hub.attach(model, clones[2], on_collision="allow") for _ in range(8)]
    with torch.no_grad():
        output = model(images())
    assert output.shape == (4, 7 + 8 * 3)
    for attachment in attached[1:]:
        assert torch.equal(output[:, attachment.logit_slice], output[:, attached[0].logit_slice])
    attached[3].detach()
    assert len(pnc_hub.attachments(model)) == 7
    assert attached[4].clone is clones[2]
