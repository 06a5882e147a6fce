"""The clone as a module: adapters between all layouts, tails that are made narrower, tensors put in place."""

import itertools

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pnc_hub.errors import InsertionPointError
from pnc_hub.fusion import SCALARS
from pnc_hub.models.architecture import Architecture
from pnc_hub.models.insertion import LAYOUTS, InsertionPoint, empty, to_maps
from pnc_hub.models.tensors import attributes_of, put_tensors, shrink, tensors_of
from pnc_hub.module import Adapter, CloneModule, Gate

ARGUMENTS = {"channels": (8, 16, 24, 32), "num_classes": 7, "stem_width": 8}


def point(layout, channels, grid, prefix_tokens=0):
    grid = (1, 1) if layout == "NC" else grid
    return InsertionPoint("here", channels, 8, layout, grid, prefix_tokens if layout == "NLC" else 0)


def numbered(at, batch=2):
    """Feature whose map at [b, c, y, x] is a number of its own, with class tokens of -1."""
    height, width = at.grid
    maps = torch.arange(batch * at.channels * height * width, dtype=torch.float32)
    maps = maps.reshape(batch, at.channels, height, width)
    tokens = torch.cat([-torch.ones(batch, at.prefix_tokens, at.channels), maps.flatten(2).transpose(1, 2)], 1)
    return maps, {"NCHW": maps, "NHWC": maps.permute(0, 2, 3, 1), "NLC": tokens, "NC": maps.flatten(1)}[at.layout]


@pytest.fixture
def source():
    return Architecture.of("resnet18", ARGUMENTS, (3, 32, 32))


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


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kernel", [3, 5])
def test_a_wider_adapter_is_a_convolution_that_keeps_the_grid(layout, kernel):
    target, source = point("NHWC", 5, (4, 4)), point(layout, 6, (4, 4), prefix_tokens=2)
    adapter, feature = Adapter(target, source, kernel), torch.randn(2, 4, 4, 5)
    with torch.no_grad():
        output = adapter(feature)
        maps = nn.functional.adaptive_avg_pool2d(feature.permute(0, 3, 1, 2), source.grid)
        expected = nn.functional.conv2d(maps, adapter.map.weight, adapter.map.bias, padding=kernel // 2)
    assert adapter.map.weight.shape == (6, 5, kernel, kernel)
    assert output.shape == empty(source, batch=2).shape
    assert_close(to_maps(output, source), expected)


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


def test_a_shrunk_tail_runs(source):
    tail = source.tail("layer4.0")
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
    tail = source.tail("layer3.0")
    before = {name: tensor.shape for name, tensor in tensors_of(tail).items()}, attributes_of(tail)
    with pytest.raises(InsertionPointError, match="after the cut cannot have"):
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


class Tied(nn.Module):
    """Two layers with one weight, and two names for one layer."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.second.weight, self.third = self.first.weight, self.first
        self.first.register_buffer("table", torch.ones(4))
        self.second.register_buffer("table", self.first.table)

    def forward(self, x):
        return self.third(self.second(self.first(x) + self.first.table) + self.second.table)


def test_layers_that_share_a_tensor_share_the_new_one():
    module = Tied().to("meta")
    module.second.weight, module.second.table = module.first.weight, module.first.table
    tensors = {"first.weight": torch.randn(4, 4), "first.table": torch.randn(4)}
    assert tensors_of(module).keys() == tensors.keys()
    put_tensors(module, tensors)
    assert module.second.weight is module.first.weight
    weight, table, x = *tensors.values(), torch.randn(2, 4)
    assert_close(module(x), ((x @ weight.T + table) @ weight.T + table) @ weight.T)


def test_layers_that_share_a_tensor_shrink_together():
    module = Tied().to("meta")
    module.second.weight, module.second.table = module.first.weight, module.first.table
    shrink(module, {"first.weight": [3, 3], "first.table": [3]}, {"first": {"in_features": 3, "out_features": 3}})
    assert module.second.weight is module.first.weight
    assert module(torch.empty(2, 3, device="meta")).shape == (2, 3)
