"""Ridge regression from moments: X'X and X'Y in float64, summed over batches and processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)


class Moments:
    """X'X, X'Y and the diagonal of Y'Y of rows seen so far, in float64; x gets a constant column for the bias."""

    def __init__(self) -> None:
        """Empty; sizes follow from the first rows."""
        self.gram: Any = 0.0  # they are tensors as soon as there are rows
        self.cross: Any = 0.0
        self.square: Any = 0.0
        self.rows: Any = 0.0

    def add(self, x: Tensor, y: Tensor) -> None:
        """Rows x [N, C] and y [N, D]."""
        x, y = _with_constant(x), y.double()
        self.gram, self.cross = self.gram + x.T @ x, self.cross + x.T @ y
        self.square, self.rows = self.square + (y * y).sum(0), self.rows + x.new_tensor(float(len(x)))

    def reduced(self, accelerator: Accelerator) -> Moments:
        """Summed over processes, of which some may have seen no rows."""
        own = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        shapes = gather_object([{name: value.shape for name, value in own.items()}])
        for name, shape in next(filter(None, shapes), {}).items():
            value = own.get(name, torch.zeros(shape, dtype=torch.float64, device=accelerator.device))
            setattr(self, name, accelerator.reduce(value, "sum"))
        return self

    def solve(self, ridge: float) -> Tensor:
        """Weights [C + 1, D] that minimise the squared error, ``ridge`` relative to the mean feature energy."""
        penalty = ridge * self.gram.diagonal()[:-1].mean().clamp_min(1e-12)
        diagonal = torch.full_like(self.gram.diagonal(), penalty)
        diagonal[-1] = 1e-9 * self.rows
        solution: Tensor = torch.linalg.solve(self.gram + diagonal.diag(), self.cross)
        return solution

    def error(self, weights: Tensor, columns: slice = slice(None)) -> float:
        """Summed squared error of ``weights`` [C + 1, D] on these rows, in some columns of y."""
        weights = weights[:, columns]
        fitted = (weights * (self.gram @ weights)).sum() - 2 * (weights * self.cross[:, columns]).sum()
        return float(fitted + self.square[columns].sum())


def ridge(fit: Moments, held_out: Moments) -> Tensor:
    """The ridge solution whose penalty does best on held-out rows: weights [C + 1, D]."""
    return min((fit.solve(strength) for strength in RIDGES), key=held_out.error)


def fit_rows(
    accelerator: Accelerator, batches: Iterable[Any], rows: Callable[[Tensor], tuple[Tensor, Tensor]]
) -> Moments:
    """Moments of ``rows(images)`` = (x [N, C], y [N, D]) over all batches."""
    moments = Moments()
    for images, _ in batches:
        moments.add(*rows(images))
    return moments.reduced(accelerator)


def _with_constant(x: Tensor) -> Tensor:
    x = x.double()
    return torch.cat([x, x.new_ones(len(x), 1)], 1)
