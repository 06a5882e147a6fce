"""Copies of an image: shifted and mirrored, the same ones whenever they are asked for."""

import pytest
import torch

from pnc_hub.cloning.images.copies import Copies

SIDE = 16


def marked():
    """One pixel [2, 16, 32], at row 8 and column 5."""
    image = torch.zeros(2, SIDE, 2 * SIDE)
    image[:, 8, 5] = 1.0
    return image


def places(copies, numbers=range(1, 200)):
    """Rows and columns where the pixel is in each copy."""
    found = [copies.of(marked(), 5, number)[0].nonzero()[0].tolist() for number in numbers]
    return {row for row, _ in found}, {column for _, column in found}


def test_copies_are_shifted_by_up_to_an_eighth_and_mirrored():
    rows, columns = places(Copies(0, flip=False))
    assert rows == set(range(6, 11))
    assert columns == set(range(1, 10))
    _, columns = places(Copies(0))
    assert columns == {*range(1, 10), *range(22, 31)}


def test_zeros_come_in():
    image = torch.ones(3, SIDE, SIDE)
    copies = [Copies(0).of(image, 0, number) for number in range(30)]
    assert all(copy.shape == image.shape for copy in copies)
    assert {*torch.stack(copies).unique().tolist()} == {0.0, 1.0}
    assert min(copy.mean() for copy in copies) >= (14 / 16) ** 2


def test_copy_0_is_the_image_itself():
    image = torch.randn(3, SIDE, SIDE)
    assert Copies(0).of(image, 7, 0) is image


@pytest.mark.parametrize("seed", [0, -3])
def test_a_copy_is_always_the_same_and_leaves_the_random_state_alone(seed):
    image, before = torch.randn(3, 40, 40), torch.get_rng_state()
    first = [Copies(seed).of(image, which, number) for which in range(4) for number in range(1, 4)]
    again = [Copies(seed).of(image, which, number) for which in range(4) for number in range(1, 4)]
    assert all(map(torch.equal, first, again))
    assert torch.equal(torch.get_rng_state(), before)
    assert len({copy.sum().item() for copy in first}) > 8
    assert not all(map(torch.equal, first, [Copies(seed + 1).of(image, 0, number) for number in range(1, 13)]))
