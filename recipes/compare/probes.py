"""Is the source needed at all? New classes read off the target's own last feature, by one linear layer.

There are two ways. Rows for the cloned classes alone stand beside the target's untouched head, with our gate between them.
Without images of others (R1) their logits are compared with the target's as they are, which makes sense for a logistic
regression alone: how a distance or a regressed label compares with a logit, images of the cloned classes do not tell. With
images of the target's classes one may also fit rows for all classes and leave the target's head aside; both are tried then,
and held-out images decide.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from pnc_hub.cloning.fitting.ridge import RIDGES, Moments
from pnc_hub.models.classifier import without_classifier
from recipes.compare.study import Study, gated
from recipes.frame.task import Result, Task

Rows = tuple[Tensor, Tensor]  # features [N, C], labels [N]
Fit = Callable[[Rows, Rows, int], nn.Linear]
SCALES = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
SHRINKAGES = (1.0, 0.3, 0.1, 0.01)  # 1 is the plain nearest mean
PENALTIES = (1e-2, 1e-1, 1.0, 10.0)


def prototype(task: Task) -> Result:
    """The nearest class mean, under the covariance within classes, shrunk as held-out images like it best."""
    return _probed(task, _means)


def ridge(task: Task) -> Result:
    """Ridge regression of one-hot labels; every class weighs the same."""
    return _probed(task, _ridge)


def probe(task: Task) -> Result:
    """Logistic regression; every class weighs the same."""
    return _probed(task, _logistic)


class Features:
    """A classifier that also returns what its last layer reads."""

    def __init__(self, model: nn.Module) -> None:
        """``model`` has a single classifier layer, and is not changed."""
        self.last = model.get_classifier()
        self.before, _ = without_classifier(copy.deepcopy(model))

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """[B, ...] -> (logits [B, T], features [B, C])."""
        features = self.before(images)
        return self.last(features), features

    @torch.no_grad()
    def rows(self, study: Study, dataset: Dataset, shift: int = 0) -> Rows:
        """Features of a data set and its labels, moved up by ``shift``."""
        rows = [(self(images)[1].cpu(), labels + shift) for images, labels in study.loader(dataset)]
        return tuple(torch.cat(column) for column in zip(*rows, strict=True))


def _probed(task: Task, fit: Fit) -> Result:
    study = Study(task)
    target = Features(study.networks.target.model)
    new = [target.rows(study, part) for part in study.new]
    tried = [_beside(study, target, fit(*new, study.count))]
    if study.labelled:
        old = [target.rows(study, part) for part in study.old]
        both = [(torch.cat([a[0], b[0]]), torch.cat([a[1], b[1] + study.known])) for a, b in zip(old, new, strict=True)]
        tried.append(_instead(target, fit(*both, study.known + study.count).to(study.device)))
    if len(tried) > 1:
        tried.sort(key=lambda way: -study.held_out_score(way[0]))
    predict, modules, name = tried[0]
    return study.result(predict, modules, head=name)


def _beside(study: Study, target: Features, rows: nn.Linear) -> tuple:
    """The target's head as it is, rows for the cloned classes, and our gate."""
    rows = rows.to(study.device)

    @torch.no_grad()
    def read(images: Tensor) -> tuple[Tensor, ...]:
        logits, features = target(images)
        return logits, rows(features), logits.new_zeros(len(logits)), features

    gate = study.fit_gate(read)
    return lambda images: gated(gate, read(images)), [rows, gate], "beside the target's"


def _instead(target: Features, rows: nn.Linear) -> tuple:
    """Rows for all classes in place of the target's head."""

    @torch.no_grad()
    def predict(images: Tensor) -> Tensor:
        return rows(target(images)[1])

    return predict, [rows], "for all classes"


def _means(fit: Rows, held: Rows, classes: int) -> nn.Linear:
    """Linear: the squared distance to a mean m under S is, but for what all classes share, -2 m'S^-1 x + m'S^-1 m."""
    x, labels = fit[0].double(), fit[1]
    shown = labels.unique()
    means = torch.zeros(classes, x.shape[1], dtype=x.dtype)
    for label in shown:
        means[label] = x[labels == label].mean(0)
    within = (x - means[labels]) * torch.bincount(labels, minlength=classes).double()[labels, None].rsqrt()
    covariance = within.T @ within / len(shown)
    energy = covariance.diagonal().mean().clamp_min(1e-12)
    solutions = []
    for shrinkage in SHRINKAGES:
        shrunk = (1 - shrinkage) * covariance + shrinkage * energy * torch.eye(len(covariance), dtype=x.dtype)
        weight = torch.linalg.solve(shrunk, means.T).T
        bias = torch.full((classes,), float("-inf"), dtype=x.dtype)  # a class without images has no mean
        bias[shown] = -(weight * means).sum(1)[shown] / 2
        solutions.append((weight, bias))
    return _best(solutions, held)


def _ridge(fit: Rows, held: Rows, classes: int) -> nn.Linear:
    x, labels = fit
    moments = Moments()
    moments.add(x, F.one_hot(labels, classes), 1 / torch.bincount(labels).double()[labels])
    return _best([(w[:-1].T, w[-1]) for w in map(moments.solve, RIDGES)], held)


def _logistic(fit: Rows, held: Rows, classes: int) -> nn.Linear:
    mean, spread = fit[0].double().mean(0), fit[0].double().std(0) + 1e-6
    x, weight = (fit[0].double() - mean) / spread, 1 / torch.bincount(fit[1], minlength=classes).clamp_min(1).double()
    solutions = []
    layer = nn.Linear(x.shape[1], classes, dtype=torch.float64)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    for penalty in sorted(PENALTIES, reverse=True):  # each solution starts from the one before
        optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=150, line_search_fn="strong_wolfe")

        def loss(optimizer: torch.optim.Optimizer = optimizer, penalty: float = penalty) -> Tensor:
            optimizer.zero_grad()
            value = F.cross_entropy(layer(x), fit[1], weight) + penalty * (layer.weight**2).sum() / len(x)
            value.backward()
            return value

        optimizer.step(loss)
        plain = (layer.weight / spread).detach()
        solutions.append((plain, layer.bias.detach() - plain @ mean))
    return _best(solutions, held)


def _best(solutions: list[Rows], held: Rows) -> nn.Linear:
    """The (weight, bias) and the scale with the least cross-entropy on held-out rows, every class weighing the same."""
    x, labels = held[0].double(), held[1]
    weight = 1 / torch.bincount(labels, minlength=len(solutions[0][1])).clamp_min(1).double()
    scaled = [(scale * w, scale * b) for w, b in solutions for scale in SCALES]
    chosen = min(scaled, key=lambda rows: float(F.cross_entropy(x @ rows[0].T + rows[1], labels, weight)))
    layer = nn.Linear(chosen[0].shape[1], len(chosen[1])).requires_grad_(False)
    layer.weight.copy_(chosen[0])
    layer.bias.copy_(chosen[1])
    return layer
