"""Parameters and buffers by name."""

import pytest
from common import FAMILIES, tiny_model
from torch import nn

from pnc_hub.models.tensors import tensors_of


def same(module):
    expected = [*module.named_parameters(), *module.named_buffers()]
    found = list(tensors_of(module).items())
    return [(name, id(tensor)) for name, tensor in found] == [(name, id(tensor)) for name, tensor in expected]


@pytest.mark.parametrize("family", FAMILIES)
def test_names_and_order_are_those_of_torch(family):
    assert same(tiny_model(family))


def test_what_is_shared_has_its_first_name_alone():
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    module = nn.Sequential(first, second, first, nn.BatchNorm1d(3, affine=False))
    assert same(module)
    assert list(tensors_of(module))[:3] == ["0.weight", "0.bias", "1.bias"]
