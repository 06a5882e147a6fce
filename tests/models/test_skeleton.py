"""Insertion points: what is found, what is said of it, and that cutting there changes nothing."""

import copy

import pytest
import timm
import torch
from common import FAMILIES, images, tiny_clone, tiny_model

import pnc_hub
from pnc_hub import insertion_points
from pnc_hub.errors import InsertionPointError
from pnc_hub.models.classifier import classifier_name
from pnc_hub.models.insertion import INPUT, InsertionPoint
from pnc_hub.models.meta import meta_copy
from pnc_hub.models.skeleton import Skeleton

# name, channels, reduction, layout, grid, prefix tokens
KNOWN = {
    "resnet18": ("layer3.1", 256, 16, "NCHW", (14, 14), 0),
    "mobilenetv2_100": ("blocks.2.0", 32, 8, "NCHW", (28, 28), 0),
    "convnext_atto": ("stages.3", 320, 32, "NCHW", (7, 7), 0),
    "vit_tiny_patch16_224": ("blocks.11", 192, 16, "NLC", (14, 14), 1),
    "deit_tiny_distilled_patch16_224": ("blocks.5", 192, 16, "NLC", (14, 14), 2),
    "vit_small_patch14_reg4_dinov2": ("blocks.3", 384, 14, "NLC", (37, 37), 5),
    "swin_tiny_patch4_window7_224": ("layers.1", 192, 8, "NHWC", (28, 28), 0),
    "mixer_s32_224": ("blocks.2", 512, 32, "NLC", (7, 7), 0),
    "regnetx_002": ("s4", 368, 32, "NCHW", (7, 7), 0),
    "efficientnet_b0": ("global_pool", 1280, 224, "NC", (1, 1), 0),
}


def on_meta(architecture, **arguments):
    with torch.device("meta"):
        return timm.create_model(architecture, **arguments)


@pytest.mark.parametrize("architecture", KNOWN)
def test_points_of_real_architectures(architecture):
    points = insertion_points(on_meta(architecture))
    channels, height, width = timm.get_pretrained_cfg(architecture).input_size
    assert points[0] == InsertionPoint(INPUT, channels, 1, "NCHW", (height, width))
    name, channels, reduction, layout, grid, prefix_tokens = KNOWN[architecture]
    assert InsertionPoint(name, channels, reduction, layout, grid, prefix_tokens) in points


@pytest.mark.parametrize("family", FAMILIES)
def test_points_tell_the_shapes_of_a_forward_pass(family):
    model = tiny_model(family)
    points = insertion_points(model)
    assert len(points) >= 4
    assert len({point.name for point in points}) == len(points)
    assert model.get_submodule(points[-1].name) is not model.get_classifier()
    reached = []
    for point in points[1:]:

        def look(_module, _args, output, point=point):
            height, width = point.grid
            shape = {
                "NCHW": (point.channels, height, width),
                "NHWC": (height, width, point.channels),
                "NLC": (point.prefix_tokens + height * width, point.channels),
                "NC": (point.channels,),
            }[point.layout]
            reached.append(point.name)
            assert output.shape == (2, *shape)
            assert point.reduction == 32 // height

        model.get_submodule(point.name).register_forward_hook(look)
    model(images(2))
    assert reached == [point.name for point in points[1:]]


@pytest.mark.parametrize("family", FAMILIES)
def test_prefix_and_tail_are_the_model_bit_for_bit_at_every_cut(family):
    model, batch = tiny_model(family), images()
    skeleton = Skeleton(model)
    with torch.inference_mode():
        expected = model(batch)
        for name in skeleton.points:
            feature = skeleton.trunk(model, name)(batch)
            assert torch.equal(skeleton.tail(model, name)(feature), expected), name


@pytest.mark.parametrize("family", FAMILIES)
def test_the_trunk_is_what_the_features_depend_on(family):
    model, batch = tiny_model(family), images(2)
    skeleton = Skeleton(model)
    names = list(skeleton.points)
    point = names[len(names) // 2]
    trunk = skeleton.trunk_names(point)
    skeleton.trunk(model, point)(batch).sum().backward()
    depends = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    covered = {
        name
        for name, _ in model.named_parameters()
        if any(name == used or name.startswith(f"{used}.") for used in trunk)
    }
    assert depends == covered
    assert 0 < len(depends) < len(list(model.parameters()))
    assert skeleton.trunk_names(INPUT) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_is_only_read(family):
    model = tiny_model(family).train()
    called = []
    for module in model.modules():
        module.register_forward_hook(lambda *_: called.append("forward"))
        module.register_forward_pre_hook(lambda *_: called.append("before"))

    def seen():
        return {
            name: (list(vars(module)), module.training, dict(module._forward_hooks), dict(module._forward_pre_hooks))
            for name, module in model.named_modules()
        }

    before, state = seen(), copy.deepcopy(model.state_dict())
    identities = [id(tensor) for tensor in [*model.parameters(), *model.buffers()]]
    insertion_points(model)
    assert called == []
    assert seen() == before
    assert identities == [id(tensor) for tensor in [*model.parameters(), *model.buffers()]]
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    twin = meta_copy(model)
    assert all(tensor.is_meta for tensor in [*twin.parameters(), *twin.buffers()])
    assert not any(module.training or module._forward_hooks for module in twin.modules())


def test_an_attribute_of_the_model_may_be_called_a_hook():
    class Hooked(timm.models.resnet.ResNet):
        def forward(self, x):
            return self.post_hook(super().forward(x))

    model = Hooked(timm.models.resnet.BasicBlock, (1, 1, 1, 1), num_classes=5, channels=(8, 8, 8, 8)).eval()
    model.post_hook = torch.nn.functional.relu
    assert "layer2.0" in Skeleton(model).points


def test_points_do_not_depend_on_device_dtype_or_hooks():
    model = tiny_model("swin")
    expected = insertion_points(model)
    assert insertion_points(copy.deepcopy(model).half()) == expected
    assert insertion_points(copy.deepcopy(model).to("meta")) == expected
    assert insertion_points(tiny_model("swin", num_classes=3, seed=4)) == expected


def test_branches_are_no_points():
    names = [point.name for point in insertion_points(on_meta("resnet18"))]
    assert "layer2.0" in names
    assert not {"layer2", "layer2.0.conv1", "layer2.0.downsample", "fc"}.intersection(names)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_classifier_is_found_by_name(family):
    model = tiny_model(family)
    assert model.get_submodule(classifier_name(model)) is model.get_classifier()


def test_a_model_without_one_classifier_has_no_name_for_it():
    assert classifier_name(on_meta("deit_tiny_distilled_patch16_224")) == ""
    assert classifier_name(torch.nn.Linear(1, 1)) == ""


class Untraceable(torch.nn.Module):
    """Decides by what is in the image."""

    def forward(self, images):
        return images.mean((2, 3)) if images.sum() > 0 else images.amax((2, 3))


def test_untraceable_models_can_only_be_read_at_the_input():
    model = Untraceable()
    with pytest.raises(
        InsertionPointError, match=r"no interior insertion point.*universal adapter attaches at its input"
    ):
        insertion_points(model)
    assert Skeleton(model).point(INPUT).grid == (224, 224)
    assert Skeleton(model).trunk_names(INPUT) == []


def test_arguments_other_than_the_image_keep_their_defaults():
    names = [point.name for point in insertion_points(on_meta("hiera_tiny_224"))]
    assert names[:3] == [INPUT, "patch_embed", "unroll"]
    assert "blocks.11" in names


def test_a_model_that_wraps_another_is_looked_into():
    names = [point.name for point in insertion_points(on_meta("qwen3_vit_88m"))]
    assert "encoder.blocks.6" in names


@pytest.mark.parametrize(
    ("architecture", "name", "prefix_tokens"),
    [("pit_ti_distilled_224", "transformers.0.blocks.1", 2), ("cait_xxs24_224", "blocks.3", 0)],
)
def test_class_tokens_are_counted_where_the_model_does_not_tell(architecture, name, prefix_tokens):
    assert Skeleton(on_meta(architecture)).point(name).prefix_tokens == prefix_tokens


def test_a_copy_carries_no_clone():
    source, target = tiny_model("resnet"), tiny_model("convnext")
    clone = tiny_clone(source, target)
    expected = insertion_points(target)
    with pnc_hub.attach(target, clone):
        assert insertion_points(target) == expected
        assert vars(meta_copy(target)).keys() == vars(tiny_model("convnext")).keys()


@pytest.mark.parametrize("name", ["layer9", "layer2", "layer2.0.conv1", "fc", ""])
def test_unknown_points_are_named_with_those_that_exist(name):
    skeleton = Skeleton(tiny_model("resnet"))
    for act in (skeleton.point, skeleton.trunk_names, lambda name: skeleton.tail(skeleton.model, name)):
        with pytest.raises(
            InsertionPointError, match=rf"'{name}' is no insertion point of ResNet.*layer2\.0, layer2\.1"
        ):
            act(name)
