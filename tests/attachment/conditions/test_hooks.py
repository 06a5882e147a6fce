"""Hooks, parametrisations and pruning masks of others: they run in their order, and outlive the clone."""

import copy

import battery
import pytest
import torch
from common import images
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.testing import assert_close

import pnc_hub
from attachment.conditions.cases import assert_answers, everywhere, join, once_each, pair

PLACES = ("root", "point")
KINDS = ("pre-hook", "first pre-hook", "hook", "first hook", "keyword hook", "always called hook")


def register(module, kind, note):
    """A hook of ``kind`` that calls ``note`` and changes nothing."""
    if "pre-hook" in kind:
        return module.register_forward_pre_hook(lambda *_: note(), prepend="first" in kind)
    return module.register_forward_hook(
        lambda *_: note(),
        prepend="first" in kind,
        with_kwargs="keyword" in kind,
        always_call="always" in kind,
    )


def fresh(family, at):
    """(a model, a clone for it, the module that the clone reads)."""
    model, clones = pair(family, at)
    model = copy.deepcopy(model)
    name = join(family, at).attachment.insertion
    return model, clones[0], model.get_submodule("" if at == "input" else name)


@pytest.mark.parametrize("when", ["before", "after"])
@everywhere
def test_hooks_of_others_run_in_their_order(family, at, when):
    model, clone, point = fresh(family, at)
    calls = []

    def register_all():
        for place, module in zip(PLACES, (model, point), strict=True):
            for kind in KINDS:
                register(module, kind, lambda place=place, kind=kind: calls.append((place, kind)))

    if when == "before":
        register_all()
        before = battery.snapshot(model)
        pnc_hub.attach(model, clone)
    else:
        twin = copy.deepcopy(model)
        pnc_hub.attach(model, clone)
        register_all()
    with torch.no_grad():
        together = model(images())
        while_attached = list(calls)
        calls.clear()
        pnc_hub.detach(model)
        alone = model(images())
    assert calls == while_attached
    assert len(set(calls)) == len(PLACES) * len(KINDS)
    if when == "before":
        assert battery.snapshot(model) == before
    else:
        assert not any(battery.snapshot(twin)["hooks"].values())
    joined = join(family, at)
    assert_answers(together, alone, joined.together)


@pytest.mark.parametrize("when", ["before", "prepended after"])
@everywhere
def test_a_pre_hook_that_changes_the_images(family, at, when):
    """It prepares the images for the model, so the clone gets what the model gets."""
    model, clone, _ = fresh(family, at)
    joined = join(family, at)
    if when == "before":
        model.register_forward_pre_hook(lambda _, args: (args[0].float() / 255,))
        pnc_hub.attach(model, clone)
    else:
        pnc_hub.attach(model, clone)
        model.register_forward_pre_hook(lambda _, args: (args[0].float() / 255,), prepend=True)
    batch = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        assert_answers(model(batch), joined.plain(batch / 255), joined.model(batch / 255))


@pytest.mark.parametrize("when", ["before", "prepended after"])
@pytest.mark.parametrize(("family", "at"), [("resnet", "interior"), ("vit", "interior")])
def test_a_hook_that_changes_the_feature(family, at, when):
    """The model goes on with what the hook returns, and so does the clone."""
    model, clone, point = fresh(family, at)
    plain = copy.deepcopy(model)
    if when == "before":
        point.register_forward_hook(lambda _m, _a, output: output * 2)
        pnc_hub.attach(model, clone)
    else:
        pnc_hub.attach(model, clone)
        point.register_forward_hook(lambda _m, _a, output: output * 2, prepend=True)
    (attachment,) = pnc_hub.attachments(model)
    doubled = plain.get_submodule(attachment.insertion)
    doubled.register_forward_hook(lambda _m, _a, output: output * 2)
    with torch.no_grad():
        together = model(images())
        assert torch.equal(together[:, :7], plain(images()))
        assert_close(together[:, 7:], battery.direct(plain, clone, images(), attachment.insertion))


@everywhere
def test_what_hooks_on_the_root_see(family, at):
    """The clone's logits too, whether they were registered before it or after it: they belong to ``forward``."""
    model, clone, _ = fresh(family, at)
    seen = []
    model.register_forward_hook(lambda _m, _a, output: seen.append(output.shape[1]))
    pnc_hub.attach(model, clone)
    model.register_forward_hook(lambda _m, _a, output: seen.append(output.shape[1]))
    model.register_forward_hook(lambda _m, _a, output: seen.append(output.shape[1]), prepend=True)
    model(images())
    assert seen == [10, 10, 10]


@pytest.mark.parametrize("when", ["before", "after"])
@everywhere
def test_full_backward_hooks(family, at, when):
    joined = join(family, at)
    model, clone, point = fresh(family, at)
    seen = []

    def register_all():
        for module in (model, point):
            module.register_full_backward_hook(lambda _m, _given, arriving: seen.append(arriving[0].shape))
            module.register_full_backward_pre_hook(lambda _m, arriving: seen.append(arriving[0].shape))

    if when == "before":
        register_all()
        before = battery.snapshot(model)
    pnc_hub.attach(model, clone)
    if when == "after":
        register_all()
    model(images())[:, 7:].softmax(1)[:, 0].sum().backward()
    joined.model(images())[:, 7:].softmax(1)[:, 0].sum().backward()
    assert len(seen) == 4
    for found, expected in zip(model.parameters(), joined.model.parameters(), strict=True):
        if expected.grad is not None:
            assert_close(found.grad, expected.grad)
    pnc_hub.detach(model)
    if when == "before":
        assert battery.snapshot(model) == before


PARAMETRISATIONS = [parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal]


def first_layer(model):
    return next(module for module in model.modules() if isinstance(module, nn.Conv2d))


@pytest.mark.parametrize("parametrisation", PARAMETRISATIONS, ids=lambda function: function.__name__)
@once_each
def test_a_layer_that_is_parametrised_while_attached(family, at, parametrisation):
    joined = join(family, at)
    for model in (joined.model, joined.plain):
        torch.manual_seed(0)
        parametrisation(first_layer(model))
    clone, insertion = joined.attachment.clone, joined.attachment.insertion
    with torch.no_grad():
        together, alone = joined.model(images()), joined.plain(images())
        expected = battery.direct(joined.plain, clone, images(), insertion)
        assert_answers(together, alone, torch.cat([alone, expected], 1))
        parametrize.remove_parametrizations(first_layer(joined.model), "weight")
        assert_close(joined.model(images()), together)
        pnc_hub.detach(joined.model)
        assert_close(joined.model(images()), alone)


@pytest.mark.parametrize("parametrisation", PARAMETRISATIONS, ids=lambda function: function.__name__)
def test_a_layer_that_is_parametrised_before(parametrisation):
    """Its weights are no longer those that an adapter was made for; at the input that does not matter."""
    model, clone, _ = fresh("resnet", "input")
    parametrisation(first_layer(model))
    before, alone = battery.snapshot(model), model(images())
    attachment = pnc_hub.attach(model, clone)
    assert_answers(model(images()), alone, model(images()))
    attachment.detach()
    assert battery.snapshot(model) == before
    assert parametrize.is_parametrized(first_layer(model))


@once_each
def test_a_layer_that_is_pruned_while_attached(family, at):
    joined = join(family, at)
    for model in (joined.model, joined.plain):
        prune.l1_unstructured(first_layer(model), "weight", amount=0.5)
    clone, insertion = joined.attachment.clone, joined.attachment.insertion
    with torch.no_grad():
        together, alone = joined.model(images()), joined.plain(images())
        assert not torch.equal(alone, joined.alone)
        expected = battery.direct(joined.plain, clone, images(), insertion)
        assert_answers(together, alone, torch.cat([alone, expected], 1))
        pnc_hub.detach(joined.model)
        assert torch.equal(joined.model(images()), alone)
        assert prune.is_pruned(first_layer(joined.model))
        prune.remove(first_layer(joined.model), "weight")
        assert torch.equal(joined.model(images()), alone)


@everywhere
def test_a_hook_that_calls_the_model_again(family, at):
    """A pass within a pass, as a teacher of itself makes it: both answer as they do apart."""
    joined = join(family, at)
    inner = []

    def again(*_):
        if not inner:
            inner.append(None)
            inner[0] = joined.model(images(2, seed=1))

    with torch.no_grad():
        expected = joined.model(images(2, seed=1))
        with joined.model.get_classifier().register_forward_pre_hook(again):
            assert_answers(joined.model(images()), joined.alone, joined.together)
    assert torch.equal(inner[0], expected)
