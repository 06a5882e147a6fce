"""Ridge regression from moments: X'X and X'Y in float64, summed over batches and processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

CHUNK = 4096  # rows that are multiplied in single precision
CHOOSING = 64  # columns by which a penalty is chosen
RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)


class Moments:
    """X'X, X'Y and the diagonal of Y'Y of rows seen so far, summed in float64; x gets a constant column for the bias.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [2.0]])
        >>> seen = Moments()
        >>> seen.add(x, 3 * x + 1)
        >>> seen.solve(1e-9).flatten().round(decimals=3).tolist()
        [3.0, 1.0]
    """

    def __init__(self) -> None:
        """Empty; sizes follow from the first rows."""
        self.gram: Any = 0.0  # they are tensors as soon as there are rows
        self.cross: Any = 0.0
        self.square: Any = 0.0

    @classmethod
    def of(cls, x: Tensor, y: Tensor, gram: Tensor | None) -> Moments:
        """Those of rows x [N, C] and y [N, D], where ``gram`` is X'X; of no rows, and then None, they are empty."""
        seen = cls()
        if gram is not None:
            seen.gram, seen.cross, seen.square = gram, summed(x, y), (y * y).sum(0).double()
        return seen

    def add(self, x: Tensor, y: Tensor, weight: Tensor | None = None) -> None:
        """Rows x [N, C] and y [N, D], which count as much as ``weight`` [N] says, or all alike."""
        x, y = with_constant(x.double()), y.double()
        weighted_x, weighted_y = (x, y) if weight is None else (x * weight[:, None], y * weight[:, None])
        self.gram, self.cross = self.gram + weighted_x.T @ x, self.cross + weighted_x.T @ y
        self.square = self.square + (weighted_y * y).sum(0)

    def reduced(self, accelerator: Accelerator) -> Moments:
        """Summed over processes, of which some may have seen no rows."""
        own = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        shapes = gather_object([{name: value.shape for name, value in own.items()}])
        for name, shape in next(filter(None, shapes), {}).items():
            value = own.get(name, torch.zeros(shape, dtype=torch.float64, device=accelerator.device))
            setattr(self, name, accelerator.reduce(value, "sum"))
        return self

    def solve(self, strength: float, free_bias: bool = True) -> Tensor:
        """Weights [C + 1, D] that minimise the squared error, see ``solve``."""
        return solve(self.gram, self.cross, strength, free_bias=free_bias)

    def error(self, weights: Tensor) -> float:
        """Summed squared error of ``weights`` [C + 1, D] on these rows."""
        fitted = (weights * (self.gram @ weights)).sum() - 2 * (weights * self.cross).sum()
        return float(fitted + self.square.sum())


def solve(gram: Tensor, cross: Tensor, strength: float, constant: bool = True, free_bias: bool = True) -> Tensor:
    """The ridge solution [C, D] from X'X [C, C] and X'Y [C, D].

    The penalty is ``strength`` times the mean energy of the features. Where the last column of X is a ``constant``, its weight
    has next to no penalty (``free_bias``), or the same as the others.
    """
    energies = gram.diagonal()
    features = energies[:-1] if constant else energies
    penalty = torch.full_like(energies, strength) * features.mean().clamp_min(1e-12)
    if constant and free_bias:
        penalty[-1] = 1e-9 * energies[-1]
    solution: Tensor = torch.linalg.solve(gram + penalty.diag(), cross)
    return solution


def ridge(fit: Moments, held_out: Moments) -> Tensor:
    """The ridge solution whose penalty does best on held-out rows: weights [C + 1, D].

    Of many columns of y some, evenly spread, choose the penalty.
    """
    few = slice(None, None, max(1, fit.cross.shape[1] // CHOOSING))
    tried = {strength: solve(fit.gram, fit.cross[:, few], strength) for strength in RIDGES}
    some = Moments()
    some.gram, some.cross, some.square = held_out.gram, held_out.cross[:, few], held_out.square[few]
    return fit.solve(min(tried, key=lambda strength: some.error(tried[strength])))


def summed(x: Tensor, y: Tensor) -> Tensor:
    """X'Y [C + 1, D] of rows x [N, C], which get a constant column, and y [N, D], in float64."""
    parts = zip(x.split(CHUNK), y.split(CHUNK), strict=True)
    return torch.stack([(with_constant(one).T @ other).double() for one, other in parts]).sum(0)


def fit_rows(
    accelerator: Accelerator, batches: Iterable[Any], rows: Callable[[Tensor], tuple[Tensor, Tensor]]
) -> Moments:
    """Moments of ``rows(images)`` = (x [N, C], y [N, D]) over all batches."""
    moments = Moments()
    for images, _ in batches:
        moments.add(*rows(images))
    return moments.reduced(accelerator)


def with_constant(x: Tensor) -> Tensor:
    """Rows [N, C] with a last column of ones."""
    return torch.cat([x, x.new_ones(len(x), 1)], 1)
