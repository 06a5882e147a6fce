"""Quicker passes on the meta device: what comes out has the shapes that torch finds, and what fits not raises as ever."""

import pytest
import timm
import torch
from common import FAMILIES, SIDE, source_args
from torch import nn

from pnc_hub.models.meta import ShapesOnly, at_most

ARCHITECTURES = {
    **{family: (FAMILIES[family][0], source_args(family), SIDE) for family in FAMILIES},
    "hard activations": ("mobilenetv3_small_050", {}, 64),
    "class attention": ("cait_xxs24_224", {}, 224),
    "relative positions": ("beit_base_patch16_224", {"depth": 2}, 224),
    "silu": ("efficientnet_b0", {}, 64),
}


def outputs(name: str, arguments: dict, side: int) -> dict[str, tuple]:
    """Shape, dtype and strides (of axes longer than 1) of what every layer of a model on the meta device returns."""
    with torch.device("meta"), torch.no_grad():
        model, found = timm.create_model(name, **arguments).eval(), {}
        for layer, module in model.named_modules():

            def note(_module, _args, output, layer=layer):
                if isinstance(output, torch.Tensor):
                    sizes = zip(output.shape, output.stride(), strict=True)
                    found[layer] = output.dtype, [(size, stride if size > 1 else None) for size, stride in sizes]

            module.register_forward_hook(note)
        model(torch.empty(2, 3, side, side))
    return found


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_layer_returns_what_torch_says(kind):
    expected = outputs(*ARCHITECTURES[kind])
    with ShapesOnly():
        assert outputs(*ARCHITECTURES[kind]) == expected


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.BatchNorm2d(4), (2, 5, 3, 3)),
        (nn.BatchNorm2d(4, affine=False), (2, 5, 3, 3)),
        (nn.LayerNorm(4), (2, 5)),
        (nn.LayerNorm((3, 4)), (4,)),
        (nn.Linear(4, 3), (2, 5)),
        (nn.Conv2d(4, 3, 3), (2, 5, 8, 8)),
        (nn.Conv2d(4, 3, 9), (2, 4, 5, 5)),
    ],
    ids=str,
)
def test_what_does_not_fit_raises(module, shape):
    module.eval().to("meta")
    with pytest.raises((RuntimeError, ValueError)) as expected:
        module(torch.empty(shape, device="meta"))
    with ShapesOnly(), pytest.raises(type(expected.value)):
        module(torch.empty(shape, device="meta"))


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({"kernel_size": 3, "stride": 2, "padding": 1}, (2, 8, 9, 10)),
        ({"kernel_size": (1, 5), "dilation": (1, 2), "groups": 4, "bias": False}, (2, 8, 9, 10)),
        ({"kernel_size": 3, "padding": "same"}, (2, 8, 9, 10)),
        ({"kernel_size": 3}, (8, 9, 10)),
    ],
    ids=str,
)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_convolutions_have_the_shape_that_torch_says(options, shape, memory_format):
    convolution, image = nn.Conv2d(8, 12, **options).to("meta"), torch.empty(shape, device="meta")
    image = image.to(memory_format=memory_format) if image.dim() == 4 else image
    expected = convolution(image)
    with ShapesOnly():
        found = convolution(image)
    assert (found.shape, found.stride(), found.dtype) == (expected.shape, expected.stride(), expected.dtype)


@pytest.mark.parametrize("other", [(2, 4), (1, 4), (2, 1), (4,), (3, 2, 4)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
def test_sums_and_products_have_the_shape_that_torch_says(other, dtype):
    one, other = torch.empty(2, 4, device="meta"), torch.empty(other, dtype=dtype, device="meta")
    expected = one + other, one * other
    with ShapesOnly():
        found = one + other, one * other
        assert torch.add(one, one, alpha=2).shape == one.add(one, alpha=2).shape == one.shape
    assert [(value.shape, value.dtype) for value in found] == [(value.shape, value.dtype) for value in expected]


@pytest.mark.parametrize("dim", [1, -1, (2, 3), [0, -1], (), None], ids=str)
@pytest.mark.parametrize("keepdim", [False, True])
def test_means_have_the_shape_that_torch_says(dim, keepdim):
    image = torch.empty(2, 3, 4, 5, device="meta")
    expected = image.mean(dim, keepdim=keepdim), image.half().mean(dim, keepdim, dtype=torch.float64)
    with ShapesOnly():
        found = image.mean(dim, keepdim=keepdim), image.half().mean(dim, keepdim, dtype=torch.float64)
        with pytest.raises(IndexError):
            image.mean(4)
        with pytest.raises(RuntimeError):
            image.mean((1, -3))
    for one, other in zip(found, expected, strict=True):
        assert (one.shape, one.stride(), one.dtype) == (other.shape, other.stride(), other.dtype)


def test_shapes_of_a_residual_sum_are_looked_at():
    one, other = torch.empty(2, 4, device="meta"), torch.empty(2, 3, device="meta")
    for act in (one.add_, one.add, one.mul):
        with ShapesOnly(), pytest.raises(RuntimeError):
            act(other)


def test_what_has_no_numbers_is_not_initialised():
    with ShapesOnly():
        for initialise in (nn.init.kaiming_uniform_, nn.init.kaiming_normal_, nn.init.normal_, nn.init.uniform_):
            weight = torch.empty(2, 4, device="meta")
            assert initialise(weight) is weight
        with pytest.raises(ValueError, match="Fan in and fan out"):
            nn.init.kaiming_uniform_(torch.empty(4, device="meta"))
        assert nn.init.normal_(torch.zeros(2, 4)).any()


def test_tensors_elsewhere_are_computed():
    layer, values = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.GELU()), torch.randn(2, 3)
    expected = layer(values)
    with ShapesOnly():
        assert torch.equal(layer(values), expected)
        assert torch.equal(torch.ones(2).mul_(3), torch.full((2,), 3.0))


def test_operations_are_counted_where_they_are_bounded():
    image = torch.empty(1, device="meta")
    with ShapesOnly(), at_most(3):
        with at_most(0), pytest.raises(OverflowError, match="more operations than are allowed"):
            image.add_(1)
        for _ in range(3):  # an outer bound holds again, whatever became of the inner one
            image.add_(1)
        with pytest.raises(OverflowError):
            image.add_(1)
    with ShapesOnly():
        for _ in range(10):
            image.add_(1)
