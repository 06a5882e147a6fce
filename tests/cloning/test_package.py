"""Naming the source so that it can be rebuilt, and the artifact that comes of it."""

import copy

import pytest
import timm
import torch
from common import FAMILIES, images, source_args, tiny_clone, tiny_model
from timm.models import register_model

from cloning.learning import few
from pnc_hub import attachment
from pnc_hub.cloning.networks import Networks
from pnc_hub.cloning.package import source_config
from pnc_hub.errors import SourceError
from pnc_hub.hub.clone import Clone
from pnc_hub.models.fingerprint import fingerprint

CPU = torch.device("cpu")
MORE = ((True, None), (False, 0.7))


def describe(source, given, hub_id=None, license=None):
    return source_config(source, given, hub_id, license, Networks(source, source, [0], CPU))


@pytest.mark.parametrize("family", few("resnet", "vit"))
def test_a_source_is_described_by_the_arguments_it_was_built_with(family):
    source = tiny_model(family)
    found = describe(source, source_args(family), "user/model", "mit")
    expected = {name: list(v) if isinstance(v, tuple) else v for name, v in source_args(family).items()}
    assert found.model_args == {"num_classes": 7, **expected}
    assert (found.architecture, found.hub_id, found.license) == (FAMILIES[family][0], "user/model", "mit")
    assert found.fingerprint == fingerprint(source)


def test_a_source_of_timms_defaults_needs_no_arguments():
    found = describe(timm.create_model("mobilenetv3_small_050", num_classes=5), {})
    assert found.model_args == {"num_classes": 5}
    assert found.license == "unknown"


def test_the_number_of_channels_is_found():
    source = timm.create_model("resnet10t", in_chans=1, num_classes=3)
    assert describe(source, {}).model_args == {"num_classes": 3, "in_chans": 1}


@pytest.mark.parametrize(
    ("family", "given"),
    [
        ("resnet", {}),
        ("resnet", {"channels": (8, 16, 24, 40), "stem_width": 8}),
        ("convnext", {"dims": (8, 16, 24, 32)}),
        ("vit", {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}),
    ],
    ids=["none", "other widths", "too few", "same shapes, other function"],
)
def test_missing_or_wrong_arguments_are_noticed(family, given):
    with pytest.raises(SourceError, match=r"built with other arguments.* source_args="):
        describe(tiny_model(family), given)


@pytest.mark.parametrize(
    "given", [{"no_such_argument": 1}, {"output_stride": 16}, {"channels": "many"}, {"channels": (8, 16)}]
)
def test_arguments_that_an_artifact_can_not_record_or_timm_not_take_are_refused(given):
    with pytest.raises(SourceError, match=r"channels|argument"):
        describe(tiny_model("resnet"), {"stem_width": 8, **given})


@pytest.mark.parametrize("named", [{"hub_id": "no such/id"}, {"license": "a licence with spaces"}])
def test_names_that_an_artifact_can_not_record_are_refused(named):
    with pytest.raises(SourceError, match="cannot record"):
        describe(tiny_model("resnet"), source_args("resnet"), **named)


def test_an_architecture_that_timm_does_not_know_is_refused():
    source = copy.deepcopy(tiny_model("resnet"))
    source.pretrained_cfg = {**source.pretrained_cfg, "architecture": "pnc_hub_unregistered"}
    with pytest.raises(SourceError, match="register_model"):
        describe(source, source_args("resnet"))


def test_an_architecture_that_the_user_registered_is_taken():
    @register_model
    def pnc_hub_registered(num_classes=10, **_):
        return timm.models.ResNet(timm.models.resnet.BasicBlock, (1, 1, 1, 1), num_classes, channels=(8, 8, 8, 8))

    try:
        source = timm.create_model("pnc_hub_registered", num_classes=4)
        source.pretrained_cfg = {"architecture": "pnc_hub_registered", "input_size": (3, 32, 32), "first_conv": "conv1"}
        assert describe(source.eval(), {}).architecture == "pnc_hub_registered"
    finally:
        timm.models._registry._model_entrypoints.pop("pnc_hub_registered")


@pytest.mark.parametrize(
    ("universal", "keep"), [(True, 0.7), (False, None), *(pytest.param(*one, marks=pytest.mark.slow) for one in MORE)]
)
def test_the_artifact_holds_what_it_says_and_answers_the_same_when_read_back(tmp_path, universal, keep):
    source, target = tiny_model("resnet", seed=1), tiny_model("convnext")
    clone = tiny_clone(source, target, universal=universal, keep=keep)
    assert len(clone.config.adapters) == 1 + universal
    assert bool(clone.config.tail.shapes) == (keep is not None)
    made_for = clone.config.adapters[0].target
    assert (made_for.architecture, made_for.num_classes) == ("convnext_atto", 7)
    with torch.inference_mode(), attachment.attach(target, clone):
        expected = target(images())
    read = Clone.from_pretrained(clone.save_pretrained(tmp_path / "clone"))
    assert (tmp_path / "clone" / "trunk.safetensors").exists() == universal
    with torch.inference_mode(), attachment.attach(target, read) as joined:
        assert torch.equal(target(images()), expected)
        joined.verify()


def test_the_probe_is_the_same_each_time_and_shows_no_image():
    source, target = tiny_model("resnet", seed=1), tiny_model("convnext")
    first, again = (tiny_clone(source, target) for _ in range(2))
    for adapter in first.config.adapters:
        assert torch.equal(first.probe(adapter)["logits"], again.probe(adapter)["logits"])
        assert first.run_probe(adapter) == 0.0
