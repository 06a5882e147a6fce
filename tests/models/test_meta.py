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
    ],
    ids=str,
)
def test_what_does_not_fit_raises(module, shape):
    module.eval().to("meta")
    with pytest.raises((RuntimeError, ValueError)) as expected:
        module(torch.empty(shape, device="meta"))
    with ShapesOnly(), pytest.raises(type(expected.value)):
        module(torch.empty(shape, device="meta"))


def test_shapes_of_a_residual_sum_are_looked_at():
    with ShapesOnly(), pytest.raises(RuntimeError):
        torch.empty(2, 4, device="meta").add_(torch.empty(2, 3, device="meta"))


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
