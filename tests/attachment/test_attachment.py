"""What ``attach`` accepts and refuses, and what an attachment tells of itself."""

import copy
import warnings

import battery
import pytest
import timm
import torch
from common import LABELS, images, tiny_clone, tiny_model
from torch import nn

import pnc_hub
from pnc_hub.errors import (
    ClassCollisionError,
    CloneNotFoundError,
    FingerprintMismatchError,
    InsertionPointError,
    NoClassifierError,
    ProbeError,
    TargetError,
)
from pnc_hub.models.insertion import INPUT

OTHERS = ("fly", "moth")


@pytest.fixture(scope="module")
def made():
    """(target, a clone for it alone, one with a universal adapter, one at the target's input)."""
    target, source = tiny_model("resnet"), tiny_model("convnext", seed=1)
    return (
        target,
        tiny_clone(source, target, family="convnext", universal=False),
        tiny_clone(source, target, family="convnext", labels=OTHERS, rows=(5, 4)),
    )


@pytest.fixture
def target(made):
    return copy.deepcopy(made[0])


@pytest.fixture
def clone(made):
    return made[1]


@pytest.fixture
def universal(made):
    return made[2]


@pytest.fixture(autouse=True)
def _compiled_afresh():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def refused(model, clone, error, message, **options):
    before = battery.snapshot(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(error, match=message):
            pnc_hub.attach(model, clone, **options)
    assert battery.snapshot(model) == before


class TestRefusals:
    def test_no_classifier(self, clone):
        refused(
            timm.create_model("resnet18", num_classes=0),
            clone,
            NoClassifierError,
            r"ResNet has no classifier head \(num_classes=0\).*build it with its classes",
        )

    def test_unknown_number_of_classes(self, clone):
        class Constant(nn.Sequential):
            num_classes = 3

        for model in (nn.Sequential(nn.Flatten()), Constant()):
            before = list(vars(model))
            with pytest.raises(
                NoClassifierError, match=r"does not say how many classes.*set its attribute num_classes"
            ):
                pnc_hub.attach(model, clone)
            assert list(vars(model)) == before

    @pytest.mark.parametrize(
        ("wrap", "kind"),
        [
            (nn.DataParallel, "DataParallel"),
            (lambda model: torch.jit.script(nn.Sequential(nn.Flatten())), "RecursiveScriptModule"),
        ],
    )
    @pytest.mark.filterwarnings("ignore:.*torch.jit")
    def test_wrapped_models(self, target, clone, wrap, kind):
        with pytest.raises(TargetError, match=f"do not reach through a {kind}; attach to the plain model, which"):
            pnc_hub.attach(wrap(target), clone)
        assert pnc_hub.attachments(target) == ()

    def test_what_is_no_model(self, clone):
        with pytest.raises(TargetError, match=r"timm model \(an nn.Module\), received a str"):
            pnc_hub.attach("resnet18", clone)

    def test_other_weights(self, clone):
        message = (
            r"made for resnet18 \(at layer2\.0\).*this resnet18 up to the insertion point are others. Load the weights"
        )
        refused(tiny_model("resnet", seed=9), clone, FingerprintMismatchError, message)

    def test_other_architecture(self, clone):
        message = r"made for resnet18 .*of this vit_tiny_patch16_224 up to"
        refused(tiny_model("vit"), clone, FingerprintMismatchError, message)
        message = (
            r"reads layer2\.0 \(16 channels\), and VisionTransformer has no such insertion point.*blocks\.0, blocks\.1"
        )
        refused(tiny_model("vit"), clone, InsertionPointError, message, on_mismatch="warn")

    def test_unknown_folder(self, target, tmp_path):
        refused(target, tmp_path / "nowhere", CloneNotFoundError, "nowhere.*no such folder.*Valid are: 1. a folder")
        (tmp_path / "empty").mkdir()
        refused(target, tmp_path / "empty", CloneNotFoundError, "config.json")

    @pytest.mark.parametrize("option", [{"on_mismatch": "allow"}, {"on_collision": "warn"}])
    def test_unknown_options(self, target, clone, option):
        refused(target, clone, ValueError, f"{next(iter(option))} is 'error' or .*received", **option)

    def test_a_class_that_the_model_knows(self, target, clone):
        target.pretrained_cfg["label_names"] = [*"abcdef", "BEE"]
        refused(
            target, clone, ClassCollisionError, r"adds class 'bee', which the model already has.*on_collision='allow'"
        )
        assert pnc_hub.attach(target, clone, on_collision="allow").labels == LABELS

    def test_a_class_that_another_clone_has(self, target, clone):
        with pnc_hub.attach(target, clone) as first:
            refused(
                target, clone, ClassCollisionError, r"adds class 'ant', which Attachment\(ant, bee, wasp at 'layer2\.0'"
            )
            second = pnc_hub.attach(target, clone, on_collision="allow")
            output = target(images())
            assert torch.equal(output[:, first.logit_slice], output[:, second.logit_slice])


class TestChoosingAnAdapter:
    def test_the_adapter_made_for_the_target_is_silent(self, target, universal):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert pnc_hub.attach(target, universal).insertion == "layer2.0"

    def test_a_target_with_another_head_is_the_same_target(self, target, clone):
        target.reset_classifier(4)
        attachment = pnc_hub.attach(target, clone)
        assert attachment.logit_slice == slice(4, 7)

    @pytest.mark.parametrize("options", [{}, {"on_mismatch": "warn"}], ids=["default", "warn"])
    def test_other_models_are_read_at_the_input_with_a_warning(self, universal, options):
        model = tiny_model("vit")
        with pytest.warns(
            UserWarning, match="no adapter for this VisionTransformer: it is attached at the input"
        ) as seen:
            attachment = pnc_hub.attach(model, universal, **options)
        assert attachment.insertion == INPUT
        assert seen[0].filename == __file__
        assert attachment.verify() == 0

    def test_other_weights_are_accepted_when_asked_for(self, universal):
        model = tiny_model("resnet", seed=9)
        plain = copy.deepcopy(model)
        with pytest.warns(UserWarning, match="are others.*attached all the same, as asked: measure it first") as seen:
            attachment = pnc_hub.attach(model, universal, on_mismatch="warn")
        assert seen[0].filename == __file__
        assert attachment.insertion == "layer2.0"
        torch.testing.assert_close(
            model(images())[:, attachment.logit_slice], battery.direct(plain, universal, images(), "layer2.0")
        )

    def test_an_adapter_at_the_input_is_for_one_architecture_and_number_of_classes(self, target, clone, universal):
        at_input = copy.deepcopy(universal)
        interior = at_input.config.adapters.pop(0)
        at_input.config.adapters[0].target = interior.target
        with pnc_hub.attach(target, clone):
            assert pnc_hub.attach(target, at_input).insertion == INPUT
        refused(tiny_model("resnet", num_classes=8), at_input, FingerprintMismatchError, "made for resnet18 .at input")


class TestAttachment:
    def test_what_it_tells(self, target, clone, universal):
        first = pnc_hub.attach(target, clone)
        assert (first.labels, first.clone, first.insertion, first.fired) == (LABELS, clone, "layer2.0", False)
        second = pnc_hub.attach(target, universal)
        assert (first.logit_slice, second.logit_slice) == (slice(7, 10), slice(10, 12))
        assert pnc_hub.attachments(target) == (first, second)
        target(images())
        assert first.fired
        assert second.fired
        with first.disabled():
            assert second.logit_slice == slice(7, 9)
            with pytest.raises(TargetError, match="has no logits now: it is disabled"):
                first.logit_slice  # noqa: B018
        first.detach()
        assert second.logit_slice == slice(7, 9)
        with pytest.raises(
            TargetError, match=r"Attachment\(detached, ant, bee, wasp\) has no logits now: it is detached"
        ):
            first.logit_slice  # noqa: B018
        assert first.clone is None
        assert first.labels == LABELS

    def test_blocks_of_disabled_that_overlap(self, target, clone):
        attachment = pnc_hub.attach(target, clone)
        first, second = attachment.disabled(), attachment.disabled()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert target(images()).shape == (4, 7)
        second.__exit__(None, None, None)
        assert target(images()).shape == (4, 10)

    def test_what_is_no_model_or_clone(self, target):
        for ask in (pnc_hub.attachments, pnc_hub.detach, lambda model: pnc_hub.attach(model, "user/clone")):
            with pytest.raises(TargetError, match=r"timm model \(an nn.Module\), received a NoneType"):
                ask(None)
        with pytest.raises(InsertionPointError, match="received a int"):
            pnc_hub.insertion_points(3)
        with pytest.raises(CloneNotFoundError, match="Received: '5'"):
            pnc_hub.attach(target, 5)

    def test_a_disabled_clone_does_not_run(self, target, clone):
        attachment = pnc_hub.attach(target, clone)
        with attachment.disabled():
            target(images())
        assert not attachment.fired

    def test_a_classifier_that_is_reset_meanwhile(self, target, clone, universal):
        first, second = pnc_hub.attach(target, clone), pnc_hub.attach(target, universal)
        target.reset_classifier(4)
        assert target(images()).shape == (4, 9)
        assert (first.logit_slice, second.logit_slice) == (slice(4, 7), slice(7, 9))
        first.detach()
        assert target.num_classes == 6
        second.detach()
        assert target.num_classes == target(images()).shape[1] == 4

    def test_a_clone_can_serve_several_models(self, target, clone):
        twin = copy.deepcopy(target)
        with pnc_hub.attach(target, clone) as first, pnc_hub.attach(twin, clone):
            first.detach()
            assert twin(images()).shape == (4, 10)
            assert target(images()).shape == (4, 7)

    def test_a_saved_clone_answers_like_the_one_in_memory(self, target, clone, tmp_path):
        with pnc_hub.attach(target, clone):
            expected = target(images())
        with torch.inference_mode(), pnc_hub.attach(target, clone.save_pretrained(tmp_path / "clone")):
            assert torch.equal(target(images()), expected)

    def test_weights_read_in_inference_mode_take_gradients_later(self, target, clone, tmp_path):
        folder = clone.save_pretrained(tmp_path / "clone")
        with torch.inference_mode():
            pnc_hub.attach(target, folder)
        target(images()).sum().backward()
        assert next(target.parameters()).grad.isfinite().all()

    def test_models_without_weights_count_the_clone(self, target, clone):
        pnc_hub.attach(target, clone)
        assert target.to("meta")(images().to("meta")).shape == (4, 10)


class TestVerify:
    def test_passes_whatever_the_models_dtype(self, target, clone):
        attachment = pnc_hub.attach(target, clone)
        assert attachment.verify() == 0
        target.half()
        assert attachment.verify() == 0

    def test_needs_an_attached_clone_and_a_model_in_eval_mode(self, target, clone):
        attachment = pnc_hub.attach(target, clone)
        before = battery.snapshot(target)
        assert attachment.verify() == 0
        assert battery.snapshot(target) == before
        target.train()
        with pytest.raises(TargetError, match=r"training mode; call model\.eval\(\)"):
            attachment.verify()
        target.eval()
        with attachment.disabled(), pytest.raises(TargetError, match="disabled"):
            attachment.verify()
        attachment.detach()
        with pytest.raises(TargetError, match="detached"):
            attachment.verify()

    def test_a_clone_whose_weights_are_not_those_of_its_probe(self, target, clone):
        wrong = copy.deepcopy(clone)
        wrong.tensors["model.safetensors"]["head.bias"] += 1
        with pnc_hub.attach(target, wrong) as attachment, pytest.raises(ProbeError, match="misses its probe by 1,"):
            attachment.verify()

    def test_a_callable_that_does_not_carry_the_clone(self, target, clone):
        plain = copy.deepcopy(target)
        other = copy.deepcopy(target)
        attachment = pnc_hub.attach(target, clone)
        pnc_hub.attach(other, clone)
        other.fc.bias.data += 1
        for callable in (plain, other):
            with pytest.raises(
                ProbeError, match=r"does not carry the clone's logits.*Attach first, or call torch\.compiler"
            ):
                attachment.verify(callable)

    def test_a_model_whose_hooks_were_cleared(self, target, clone):
        attachment = pnc_hub.attach(target, clone)
        target.layer2[0]._forward_hooks.clear()
        with pytest.raises(ProbeError, match=r"ran past 'layer2\.0' without its hooks"):
            attachment.verify()

    def test_a_layer_compiled_and_called_before(self, target, clone):
        """Its graph has no hook in it and nothing that tells torch.compile so; the model around it notices."""
        target.layer2.compile(backend="eager")
        alone = target(images(1))
        attachment = pnc_hub.attach(target, clone)
        assert attachment.insertion == "layer2.0"
        with pytest.raises(TargetError, match=r"ran past 'layer2\.0'.*torch\.compiler\.reset\(\)"):
            target(images(1))
        with pytest.raises(ProbeError, match=r"torch\.compiler\.reset\(\)"):
            attachment.verify()
        torch.compiler.reset()
        assert attachment.verify() == 0
        attachment.detach()
        torch.compiler.reset()
        torch.testing.assert_close(target(images(1)), alone)

    def test_a_compiled_layer_that_is_itself_the_insertion_point(self, target, clone):
        target.layer2[0].compile(backend="eager")
        alone = target(images(1))
        attachment = pnc_hub.attach(target, clone)
        assert attachment.verify() == 0
        assert target(images(1)).shape[1] == target.num_classes
        attachment.detach()
        torch.testing.assert_close(target(images(1)), alone)
