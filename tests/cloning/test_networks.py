"""Source and target side by side: what is read is what the models compute, and the models are only read."""

import copy

import pytest
import timm
import torch
from common import SIDE, images, tiny_clone, tiny_model
from conftest import what_it_is
from torch.testing import assert_close

from cloning.learning import few
from pnc_hub import attachment
from pnc_hub.cloning.networks import Networks, Reader
from pnc_hub.errors import SourceError
from pnc_hub.models.insertion import INPUT

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def source():
    return tiny_model("resnet", seed=1)


@pytest.mark.parametrize("family", few("resnet", "swin"))
def test_a_reader_returns_the_output_and_the_features_that_lead_to_it(family):
    model = tiny_model(family)
    reader, batch = Reader(model, CPU), images(2)
    points = list(reader.skeleton.points)
    output, read = reader(batch, points)
    assert_close(output, model(batch))
    assert set(read) == set(points)
    for name in points[:: max(1, len(points) // 4)]:
        assert_close(reader.skeleton.tail(reader.model, name)(read[name]), output)


def test_features_are_read_before_a_later_layer_changes_them_in_place(source):
    reader = Reader(source, CPU)
    _, read = reader(images(2), reader.skeleton.points)
    for name, feature in read.items():
        assert_close(feature, reader.skeleton.trunk(reader.model, name)(images(2)).clone())
    assert read["bn1"].min() < 0  # a ReLU in place follows


def test_reading_leaves_the_model_and_the_reader_without_hooks(source):
    source.train()
    try:
        before = what_it_is(source)
        reader = Reader(source, CPU)
        reader(images(2), ["layer1.0"])
        assert what_it_is(source) == before
        assert not any(module._forward_hooks for module in reader.model.modules())
        assert not reader.model.training
    finally:
        source.eval()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_model_of_another_dtype_is_read_in_float32(source, dtype):
    reader = Reader(copy.deepcopy(source).to(dtype), CPU)
    assert reader(images(2))[0].dtype == torch.float32
    assert_close(reader(images(2))[0], source(images(2)), rtol=0.1, atol=0.1)


def test_clones_attached_to_a_model_do_not_take_part(source):
    model = tiny_model("convnext")
    expected = model(images(2))
    with attachment.attach(model, tiny_clone(source, model)):
        assert torch.equal(Reader(model, CPU)(images(2))[0], expected)
        assert model(images(2)).shape[1] == expected.shape[1] + 3


@pytest.mark.parametrize("family", few("resnet", "swin"))
def test_a_lesson_is_what_the_source_says(family):
    model = tiny_model(family)
    networks = Networks(model, model, [4, 1], CPU)
    batch = images(3)
    lesson, logits = networks.teach(batch, networks.cuts()), model(batch)
    assert_close(lesson.cloned, logits[:, [4, 1]])
    assert_close(lesson.rejected, logits[:, [0, 2, 3, 5, 6]].logsumexp(1))
    assert_close(networks.head(lesson.penultimate), logits)
    assert lesson.features.keys() >= networks.cuts().keys()


def test_where_every_class_is_cloned_nothing_is_rejected(source):
    networks = Networks(source, source, list(range(7)), CPU)
    assert torch.equal(networks.teach(images(2)).rejected, torch.full((2,), float("-inf")))


@pytest.mark.parametrize("count", [1, 3])
def test_head_rows_are_the_sources_and_reject_rows(source, count):
    networks = Networks(source, source, [4, 1], CPU)
    weight, bias = torch.randn(count, networks.width), torch.randn(count)
    head = networks.head_rows((weight, bias))
    assert torch.equal(head.weight, torch.cat([source.fc.weight[[4, 1]], weight]))
    assert torch.equal(head.bias, torch.cat([source.fc.bias[[4, 1]], bias]))


@pytest.mark.parametrize("point", [INPUT, "layer2.0", "layer4.1"])
def test_one_feature_is_that_of_the_whole_pass(source, point):
    networks = Networks(source, source, [0], CPU)
    batch = images(3)
    assert torch.equal(networks.target.feature(batch, point), networks.target(batch, [point])[1][point])
    assert not networks.target.model.get_submodule("layer2.0")._forward_hooks


def test_a_tail_is_a_copy(source):
    networks = Networks(source, source, [0], CPU)
    tail = networks.tail("layer2.1")
    for parameter in tail.parameters():
        parameter.data.zero_()
    assert_close(networks.source.model.layer3[0].conv1.weight, source.layer3[0].conv1.weight)


def test_images_of_other_size_and_channels_are_brought_to_the_source():
    overlay = {"input_size": (1, 48, 48), "mean": (0.2,), "std": (0.5,)}
    source = timm.create_model("resnet18", channels=(8, 8, 8, 8), in_chans=1, pretrained_cfg_overlay=overlay).eval()
    target = tiny_model("convnext")
    networks = Networks(source, target, [0], CPU)
    mean, std = (torch.tensor(target.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    pixels = torch.full((2, 3, SIDE, SIDE), 0.7)
    assert_close(networks.to_source((pixels - mean) / std), torch.full((2, 1, 48, 48), (0.7 - 0.2) / 0.5))
    assert networks.teach(images(2)).cloned.shape == (2, 1)


@pytest.mark.parametrize(
    ("model", "found"),
    [
        (lambda: tiny_model("resnet", num_classes=0), "Identity"),
        (lambda: timm.create_model("deit_tiny_distilled_patch16_224", img_size=32, embed_dim=24, depth=1), "missing"),
    ],
    ids=["no head", "two heads"],
)
def test_a_source_without_a_single_head_is_refused(model, found):
    with pytest.raises(SourceError, match=f"can ?not be a source.*{found}.*single classifier"):
        Networks(model(), tiny_model("resnet"), [0], CPU)


def test_a_source_that_goes_on_after_its_classifier_is_refused(source):
    model = copy.deepcopy(source)
    model.register_forward_hook(lambda _module, _args, output: output * 2)
    with pytest.raises(SourceError, match="not the last thing"):
        Networks(model, source, [0], CPU)
