"""Targets of unusual build: several heads, other channels, no classifier, no timm, and heads exchanged while attached."""

import copy

import battery
import common
import pytest
import timm
import torch
from common import images, tiny_clone, tiny_model
from torch import nn
from torch.testing import assert_close

import pnc_hub
from attachment.conditions.cases import assert_answers, clone_for, join, joined, pair, restored, small, universal
from pnc_hub.errors import NoClassifierError, PncHubError, TargetError
from pnc_hub.models.insertion import INPUT

TWO_HEADS = {
    "deit": ("deit_tiny_distilled_patch16_224", common.FAMILIES["vit"][1], 32),
    "levit": (
        "levit_128s",
        {"img_size": 64, "embed_dim": (16, 24, 32), "num_heads": (2, 3, 4), "depth": (1, 1, 1)},
        64,
    ),
    "efficientformer": (
        "efficientformerv2_s0",
        {"img_size": 64, "depths": (1,) * 4, "embed_dims": (8, 16, 24, 32)},
        64,
    ),
}
ONE_BY_ONE = (
    "resnetv2_50",
    {"layers": (1, 1, 1, 1), "channels": (16, 24, 32, 40), "stem_chs": 8, "norm_layer": "batchnorm2d"},
)
PLACES = pytest.mark.parametrize("at", ["interior", INPUT])


@PLACES
@pytest.mark.parametrize(
    "name", ["deit", *(pytest.param(name, marks=pytest.mark.slow) for name in TWO_HEADS if name != "deit")]
)
def test_two_heads(name, at):
    """Their average is extended in eval mode; apart, in distilled training, they are refused."""
    architecture, arguments, side = TWO_HEADS[name]
    model, batch = small(architecture, side=side, **arguments), images(side=side)
    with restored(model, batch):
        found = joined(model, clone_for(model, at), batch)
        assert found.attachment.verify() == 0
        model.set_distilled_training(True)
        assert torch.equal(model(batch), found.together)
        training = copy.deepcopy(model).train()  # a pass changes statistics
        with pytest.raises(TargetError, match=r"returned a tuple.*model\.eval\(\)"):
            training(batch)
        model.set_distilled_training(False)
        assert model(batch).shape == found.together.shape


@pytest.mark.parametrize("name", ["levit", "efficientformer"])
def test_a_model_that_keeps_tensors_of_its_last_pass(name):
    """They cache attention biases, which cannot be copied once they have a gradient."""
    architecture, arguments, side = TWO_HEADS[name]
    model, batch = small(architecture, side=side, **arguments), images(side=side)
    clone = clone_for(model, "interior")
    alone = model(batch)
    assert alone.requires_grad
    assert len(pnc_hub.insertion_points(model)) > 1
    with pnc_hub.attach(model, clone) as attachment:
        assert attachment.insertion != INPUT
        assert torch.equal(model(batch)[:, :7], alone)


@PLACES
def test_a_classifier_that_is_a_convolution(at):
    model = small(ONE_BY_ONE[0], **ONE_BY_ONE[1])
    with restored(model):
        joined(model, clone_for(model, at))


@PLACES
def test_one_class(at):
    model = tiny_model("resnet", num_classes=1)
    with restored(model):
        assert joined(model, clone_for(model, at)).attachment.logit_slice == slice(1, 4)


@PLACES
def test_grey_images_and_a_source_that_sees_colours(at):
    model = small("resnet18", in_chans=1, **common.FAMILIES["resnet"][1])
    grey = images(channels=1)
    with restored(model, grey):
        joined(model, clone_for(model, at), grey)


@PLACES
@pytest.mark.filterwarnings("ignore:.*attached at the input")
def test_colours_and_a_source_that_sees_grey(at, monkeypatch):
    architecture, arguments = common.FAMILIES["resnet"]
    monkeypatch.setitem(common.FAMILIES, "grey", (architecture, {**arguments, "in_chans": 1}))
    source = small(architecture, in_chans=1, seed=1, **arguments)
    model = tiny_model("vit")
    made_for = tiny_model("vit", seed=2) if at == INPUT else model
    with restored(model):
        joined(model, tiny_clone(source, made_for, family="grey"))


@PLACES
def test_no_record_of_how_it_was_trained(at):
    model = tiny_model("resnet")
    clone = clone_for(model, at)
    del model.pretrained_cfg, model.default_cfg
    with restored(model):
        joined(model, clone)


class Wrapped(nn.Module):
    """A model in a wrapper of the user's."""

    def __init__(self, wrap):
        super().__init__()
        self.body, self.num_classes, self.wrap = tiny_model("resnet"), 7, wrap

    def forward(self, x):
        return self.wrap(self.body(x))


@pytest.mark.parametrize(
    ("wrap", "kind"),
    [
        (lambda logits: (logits, logits), "a tuple"),
        (lambda logits: [logits], "a list"),
        (lambda logits: {"logits": logits}, "a dict"),
        (lambda logits: logits[:, :, None], r"\[4, 7, 1\]"),
        (lambda logits: logits[:, 0], r"\[4\]"),
    ],
    ids=["tuple", "list", "dict", "three dimensions", "one dimension"],
)
def test_answers_that_are_no_logits(wrap, kind):
    model = Wrapped(wrap).eval()
    clone = universal()
    for _ in range(2):
        with pnc_hub.attach(model, clone), pytest.raises(TargetError, match=rf"Wrapped returned {kind}, .*detach the"):
            model(images())
    assert not model._forward_hooks
    assert str(type(model(images()))) == str(type(wrap(torch.zeros(4, 7))))


def test_a_model_that_is_not_timms():
    torchvision = pytest.importorskip("torchvision")
    model = torchvision.models.squeezenet1_1(num_classes=7).eval()
    batch = images(side=64)
    with restored(model, batch):
        joined(model, universal(), batch)


@pytest.mark.parametrize("architecture", ["resnet18", "test_vit"])
def test_models_that_return_features(architecture):
    model = timm.create_model(architecture, features_only=True)
    before = list(vars(model))
    with pytest.raises(NoClassifierError):
        pnc_hub.attach(model, universal())
    assert list(vars(model)) == before


@pytest.mark.parametrize("called", ["called", "not called"])
@pytest.mark.parametrize("width", [1, 4, 10, 12])
@pytest.mark.parametrize(("family", "at"), [("vit", "interior"), ("resnet", INPUT)])
def test_a_head_that_is_exchanged_while_attached(family, at, width, called):
    """Ten is as wide as the answer was with the clone."""
    found = join(family, at)
    model, attachment = found.model, found.attachment
    model.reset_classifier(width)
    model.eval()
    found.plain.set_submodule("fc" if family == "resnet" else "head", copy.deepcopy(model.get_classifier()))
    with torch.no_grad():
        alone = found.plain(images())
        if called == "called":
            together = model(images())
            assert torch.equal(together[:, :width], alone)
            clone, insertion = attachment.clone, attachment.insertion
            assert_close(together[:, width:], battery.direct(found.plain, clone, images(), insertion))
            assert model.num_classes == width + 3
        assert attachment.logit_slice == slice(width, width + 3)
        attachment.detach()
        assert torch.equal(model(images()), alone)
    assert model.num_classes == width


@pytest.mark.parametrize(("family", "at"), [("vit", "interior"), ("resnet", INPUT)])
def test_a_head_that_is_taken_away_while_attached(family, at):
    """What the model returns then is a feature, which no logits can follow."""
    found = join(family, at)
    model = found.model
    model.reset_classifier(0)
    with pytest.raises(TargetError):
        model(images())
    pnc_hub.detach(model)
    assert model.num_classes == 0
    found.plain.reset_classifier(0)
    assert torch.equal(model(images()), found.plain(images()))


@pytest.mark.parametrize(("family", "at"), [("vit", "interior"), ("resnet", INPUT)])
def test_a_head_that_is_taken_away_and_given_back(family, at):
    found = join(family, at)
    model = found.model
    head = copy.deepcopy(model.get_classifier())
    model.reset_classifier(0)
    model.reset_classifier(7)
    model.get_classifier().load_state_dict(head.state_dict())
    with torch.no_grad():
        assert_answers(model(images()), found.alone, found.together)
        pnc_hub.detach(model)
        assert torch.equal(model(images()), found.alone)
    assert model.num_classes == 7


def test_an_insertion_point_that_goes_with_the_head():
    """``reset_classifier`` of a resnet makes a new pooling layer: the clone that read the old one says so."""
    model, clones = pair("resnet", "interior")
    model = copy.deepcopy(model)
    pooled = tiny_clone(tiny_model("convnext", seed=1), model, family="convnext", insertion="global_pool")
    pnc_hub.attach(model, clones[1])
    attachment = pnc_hub.attach(model, pooled)
    assert attachment.insertion == "global_pool"
    model.reset_classifier(7)
    with pytest.raises(TargetError, match=r"ran past 'global_pool'.*Attach the clone again"):
        model(images())
    attachment.detach()
    with pytest.raises(PncHubError):
        attachment.logit_slice  # noqa: B018
    assert model(images()).shape == (4, 9)
