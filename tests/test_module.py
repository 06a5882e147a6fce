"""The clone as a module: adapters between all layouts, tails that are made narrower, tensors put in place."""

import copy
import itertools
import pickle

import pytest
import timm
import torch
from torch import nn
from torch.testing import assert_close

from pnc_hub.errors import InsertionPointError, SourceError
from pnc_hub.fusion import SCALARS
from pnc_hub.module import (
    Adapter,
    CloneModule,
    Gate,
    Source,
    attributes_of,
    empty,
    put_tensors,
    shrink,
    tensors_of,
    to_maps,
    without_classifier,
)
from pnc_hub.points import INPUT, LAYOUTS, InsertionPoint

ARGUMENTS = (("channels", (8, 16, 24, 32)), ("num_classes", 7), ("stem_width", 8))


def point(layout, channels, grid, prefix_tokens=0):
    grid = (1, 1) if layout == "NC" else grid
    return InsertionPoint("here", 0, channels, 8, layout, grid, prefix_tokens if layout == "NLC" else 0)


def numbered(at, batch=2):
    """Feature whose map at [b, c, y, x] is a number of its own, with class tokens of -1."""
    height, width = at.grid
    maps = torch.arange(batch * at.channels * height * width, dtype=torch.float32)
    maps = maps.reshape(batch, at.channels, height, width)
    tokens = torch.cat([-torch.ones(batch, at.prefix_tokens, at.channels), maps.flatten(2).transpose(1, 2)], 1)
    return maps, {"NCHW": maps, "NHWC": maps.permute(0, 2, 3, 1), "NLC": tokens, "NC": maps.flatten(1)}[at.layout]


@pytest.fixture
def source():
    return Source.of("resnet18", ARGUMENTS, (3, 32, 32))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_features_of_every_layout_become_the_same_maps(layout):
    at = point(layout, 5, (4, 2), prefix_tokens=3)
    maps, feature = numbered(at)
    assert torch.equal(to_maps(feature, at), maps)
    assert empty(at, batch=2).shape == feature.shape


@pytest.mark.parametrize(("given", "wanted"), [*itertools.product(LAYOUTS, repeat=2)])
@pytest.mark.parametrize("grids", [((4, 2), (4, 2)), ((4, 4), (2, 2)), ((2, 2), (4, 4))], ids=str)
def test_an_adapter_joins_any_two_layouts(given, wanted, grids):
    target = point(given, 5, grids[0], prefix_tokens=2)
    source = point(wanted, 6, grids[1], prefix_tokens=3)
    maps, feature = numbered(target)
    adapter = Adapter(target, source)
    with torch.no_grad():
        output = adapter(feature)
        assert output.shape == empty(source, batch=2).shape
        mapped = to_maps(output, source)
        if target.grid == source.grid:
            assert_close(
                mapped, torch.einsum("oc,bchw->bohw", adapter.map.weight, maps) + adapter.map.bias[:, None, None]
            )
        elif given == "NC":
            assert_close(mapped, mapped[:, :, :1, :1].expand_as(mapped))
        assert_close(
            mapped.mean((2, 3)), adapter.map(maps.mean((2, 3))), msg="resizing and mapping keep the mean feature"
        )
        if wanted == "NLC":
            prefix = adapter.prefix(maps.mean((2, 3))).unflatten(1, (3, 6))
            assert_close(output[:, :3], prefix)


def test_features_of_other_sizes_come_out_at_the_sources_grid():
    at, source = point("NLC", 5, (4, 2), prefix_tokens=1), point("NCHW", 6, (3, 3))
    adapter = Adapter(at, source)
    assert adapter(torch.randn(2, 1 + 8 * 4, 5)).shape == (2, 6, 3, 3)
    assert Adapter(point("NCHW", 5, (4, 4)), source)(torch.randn(2, 5, 7, 9)).shape == (2, 6, 3, 3)


def test_the_module_returns_logits_reject_and_features():
    head = nn.Linear(4, 3 + 1)
    module = CloneModule(nn.Identity(), nn.Identity(), head)
    feature = torch.randn(2, 4)
    logits, reject, features = module(feature)
    assert torch.equal(logits, head(feature)[:, :3])
    assert torch.equal(reject, head(feature)[:, 3])
    assert torch.equal(features, feature)


def test_the_gate_is_linear_minus_its_offset():
    gate = Gate(4)
    target, clone, reject, features = torch.randn(2, 5), torch.randn(2, 3), torch.randn(2), torch.randn(2, 4)
    assert torch.equal(gate(target, clone, reject, features), torch.zeros(2))
    with torch.no_grad():
        gate.scalars[SCALARS.index("reject")] = 2
        gate.features[1] = 3
        gate.bias.fill_(0.5)
        gate.offset.fill_(4)
    assert_close(gate(target, clone, reject, features), 2 * reject + 3 * features[:, 1] + 0.5 - 4)


def test_a_source_is_remembered_and_copied_by_name(source):
    assert Source.of("resnet18", ARGUMENTS, (3, 32, 32)) is source
    assert source.num_classes == 7
    assert source.features == 32
    assert "layer2.0" in source.skeleton.points
    for again in (copy.deepcopy(source), pickle.loads(pickle.dumps(source))):
        assert again is source


def test_a_source_gives_out_parts_that_nobody_shares(source):
    prefix, tail = source.parts("layer2.0")
    shapes = {name: tensor.shape for name, tensor in tensors_of(tail).items()}
    assert all(tensor.is_meta for tensor in [*tensors_of(prefix).values(), *tensors_of(tail).values()])
    shrink(tail, {"layer3.0.conv1.weight": [3, 16, 3, 3]}, {"layer3.0.conv1": {"out_channels": 3}})
    _, again = source.parts("layer2.0")
    assert {name: tensor.shape for name, tensor in tensors_of(again).items()} == shapes
    assert source.parts(INPUT)[0](torch.ones(1)) == 1


def test_a_shrunk_tail_runs(source):
    _, tail = source.parts("layer4.0")
    tail.to_empty(device="cpu")
    shapes = {"layer4.1.conv1.weight": [9, 32, 3, 3], "layer4.1.conv2.weight": [32, 9, 3, 3]}
    shapes.update({f"layer4.1.bn1.{name}": [9] for name in ("weight", "bias", "running_mean", "running_var")})
    shrink(
        tail,
        shapes,
        {
            "layer4.1.conv1": {"out_channels": 9},
            "layer4.1.bn1": {"num_features": 9},
            "layer4.1.conv2": {"in_channels": 9},
        },
    )
    assert {name: list(tensors_of(tail)[name].shape) for name in shapes} == shapes
    assert attributes_of(tail)["layer4.1.conv2"]["in_channels"] == 9
    assert attributes_of(tail)["layer4.1.bn1"] == {"num_features": 9}
    assert tail(torch.randn(2, 32, 1, 1)).shape == (2, 32)


def test_shrinking_keeps_tuples():
    layer = nn.ModuleDict({"norm": nn.LayerNorm(8, device="meta")})
    shrink(layer, {"norm.weight": [5], "norm.bias": [5]}, {"norm": {"normalized_shape": 5}})
    assert layer["norm"].normalized_shape == (5,)
    layer.to_empty(device="cpu")
    assert layer["norm"](torch.randn(2, 5)).shape == (2, 5)


@pytest.mark.parametrize(
    ("shapes", "attributes"),
    [
        ({"layer4.9.weight": [1]}, {}),
        ({"layer4.0.conv1.weight": [64, 24, 3, 3]}, {}),
        ({"layer4.0.conv1.weight": [24, 24, 3]}, {}),
        ({"layer4.0.conv1.weight": [0, 24, 3, 3]}, {}),
        ({}, {"layer4.0.conv1": {"out_channels": 64}}),
        ({}, {"layer4.0.conv1": {"out_channels": 0}}),
        ({}, {"layer4.0.conv1": {"forward": 1}}),
        ({}, {"nowhere": {"out_channels": 1}}),
    ],
)
def test_tails_never_grow(source, shapes, attributes):
    _, tail = source.parts("layer3.0")
    before = {name: tensor.shape for name, tensor in tensors_of(tail).items()}, attributes_of(tail)
    with pytest.raises(InsertionPointError, match="after the cut can not have"):
        shrink(tail, shapes, attributes)
    assert ({name: tensor.shape for name, tensor in tensors_of(tail).items()}, attributes_of(tail)) == before


def test_tensors_are_put_in_place_and_frozen():
    module = nn.Sequential(nn.Linear(2, 3, device="meta"), nn.BatchNorm1d(3, device="meta"))
    tensors = {name: torch.full(tensor.shape, 2, dtype=tensor.dtype) for name, tensor in tensors_of(module).items()}
    put_tensors(module, tensors)
    found = tensors_of(module)
    assert all(found[name].data_ptr() == tensors[name].data_ptr() for name in tensors)
    assert [name for name, _ in module.named_buffers()] == ["1.running_mean", "1.running_var", "1.num_batches_tracked"]
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert sum(tensor.numel() for tensor in found.values()) == 2 * 3 + 3 + 4 * 3 + 1


def test_the_classifier_is_taken_out():
    model = timm.create_model("mobilenetv2_035", num_classes=5).eval()
    model, width = without_classifier(model)
    assert width == 1280
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 1280)


@pytest.mark.parametrize("architecture", ["deit_tiny_distilled_patch16_224", "convit_tiny"])
def test_sources_need_one_linear_classifier(architecture):
    with torch.device("meta"):
        model = timm.create_model(architecture, num_classes=0)
    with pytest.raises(SourceError, match=type(model).__name__):
        without_classifier(model)
