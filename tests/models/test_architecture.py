"""Architectures rebuilt by name, and their parts."""

import copy
import pickle

import pytest
import timm
import torch
from torch._dynamo.testing import CompileCounter

from pnc_hub.errors import SourceError
from pnc_hub.models.architecture import Architecture
from pnc_hub.models.classifier import without_classifier
from pnc_hub.models.insertion import INPUT
from pnc_hub.models.tensors import shrink, tensors_of

ARGUMENTS = {"channels": (8, 16, 24, 32), "num_classes": 7, "stem_width": 8}


@pytest.fixture
def architecture():
    return Architecture.of("resnet18", ARGUMENTS, (3, 32, 32))


def test_an_architecture_is_remembered_and_copied_by_name(architecture):
    assert Architecture.of("resnet18", ARGUMENTS, (3, 32, 32)) is architecture
    assert architecture.num_classes == 7
    assert architecture.features == 32
    assert "layer2.0" in architecture.skeleton.points
    for again in (copy.deepcopy(architecture), pickle.loads(pickle.dumps(architecture))):
        assert again is architecture


def test_an_architecture_gives_out_parts_that_nobody_shares(architecture):
    trunk, tail = architecture.trunk("layer2.0"), architecture.tail("layer2.0")
    shapes = {name: tensor.shape for name, tensor in tensors_of(tail).items()}
    assert all(tensor.is_meta for tensor in [*tensors_of(trunk).values(), *tensors_of(tail).values()])
    shrink(tail, {"layer3.0.conv1.weight": [3, 16, 3, 3]}, {"layer3.0.conv1": {"out_channels": 3}})
    again = architecture.tail("layer2.0")
    assert {name: tensor.shape for name, tensor in tensors_of(again).items()} == shapes
    assert architecture.trunk(INPUT)(torch.ones(1)) == 1


def test_parts_are_copied_and_pickled(architecture):
    tail = architecture.tail("layer3.0").to_empty(device="cpu").eval()
    for parameter in [*tail.parameters(), *tail.buffers()]:
        parameter.data = torch.ones_like(parameter)
    feature = torch.randn(2, 24, 2, 2)
    expected = tail(feature)
    for again in (copy.deepcopy(tail), pickle.loads(pickle.dumps(tail))):
        assert torch.equal(again(feature), expected)
        next(again.parameters()).data.zero_()
    assert torch.equal(tail(feature), expected)


def test_graphs_that_were_compiled_of_one_part_serve_the_next(architecture):
    count = CompileCounter()
    run = torch.compile(lambda part, feature: part(feature), backend=count)
    for _ in range(3):
        tail = architecture.tail("layer4.0").to_empty(device="cpu").eval().requires_grad_(False)
        assert run(tail, torch.randn(2, 32, 1, 1)).shape == (2, 32)
    assert count.frame_count == 1


def test_the_classifier_is_taken_out():
    model = timm.create_model("mobilenetv2_035", num_classes=5).eval()
    model, width = without_classifier(model)
    assert width == 1280
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 1280)


@pytest.mark.parametrize("architecture", ["deit_tiny_distilled_patch16_224", "convit_tiny"])
def test_architectures_need_one_linear_classifier(architecture):
    with torch.device("meta"):
        model = timm.create_model(architecture, num_classes=0)
    with pytest.raises(SourceError, match=type(model).__name__):
        without_classifier(model)
