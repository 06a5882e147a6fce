"""Perturbed neighbours of images: others of the same shape, the further away the more of them is hidden."""

import pytest
import torch
from common import images

from recipes.compare.neighbours import neighbours


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", [(5, 3, 32, 32), (2, 1, 33, 17)])
def test_neighbours_are_other_images_of_the_same_shape(shape):
    batch = torch.randn(shape)
    changed, near = neighbours(batch, generator())
    assert changed.shape == batch.shape
    assert near.shape == (shape[0],)
    assert ((near > 0) & (near <= 1)).all()
    assert (changed != batch).flatten(1).any(1).all()


def test_neighbours_follow_the_generator():
    batch = images(4)
    first, again, other = (neighbours(batch, generator(seed)) for seed in (0, 0, 1))
    assert all(map(torch.equal, first, again))
    assert not torch.equal(first[0], other[0])


def test_the_more_is_hidden_the_further_away():
    """Of an image without noise, the share of cells at the mean colour tells the proximity."""
    ramp = torch.linspace(-1, 1, 32).expand(200, 1, 32, 32) ** 3 + 3.0
    changed, near = neighbours(ramp, generator())
    hidden = (changed - ramp.mean((2, 3), keepdim=True)).abs().flatten(1)
    share = (hidden < 0.3).float().mean(1)
    assert torch.corrcoef(torch.stack([share, near]))[0, 1] < -0.3
    assert near.min() < 0.8
    assert near.max() == 1.0
