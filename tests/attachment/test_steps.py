"""Models run in two steps, ``forward_head(forward_features(x))``, and by ``model.forward(x)``."""

import contextlib
import copy
import gc
import weakref

import battery
import pytest
import timm
import torch
from common import FAMILIES, images, live, tiny_clone, tiny_model

import pnc_hub
from pnc_hub.errors import ImageError, TargetError
from pnc_hub.models.insertion import INPUT

QUICK = ("resnet",)


@pytest.fixture(
    scope="module",
    params=[*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES if name not in QUICK)],
)
def pair(request):
    model = tiny_model(request.param)
    return model, tiny_clone(tiny_model("convnext", seed=1), model, family="convnext")


@pytest.fixture
def joined(pair):
    model, clone = copy.deepcopy(pair[0]), pair[1]
    return model, pnc_hub.attach(model, clone)


def test_every_way_to_run_the_model_agrees(joined):
    model, attachment = joined
    expected = model(images())
    assert torch.equal(model.forward(images()), expected)
    assert torch.equal(model.forward_head(model.forward_features(images())), expected)
    features = model.forward_features(x=images())
    assert torch.equal(model.forward_head(x=features), expected)
    assert torch.equal(model.forward_head(features), expected)
    with attachment.disabled():
        assert torch.equal(model.forward(images()), expected[:, : attachment_start(model)])


def attachment_start(model):
    return model.num_classes


def test_batches_between_the_steps_are_not_mixed_up(joined):
    model, _ = joined
    first, second = images(), images(seed=1)
    features = [model.forward_features(batch) for batch in (first, second)]
    model(first)
    for batch, feature in zip((first, second), features, strict=True):
        assert torch.equal(model.forward_head(feature), model(batch))


@pytest.mark.filterwarnings("ignore:.*attached at the input")
def test_clones_at_the_input_hear_it_too(pair):
    model = copy.deepcopy(pair[0])
    stranger = tiny_clone(tiny_model("regnet", seed=2), tiny_model("resnet", seed=7), family="regnet")
    with pnc_hub.attach(model, stranger) as attachment:
        assert attachment.insertion == INPUT
        assert torch.equal(model.forward(images()), model(images()))
        with pytest.raises(ImageError, match="normalised floats"):
            model.forward(images().long())


def test_features_for_other_uses_are_the_models_own(pair, joined):
    model, attachment = joined
    plain = pair[0]
    features = model.forward_features(images())
    assert torch.equal(features, plain.forward_features(images()))
    assert not attachment.fired
    expected = plain.forward_head(features, pre_logits=True)
    assert torch.equal(model.forward_head(features, pre_logits=True), expected)
    assert torch.equal(model.forward_head(features, True), expected)
    assert torch.equal(model.forward_features(images()), features)


def test_features_of_unknown_origin_are_refused(joined):
    model, _ = joined
    features = model.forward_features(images()).clone()
    with pytest.raises(TargetError, match=r"forward_features did not return.*call the model itself"):
        model.forward_head(features)
    assert model(images()).shape[1] == model.num_classes


def test_a_failing_step_leaves_nothing_behind(joined):
    model, attachment = joined
    point = model.get_submodule(attachment.insertion)

    def fail(*_):
        raise ZeroDivisionError

    last = model.get_submodule(pnc_hub.insertion_points(model)[-1].name)
    expected = model(images())
    assert last is not point
    with last.register_forward_hook(fail):
        for run in (model, model.forward):
            with contextlib.suppress(ZeroDivisionError):
                run(images(37))
                pytest.fail("the hook did not run")
    assert live(37) == []
    assert torch.equal(model.forward(images()), expected)


def test_what_was_read_lives_as_long_as_the_features(joined):
    model, _ = joined
    with torch.no_grad():
        features = model.forward_features(images(37))
        assert len(live(37)) > 1
        del features
    assert live(37) == []


def test_an_interrupt_does_not_confuse_the_next_run(joined):
    model, attachment = joined
    expected = model(images())
    inner = model.get_submodule(attachment.insertion)

    def interrupt(*_):
        raise KeyboardInterrupt

    for run in (model, model.forward):
        with inner.register_forward_hook(interrupt), pytest.raises(KeyboardInterrupt):
            run(images(seed=1))
        assert torch.equal(model.forward(images()), expected)


def test_attaching_between_the_steps(pair):
    model, clone = copy.deepcopy(pair[0]), pair[1]
    alone = model(images())
    features = model.forward_features(images())
    with pnc_hub.attach(model, clone):
        with pytest.raises(TargetError, match="run forward_features again"):
            model.forward_head(features)
        features = model.forward_features(images())
    assert torch.equal(model.forward_head(features), alone)


def test_attaching_in_the_middle_of_a_call(pair):
    """A call that began without the clone ends without it."""
    model, clone = copy.deepcopy(pair[0]), pair[1]
    alone = model(images())
    inner = model.get_submodule(pnc_hub.insertion_points(model)[1].name)
    attached = []
    with inner.register_forward_hook(
        lambda *_: attached.append(pnc_hub.attach(model, clone)) if not attached else None
    ):
        assert torch.equal(model(images()), alone)
    assert torch.equal(model.forward(images()), model(images()))
    assert model(images()).shape[1] == alone.shape[1] + len(clone.labels)


class Own:
    """Somebody's own version of a step."""

    def __init__(self, model, step):
        self.step, self.calls = getattr(model, step), 0

    def __call__(self, *args, **kwargs):
        self.calls += 1
        return self.step(*args, **kwargs)


def test_methods_that_somebody_replaced_are_called_and_given_back(pair):
    model, clone = copy.deepcopy(pair[0]), pair[1]
    own = Own(model, "forward_head")
    model.forward_head = own
    before = battery.snapshot(model)
    with pnc_hub.attach(model, clone):
        assert torch.equal(model.forward(images()), model(images()))
        assert own.calls == 2
    assert model.forward_head is own
    assert battery.snapshot(model) == before


def test_methods_that_somebody_replaces_meanwhile_stay(pair):
    model, clone = copy.deepcopy(pair[0]), pair[1]
    alone = model(images())
    with pnc_hub.attach(model, clone):
        own = Own(model, "forward_head")
        model.forward_head = own
        assert torch.equal(model.forward(images()), model(images()))
    assert model.forward_head is own
    assert torch.equal(model(images()), alone)
    assert torch.equal(model.forward(images()), alone)
    assert "forward_features" not in vars(model)


def test_hooks_that_run_steps_of_their_own(pair):
    """Neither their answer nor that of the pass that they are in belongs to another batch."""
    model, clone = copy.deepcopy(pair[0]), pair[1]
    pnc_hub.attach(model, clone)
    first, second = images(), images(seed=1)
    expected, other = model(first), model(second)
    inner = model.get_submodule(pnc_hub.insertion_points(model)[-1].name)
    for place in (model.register_forward_pre_hook, inner.register_forward_hook):
        for run in (model, model.forward, lambda batch: model.forward_head(model.forward_features(batch))):
            answers = []

            def ask(*_, run=run, answers=answers):
                if not answers:
                    answers.append(None)
                    answers[0] = run(second)

            with place(ask):
                assert torch.equal(model(first), expected)
            assert torch.equal(answers[0], other)


def test_a_call_that_fails_before_it_begins_leaves_the_outer_one_alone(pair):
    model, clone = copy.deepcopy(pair[0]), pair[1]
    calls = []

    def refuse(*_):
        calls.append(1)
        if len(calls) == 2:
            raise ZeroDivisionError

    def ask(*_):
        if len(calls) == 1:
            with pytest.raises(ZeroDivisionError):
                model(images(seed=1))

    handle = model.register_forward_pre_hook(refuse)
    pnc_hub.attach(model, clone)
    with model.get_classifier().register_forward_hook(ask):
        answer = model(images())
    handle.remove()
    assert len(calls) == 2
    assert torch.equal(answer, model(images()))


def test_after_an_interrupt_both_steps_hear_the_clone(joined):
    model, attachment = joined
    expected, features = model(images()), model.forward_features(images())

    def interrupt(*_):
        raise KeyboardInterrupt

    for place in (model.register_forward_pre_hook, model.get_classifier().register_forward_hook):
        with place(interrupt), pytest.raises(KeyboardInterrupt):
            model(images(seed=1))
        assert torch.equal(model.forward_head(features), expected)
        assert torch.equal(model.forward(images()), expected)
    clone = weakref.ref(attachment._joined)
    with model.get_classifier().register_forward_hook(interrupt), pytest.raises(KeyboardInterrupt):
        model(images())
    attachment.detach()
    del features
    gc.collect()
    assert clone() is None


def test_clones_that_come_or_go_between_the_steps(pair):
    model, clone = copy.deepcopy(pair[0]), pair[1]
    first = pnc_hub.attach(model, clone)
    second = pnc_hub.attach(model, clone, on_collision="allow")
    features = model.forward_features(images())
    with first.disabled(), pytest.raises(TargetError, match="run forward_features again"):
        model.forward_head(features)
    assert torch.equal(model.forward_head(features), model(images()))
    branch = weakref.ref(second._joined)
    second.detach()
    gc.collect()
    assert branch() is None
    with pytest.raises(TargetError, match="run forward_features again"):
        model.forward_head(features)


@pytest.mark.parametrize("architecture", ["crossvit_tiny_240", "efficientvim_m1"])
def test_models_that_hand_several_tensors_on(architecture):
    model = timm.create_model(architecture, num_classes=7).eval()
    stranger = tiny_clone(tiny_model("regnet", seed=2), tiny_model("resnet", seed=7), family="regnet")
    batch = torch.randn(2, 3, *model.pretrained_cfg["input_size"][1:])
    with pytest.warns(UserWarning, match="attached at the input"):
        pnc_hub.attach(model, stranger)
    with torch.no_grad():
        expected = model(batch)
        assert expected.shape == (2, 10)
        assert torch.equal(model.forward(batch), expected)
        assert torch.equal(model.forward_head(model.forward_features(batch)), expected)
