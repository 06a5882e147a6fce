"""G: models in every state refuse a bad artifact untouched, and good ones survive what goes wrong around them."""

import copy
from collections.abc import Iterator

import pytest
import torch
from common import images, slow, tiny_clone, tiny_model
from torch import nn

import pnc_hub
from hostile.harness import bounded, everything, refused, replace, untouched
from pnc_hub.artifact.files import CONFIG, WEIGHTS
from pnc_hub.errors import MalformedArtifactError, PncHubError, TargetError


@pytest.fixture
def alone() -> Iterator[None]:
    """A group of processes of which this one is all."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def frozen(model: nn.Module) -> nn.Module:
    return model.requires_grad_(False)


def meta(model: nn.Module) -> nn.Module:
    return model.to("meta")


STATES = {
    "G116-plain": lambda model: model,
    "G116-frozen": frozen,
    "G116-training": nn.Module.train,
    "G116-half": nn.Module.half,
    "G116-bfloat16": nn.Module.bfloat16,
    "G116-compiled": lambda model: torch.compile(model, backend="eager"),
    "G116-channels last": lambda model: model.to(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("state", [pytest.param(state, id=name) for name, state in STATES.items()])
@pytest.mark.parametrize("damage", ["tensor missing", slow("truncated")])
def test_a_bad_artifact_touches_no_model(clone_folder, target, state, damage):
    model = state(copy.deepcopy(target))
    data = (clone_folder / WEIGHTS).read_bytes()
    if damage == "truncated":
        (clone_folder / WEIGHTS).write_bytes(data[:-9])
    else:
        replace(clone_folder, WEIGHTS, data.replace(b"running_var", b"running_vax", 1))
    refused(getattr(model, "_orig_mod", model), clone_folder, file=WEIGHTS)
    inside = getattr(model, "_orig_mod", model)
    with untouched(inside), pytest.raises(MalformedArtifactError):
        pnc_hub.attach(model, clone_folder)


def test_g116_a_model_on_the_meta_device(clone_folder, target):
    """Its weights are not there to be recognised."""
    model = meta(copy.deepcopy(target))
    (clone_folder / WEIGHTS).write_bytes(b"")
    with pytest.raises(PncHubError):
        pnc_hub.attach(model, clone_folder)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("damage", ["truncated", *map(slow, ["pickled", "no object"])])
def test_g116_a_model_in_ddp(clone_folder, target, alone, damage):
    """The model inside is what a clone is attached to."""
    model = nn.parallel.DistributedDataParallel(target)
    data = (clone_folder / WEIGHTS).read_bytes()
    if damage == "no object":
        (clone_folder / CONFIG).write_bytes(b"[]")
    else:
        (clone_folder / WEIGHTS).write_bytes(data[:-9] if damage == "truncated" else b"\x80\x04cos\nsystem\n.")
    before = sorted(vars(model))
    refused(target, clone_folder, act=lambda _, clone: pnc_hub.attach(model, clone))
    assert not pnc_hub.attachments(model)
    assert (sorted(vars(model)), len(model._forward_hooks)) == (before, 0)


def test_g116_a_scripted_model(clone_folder, target):
    """It can take no clone, so that a hostile one is not even read."""
    model = torch.jit.script(copy.deepcopy(target))
    (clone_folder / CONFIG).write_bytes(b"[" * 100_000)
    (clone_folder / WEIGHTS).write_bytes(b"\x80\x04cos\nsystem\n.")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with bounded(), pytest.raises(TargetError):
        pnc_hub.attach(model, clone_folder)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_g116_what_can_take_no_clone(clone_folder, target):
    for model in (torch.jit.trace(target, images()), nn.DataParallel(target)):
        with untouched(target), pytest.raises(TargetError):
            pnc_hub.attach(model, clone_folder)


def test_g117_twice_and_out_of_order(saved_clone, target):
    with untouched(target):
        alone = target(images())
        attached = [pnc_hub.attach(target, saved_clone, on_collision="allow") for _ in range(3)]
        for place in (1, 0, 1, 2, 0):
            attached[place].detach()
        assert torch.equal(target(images()), alone)


def test_g117_a_bad_clone_beside_a_good_one(clone_folder, saved_clone, target):
    """The one that is attached goes on."""
    (clone_folder / WEIGHTS).write_bytes(b"")
    with untouched(target), pnc_hub.attach(target, saved_clone):
        before, expected = everything(target), target(images())
        with bounded(), pytest.raises(MalformedArtifactError):
            pnc_hub.attach(target, clone_folder, on_collision="allow")
        assert everything(target) == before
        assert torch.equal(target(images()), expected)


class Failing:
    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def __call__(self, *_: object) -> None:
        raise self.error


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt], ids=lambda error: f"G119-{error.__name__}")
@pytest.mark.parametrize("where", ["blocks.3.3", *map(slow, ["conv_stem", "classifier", ""])])
def test_hooks_of_others_that_raise_during_the_probe(saved_clone, target, error, where):
    """The error is theirs; nothing of the probe stays behind."""
    with untouched(target), pnc_hub.attach(target, saved_clone) as attachment:
        expected, before = target(images()), everything(target)
        handle = target.get_submodule(where).register_forward_hook(Failing(error))
        with pytest.raises(error):
            attachment.verify()
        handle.remove()
        assert everything(target) == before
        assert torch.equal(target(images()), expected)
        assert attachment.verify() < 1e-3


@pytest.mark.parametrize("where", ["conv_stem", "blocks.3.3"])
def test_g119_a_forced_adapter_is_looked_at_under_hooks_that_raise(target, where):
    """on_mismatch="warn" runs the target on the probe before anything is attached."""
    other = tiny_model("mobilenet", seed=3)
    clone = tiny_clone(tiny_model("resnet"), target, universal=False)
    handle = other.get_submodule(where).register_forward_hook(Failing(ZeroDivisionError))
    with untouched(other), pytest.raises(ZeroDivisionError):
        pnc_hub.attach(other, clone, on_mismatch="warn")
    handle.remove()
