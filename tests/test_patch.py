"""The hooks themselves: what they let in, what they leave out, and what they do when a pass is not an ordinary one."""

import pytest
import torch
from common import images, tiny_clone, tiny_model
from torch import nn

import pnc_hub
from pnc_hub.errors import ImageError, TargetError
from pnc_hub.patch import Patch, check_images, patch_of


@pytest.fixture(scope="module")
def pair():
    """A target and a clone for it; each test leaves the target detached."""
    model = tiny_model("resnet")
    return model, tiny_clone(tiny_model("vit", seed=1), model, family="vit")


@pytest.fixture
def joined(pair):
    model, clone = pair
    with pnc_hub.attach(model, clone) as attachment:
        yield model, attachment


def interrupt(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), r"normalised floats, found \[2, 3, 32, 32\] of uint8"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.int64), r"normalised floats, found \[2, 3, 32, 32\] of int64"),
        (torch.zeros(2, 1, 32, 32), r"\[B, 3, height, width\], found \[2, 1, 32, 32\] of float32"),
        (torch.zeros(2, 32, 32, 3), r"\[B, 3, height, width\], found \[2, 32, 32, 3\] of float32"),
        (torch.zeros(3, 32, 32), r"\[B, 3, height, width\], found \[3, 32, 32\] of float32"),
        (torch.zeros(2, 1, 3, 32, 32), r"\[B, 3, height, width\], found \[2, 1, 3, 32, 32\] of float32"),
    ],
)
def test_images_that_are_none_are_refused_before_anything_runs(joined, batch, message):
    model, attachment = joined
    before, width = model(images()), model.num_classes
    for call in (lambda: model(batch), lambda: model(x=batch)):
        with pytest.raises(ImageError, match=message + "; apply the model's timm transform first"):
            call()
    assert torch.equal(model(images()), before)
    assert model.num_classes == width
    assert not attachment._patch._pass.state


def test_what_is_no_tensor_is_the_models_affair():
    check_images([torch.zeros(1)], 3)
    check_images(None, 3)
    check_images(torch.zeros(0, 3, 8, 8, dtype=torch.bfloat16), 3)


def test_clones_do_not_hear_features_outside_of_a_forward_pass(joined):
    model, attachment = joined
    model.forward_features(images())
    assert not attachment.fired
    model(images())
    assert attachment.fired


def test_a_module_that_was_replaced_is_noticed(pair):
    model, clone = pair
    attachment = pnc_hub.attach(model, clone)
    own = model.get_submodule(attachment.insertion)
    alone = model(images())[:, : attachment.logit_slice.start]
    model.set_submodule(attachment.insertion, nn.Conv2d(8, 16, 1, stride=2))
    with pytest.raises(
        TargetError, match=rf"ran past '{attachment.insertion}' without its hooks.*Attach the clone again"
    ):
        model(images())
    model.set_submodule(attachment.insertion, own)
    attachment.detach()
    assert torch.equal(model(images()), alone)
    assert not own._forward_hooks


class TwoHeads(nn.Module):
    """Returns a tuple in training mode, as distilled transformers do."""

    def __init__(self):
        super().__init__()
        self.body, self.num_classes = tiny_model("resnet"), 7
        self.pretrained_cfg = self.body.pretrained_cfg

    def forward(self, x):
        logits = self.body(x)
        return (logits, logits) if self.training else logits


@pytest.mark.filterwarnings("ignore:.*attached at the input")
def test_outputs_that_are_no_logits_are_refused(pair):
    model = TwoHeads().eval()
    with pnc_hub.attach(model, pair[1]):
        assert model(images()).shape == (4, 10)
        with pytest.raises(TargetError, match=r"TwoHeads returned a tuple.*detach the clone.*model\.eval\(\)"):
            model.train()(images())
        assert model.eval()(images()).shape == (4, 10)
    assert model(images()).shape == (4, 7)


@pytest.mark.filterwarnings("ignore:.*attached at the input")
def test_a_hook_that_is_called_while_it_is_installed(pair):
    """Another thread may find the pre-hook before torch has noted that it takes keyword arguments."""
    model = tiny_model("resnet", seed=5)
    expected = model(images())
    with pnc_hub.attach(model, pair[1]):
        together = model(images())
        with model.fc.register_forward_hook(interrupt), pytest.raises(KeyboardInterrupt):
            model(images(seed=1))
        model._forward_pre_hooks_with_kwargs.clear()
        assert torch.equal(model(x=images()), expected)
        assert torch.equal(model(images()), together)


def test_features_are_read_before_a_later_layer_overwrites_them(joined):
    model, attachment = joined
    assert attachment.insertion == "layer2.0"
    expected = model(images())[:, attachment.logit_slice].softmax(1)  # of the feature alone, the target cancels out

    def overwrite(_module, args):
        args[0].zero_()

    with model.layer2[1].register_forward_pre_hook(overwrite), torch.no_grad():
        found = model(images())[:, attachment.logit_slice].softmax(1)
    torch.testing.assert_close(found, expected)


def test_one_patch_serves_all_clones_and_goes_with_the_last(pair):
    model, clone = pair
    assert patch_of(model) is None
    first = pnc_hub.attach(model, clone)
    patch = patch_of(model)
    assert isinstance(patch, Patch)
    second = pnc_hub.attach(model, clone, on_collision="allow")
    assert patch_of(model) is patch
    assert len(model.get_submodule(first.insertion)._forward_hooks) == 1
    first.detach()
    assert torch.equal(model(images())[:, second.logit_slice], model(images())[:, -3:])
    second.detach()
    assert patch_of(model) is None
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("family", ["resnet", "vit"])
def test_gradient_checkpointing_keeps_the_clone(family):
    model = tiny_model(family)
    with pnc_hub.attach(model, tiny_clone(tiny_model("convnext", seed=1), model, family="convnext")):
        expected = model(images())
        model.set_grad_checkpointing()
        output = model(images())
        assert torch.equal(output, expected)
        output.sum().backward()
        assert next(model.parameters()).grad.isfinite().all()
