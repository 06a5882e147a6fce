"""The probe shows when a target or a clone is not what it was."""

import pytest
import torch
from common import LABELS, images, tiny_clone, tiny_model

import pnc_hub
from pnc_hub.artifact import probe
from pnc_hub.attachment.plan import feature_error
from pnc_hub.errors import ProbeError


@pytest.fixture(scope="module")
def clone():
    return tiny_clone(tiny_model("resnet", seed=1), tiny_model("resnet"))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_target_that_it_was_made_for_passes_in_any_dtype(clone, dtype):
    model = tiny_model("resnet").to(dtype)
    with pnc_hub.attach(model, clone) as attachment:
        assert attachment.insertion != "input"
        assert attachment.verify() == 0


def test_weights_loaded_while_attached_are_noticed(clone):
    model = tiny_model("resnet")
    with pnc_hub.attach(model, clone) as attachment:
        model.load_state_dict(tiny_model("resnet", seed=5).state_dict())
        with pytest.raises(ProbeError, match="its weights or its structure are others"):
            attachment.verify()


def test_the_same_weights_in_another_structure_are_noticed(clone):
    model = tiny_model("resnet", act_layer="gelu")
    model.load_state_dict(tiny_model("resnet").state_dict())
    with pnc_hub.attach(model, clone) as attachment, pytest.raises(ProbeError, match="structure"):
        attachment.verify()


def test_the_probe_is_the_same_wherever_it_is_made():
    assert torch.equal(probe.pattern(2, 3), probe.pattern(2, 3))
    assert probe.enlarge(probe.pattern(2, 3), (3, 20, 30)).shape == (2, 3, 20, 30)


def test_running_it_leaves_no_hook_behind(clone):
    model = tiny_model("resnet")
    adapter = clone.config.adapters[0]
    assert feature_error(model, clone, adapter, (3, 32, 32)) < 1e-6
    assert not any(module._forward_hooks for module in model.modules())


def test_no_answer_leaves_the_target_its_own():
    """Half precision that overflows must not turn into a class."""
    model = tiny_model("resnet")
    broken = tiny_clone(tiny_model("resnet", seed=1), model)
    for tensor in broken.tensors["model.safetensors"].values():
        if tensor.is_floating_point():
            tensor.mul_(1e30)
    with pnc_hub.attach(model, broken):
        logits = model(images())
    own = model(images())
    assert not logits.isnan().any()
    assert torch.equal(logits.argmax(1), own.argmax(1))
    assert logits.shape[1] == own.shape[1] + len(LABELS)
