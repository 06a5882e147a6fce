"""The hooks themselves: what they let in, what they leave out, and what they do when a pass is not an ordinary one."""

import copy
import sys
import threading
from collections import OrderedDict
from contextlib import suppress

import pytest
import torch
from common import images, tiny_clone, tiny_model
from torch import nn

import pnc_hub
from pnc_hub.attachment import hooks
from pnc_hub.attachment.passes import check_images
from pnc_hub.errors import ImageError, InsertionPointError, NoClassifierError, TargetError


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
    model, _ = joined
    before, width = model(images()), model.num_classes
    for call in (lambda: model(batch), lambda: model(x=batch)):
        with pytest.raises(ImageError, match=message + "; apply the model's timm transform first"):
            call()
    assert torch.equal(model(images()), before)
    assert model.num_classes == width


class AtLine:
    """An interrupt before the n-th line that is run of the hooks, or of torch's where they go; ``lines`` counts them."""

    def __init__(self, at):
        self.at, self.lines = at, 0

    def __enter__(self):
        sys.settrace(self.trace)
        return self

    def __exit__(self, *_):
        sys.settrace(None)

    def trace(self, frame, event, _argument):
        code = frame.f_code
        if (
            not code.co_filename.endswith(("attachment/hooks.py", "utils/hooks.py"))
            and code.co_name != "register_forward_hook"
        ):
            return None
        if event in ("line", "return"):
            self.lines += 1
            if self.lines == self.at:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self.trace


def test_an_interrupt_at_any_line_of_joining_leaves_nothing_behind(pair, monkeypatch):
    # a trace can raise between the body of a with statement and its exit, where no signal arrives: the lock would stay taken
    monkeypatch.setattr(hooks, "_LOCK", threading.RLock())
    model, clone = pair
    layer = model.get_submodule(clone.config.adapters[0].insertion.name)

    def state():
        return sorted(vars(model)), model.num_classes, list(layer._forward_hooks)

    before = state()
    with AtLine(0) as counting:
        pnc_hub.attach(model, clone).detach()
    assert counting.lines > 20
    for at in range(1, counting.lines + 1):
        with AtLine(at), suppress(KeyboardInterrupt):
            pnc_hub.attach(model, clone)
        pnc_hub.detach(model)
        assert state() == before, at


def test_images_may_be_none_at_all_and_of_any_floating_dtype():
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


def test_a_head_taken_away_meanwhile_is_noticed(pair):
    model, clone = copy.deepcopy(pair[0]), pair[1]
    attachment = pnc_hub.attach(model, clone)
    model.reset_classifier(0)
    for run in (model, model.forward):
        with pytest.raises(NoClassifierError, match=r"left without a classifier \(num_classes=0\).*detach the clone"):
            run(images())
    model.reset_classifier(5)
    assert model(images()).shape == (4, 8)
    assert attachment.logit_slice == slice(5, 8)
    attachment.detach()
    assert model.num_classes == model(images()).shape[1] == 5


def test_a_head_exchanged_for_one_as_wide(pair):
    model, clone = copy.deepcopy(pair[0]), pair[1]
    with pnc_hub.attach(model, clone):
        model.reset_classifier(7)
        assert model(images()).shape == (4, 10)
        assert model.num_classes == 10
    assert model.num_classes == 7


@pytest.mark.filterwarnings("ignore:.*attached at the input")
def test_what_is_no_tensor_can_not_be_read(pair):
    class Dictionaries(TwoHeads):
        def forward(self, x):
            return self.body(x["images"])

    model = Dictionaries().eval()
    with pnc_hub.attach(model, pair[1]), pytest.raises(TargetError, match="'input' gives a dict, and a clone reads"):
        model({"images": images()})


def test_features_are_read_before_a_later_layer_overwrites_them(joined):
    model, attachment = joined
    assert attachment.insertion == "layer2.0"
    expected = model(images())[:, attachment.logit_slice].softmax(1)  # of the feature alone, the target cancels out

    def overwrite(_module, args):
        args[0].zero_()

    with model.layer2[1].register_forward_pre_hook(overwrite), torch.no_grad():
        found = model(images())[:, attachment.logit_slice].softmax(1)
    torch.testing.assert_close(found, expected)


def test_a_hook_that_asks_the_model_without_its_clones(joined):
    """As a teacher of itself does: what is read for that answer is not read for the pass that it is asked in."""
    model, attachment = joined
    expected, answers = model(images()), []
    alone = expected[:, : attachment.logit_slice.start]

    def ask(*_):
        if not answers:
            answers.append(None)
            with attachment.disabled():
                answers[0] = model(images(seed=1)), model.forward_head(model.forward_features(images()))

    with model.get_classifier().register_forward_pre_hook(ask):
        assert torch.equal(model(images()), expected)
    assert answers[0][0].shape == alone.shape
    assert torch.equal(answers[0][1], alone)


def test_clones_at_one_point_share_a_hook_that_goes_with_the_last(pair):
    model, clone = pair
    first = pnc_hub.attach(model, clone)
    second = pnc_hub.attach(model, clone, on_collision="allow")
    assert len(model.get_submodule(first.insertion)._forward_hooks) == 1
    first.detach()
    assert torch.equal(model(images())[:, second.logit_slice], model(images())[:, -3:])
    second.detach()
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


def test_a_head_that_is_assigned(pair):
    model, clone = copy.deepcopy(pair[0]), pair[1]
    attachment = pnc_hub.attach(model, clone)
    for classes in (7, 5, 10):
        model.fc = nn.Linear(model.fc.in_features, classes)
        assert attachment.logit_slice == slice(classes, classes + 3)
        assert model(images()).shape == (4, classes + 3)
        assert attachment.logit_slice == slice(classes, classes + 3)
    attachment.detach()
    assert model.num_classes == 10


@pytest.mark.filterwarnings("ignore:.*attached at the input")
def test_a_model_within_a_model(pair):
    outer = TwoHeads().eval()
    with pnc_hub.attach(outer, pair[1]) as first, pnc_hub.attach(outer.body, pair[1]) as second:
        outer(images())
        first.detach()
        second.detach()
    assert outer.num_classes == outer.body.num_classes == outer(images()).shape[1] == 7


def test_models_that_share_layers(pair):
    model, clone = copy.deepcopy(pair[0]), pair[1]
    twin = copy.copy(model)
    twin._modules, twin._forward_hooks, twin._forward_pre_hooks = dict(model._modules), OrderedDict(), OrderedDict()
    alone = model(images())
    with pnc_hub.attach(model, clone):
        together = model(images())
        with pnc_hub.attach(twin, clone):
            assert torch.equal(twin(images()), together)
            assert torch.equal(model(images()), together)
        assert torch.equal(model(images()), together)
        assert torch.equal(twin(images()), alone)
    assert not any(module._forward_hooks for module in model.modules())


def test_a_stage_that_is_taken_out_keeps_no_hook(pair):
    model, clone = copy.deepcopy(pair[0]), pair[1]
    attachment = pnc_hub.attach(model, clone)
    point = model.get_submodule(attachment.insertion)
    stage, model.layer2 = model.layer2, nn.Identity()
    attachment.detach()
    assert not point._forward_hooks
    model.layer2 = stage
    with pnc_hub.attach(model, clone):
        assert model(images()).shape == (4, 10)


def test_a_feature_of_another_shape_is_refused(pair):
    model, clone = copy.deepcopy(pair[0]), pair[1]
    with pnc_hub.attach(model, clone) as attachment:
        for shape in ((1, 15, 4, 4), (1, 16, 4), (1, 16)):
            with pytest.raises(
                InsertionPointError, match=r"reads NCHW features with 16 channels at 'layer2\.0', found"
            ):
                attachment._joined(torch.zeros(shape), torch.zeros(1, 7))
