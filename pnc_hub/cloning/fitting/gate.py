"""The gate: telling images of the cloned classes from images of the target's.

With images of most of the target's classes a logistic regression on the scalars of both heads and on the module's features,
its penalty chosen on held-out images; without them both networks' logits side by side, and the source's own opinion of its
other classes unless held-out images speak against it. The gate for any target, which cannot look at the target's logits, is
learned on whatever other images there are; with none it is how unusual an image is among those of the cloned classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pnc_hub import fusion
from pnc_hub.module import Gate

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
ROUNDING = 1e-9  # 100 * 0.29 is a little less than 29
_UNIVERSAL = ("clone_energy", "clone_max", "reject")  # what does not depend on the target


@dataclass
class Evidence:
    """What target and clone say of some images, and what is true of them."""

    target_logits: Tensor  # [N, T]
    clone_logits: Tensor  # [N, K]
    reject: Tensor  # [N]
    features: Tensor  # [N, C]
    labels: Tensor  # [N], the target's class, or the position among the cloned classes; -1 unknown

    def __len__(self) -> int:
        return len(self.target_logits)

    def scalars(self, *names: str) -> Tensor:
        """[N, len(names)] those of ``fusion.SCALARS`` that are named."""
        return fusion.scalars(self.target_logits, self.clone_logits, self.reject)[:, _columns(*names)]

    def gate_logit(self, gate: Gate) -> Tensor:
        """[N]."""
        with torch.no_grad():
            logit: Tensor = gate(self.target_logits, self.clone_logits, self.reject, self.features)
        return logit

    def margin(self, gate: Gate) -> Tensor:
        """[N]; positive where the prediction goes to the clone."""
        return fusion.diversion_margin(self.target_logits, self.clone_logits, self.gate_logit(gate))

    def accuracy(self, gate: Gate, cloned: bool) -> float:
        """Of the joint answer, on images of the cloned classes or of others; those of unknown class need only stay."""
        diverted, logits = self.margin(gate) > 0, self.clone_logits if cloned else self.target_logits
        right = (logits.argmax(1) == self.labels) | (self.labels < 0)
        return float((right & (diverted == cloned)).float().mean())


Sides = tuple[Evidence, Evidence | None]  # of images of the cloned classes, and of others if there are any


def fit(
    cloned: Evidence, target: Evidence | None, held_out: Sides, universal: bool, covered: bool = True, odds: float = 0.0
) -> Gate:
    """A gate from evidence on images of the cloned classes and, if there are any, of the target's.

    Args:
        cloned: images of the cloned classes.
        target: images of the target's classes, or None.
        held_out: the same two, to choose on.
        universal: leave out what depends on the target's logits, so that the gate fits any target.
        covered: whether images of most of the target's classes are there. A gate learned on a few easy ones diverts
            images of the others; then the two networks' own energies decide, as if their logits stood side by side, and
            the reject logit, unless that separates the held-out images worse.
        odds: classes of the source that are not cloned for each that is; 0 where its reject logit should not be asked.
    """
    names = _UNIVERSAL if universal else fusion.SCALARS
    if target is None and universal:
        return _from_cloned_alone(cloned)
    if target is None or not (covered or universal):
        return _unlearned(*held_out, odds)
    (x, y), (x_held, y_held) = _rows((cloned, target), names), _rows(held_out, names)
    mean, spread = x.mean(0), x.std(0) + 1e-6
    fitted = [
        _logistic((x - mean) / spread, y, penalty, width)
        for width in sorted({len(names), x.shape[1]})
        for penalty in PENALTIES
    ]
    weight, bias = min(fitted, key=lambda solution: _log_loss((x_held - mean) / spread, y_held, *solution))
    weights = torch.from_numpy(weight / spread).float()
    bias = float(bias - (weights.numpy() * mean).sum())
    gate = fixed(x.shape[1] - len(names), bias, **dict(zip(names, weights.tolist(), strict=False)))
    gate.features.copy_(weights[len(names) :])
    return gate


def fixed(features: int, bias: float = 0.0, **weights: float) -> Gate:
    """The gate with these weights of scalars, by their names in ``fusion.SCALARS``, and none of features."""
    gate = Gate(features).requires_grad_(False)
    gate.scalars[_columns(*weights)] = torch.tensor(list(weights.values()))
    gate.bias.fill_(bias)
    return gate


def side_by_side(features: int) -> Gate:
    """The gate under which the fused logits are those of both networks side by side: s = E(clone) - E(target)."""
    return fixed(features, clone_energy=1.0, target_energy=-1.0)


def best_offset(
    gate: Gate, cloned: Evidence, target: Evidence | None, locality_budget: float | None, covered: bool = True
) -> float:
    """The offset that does best for old and new classes together on held-out images, or the budget's if that is higher.

    The gate comes with offset 0, and keeps it without images of the target. The budget is the largest share of these that may
    be diverted; the split-conformal quantile guarantees it on average over draws of the held-out images. Images that
    do not show most of the target's classes (``covered``) may raise the offset and not lower it.
    """
    if target is None:
        return 0.0
    new, old = cloned.margin(gate).numpy(), target.margin(gate).numpy()
    right_new = (cloned.clone_logits.argmax(1) == cloned.labels).numpy()
    right_old = ((target.target_logits.argmax(1) == target.labels) | (target.labels < 0)).numpy()
    edges = np.sort(np.r_[new, old])
    edges = np.r_[edges[0] - 1, edges, edges[-1] + 1]
    offsets = (edges[1:] + edges[:-1]) / 2
    scores = np.array([((new > o) & right_new).mean() + ((old <= o) & right_old).mean() for o in offsets])
    best = float(np.median(offsets[scores >= scores.max() - 1e-9]))
    best = best if covered else max(best, 0.0)
    return best if locality_budget is None else max(best, conformal_offset(old, locality_budget))


def conformal_offset(margins: np.ndarray, budget: float) -> float:
    """Split-conformal quantile of the diversion margin: with n images, the ceil((n + 1)(1 - budget))-th smallest.

    With fewer than ``images_needed`` no finite offset has the guarantee, and infinity is returned.

    Example:
        >>> import numpy as np
        >>> float(conformal_offset(np.arange(99.0), 0.01))
        98.0
    """
    above = int((len(margins) + 1) * budget + ROUNDING)  # so many, the next image included, may be diverted
    return float(np.sort(margins)[-above]) if above else float("inf")


def images_needed(budget: float) -> int:
    """How many held-out images of the target a locality budget needs for a finite offset.

    Example:
        >>> images_needed(0.01)
        99
    """
    return math.ceil(1 / budget - 1 - ROUNDING)


def auroc(positive: Tensor, negative: Tensor) -> float:
    """Probability that a positive scores above a negative (ties count half)."""
    from sklearn.metrics import roc_auc_score

    scores = torch.cat([positive, negative]).double().numpy()
    return float(roc_auc_score(np.r_[np.ones(len(positive)), np.zeros(len(negative))], scores))


def _unlearned(cloned: Evidence, target: Evidence | None, odds: float) -> Gate:
    """A gate without learned weights: both networks side by side, and the source's opinion of its own classes added.

    s = E(clone) - E(target) + E(clone) - reject + log(odds). The last term takes out that the source has so many more other
    classes than cloned ones, so that either side is as likely as the other before the image is seen. A source with many other
    classes knows what is near the cloned ones; one with a few knows little of what the target has seen.

    It is left out where the AUROC on held-out images of the target's classes is worse with it by more than a standard error:
    few images of a few classes do not tell what the source knows of the others. Images of its own other classes (the target's
    are unknown) would only say that it knows these.
    """
    width = cloned.features.shape[1]
    alone = side_by_side(width)
    if target is None or not odds or bool((target.labels < 0).all()):
        return alone
    asked = fixed(width, math.log(odds), clone_energy=2.0, target_energy=-1.0, reject=-1.0)
    without, with_it = (auroc(cloned.margin(gate), target.margin(gate)) for gate in (alone, asked))
    return asked if with_it >= without - auroc_error(without, len(cloned), len(target)) else alone


def auroc_error(value: float, positive: int, negative: int) -> float:
    """Standard error of an AUROC on so many images of either side (Hanley and McNeil, Radiology 1982).

    Example:
        >>> round(auroc_error(0.9, 50, 50), 3)
        0.032
    """
    both_positive, both_negative = value / (2 - value), 2 * value**2 / (1 + value)
    spread = (positive - 1) * (both_positive - value**2) + (negative - 1) * (both_negative - value**2)
    return math.sqrt((value * (1 - value) + spread) / (positive * negative))


def _columns(*names: str) -> list[int]:
    return [fusion.SCALARS.index(name) for name in names]


def _rows(sides: Sides, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The gate's inputs on images of both sides [N, S + C], and 1 for those of the cloned classes, 0 for others [N]."""
    parts = [part for part in sides if part is not None]
    x = torch.cat([torch.cat([part.scalars(*names), part.features], 1).double() for part in parts])
    return x.numpy(), np.concatenate([np.full(len(part), 1.0 - side) for side, part in enumerate(parts)])


def _logistic(x: np.ndarray, y: np.ndarray, penalty: float, width: int) -> tuple[np.ndarray, float]:
    """Weights over the first ``width`` inputs (zero for the rest) and bias; both classes weigh the same."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=penalty, class_weight="balanced", max_iter=1000, tol=1e-7).fit(x[:, :width], y)
    weight = np.zeros(x.shape[1])
    weight[:width] = model.coef_[0]
    return weight, float(model.intercept_[0])


def _log_loss(x: np.ndarray, y: np.ndarray, weight: np.ndarray, bias: float) -> float:
    """Mean of both classes' log losses."""
    margin = (x @ weight + bias) * np.where(y > 0, 1, -1)
    losses = np.logaddexp(0, -margin)
    return float(losses[y > 0].mean() + losses[y == 0].mean())


def _from_cloned_alone(cloned: Evidence) -> Gate:
    """How like images of the cloned classes it is, by the largest logit: two standard deviations are let through."""
    scores = cloned.scalars("clone_max")
    spread = scores.std(correction=0) + 1e-6
    return fixed(cloned.features.shape[1], float(2 - scores.mean() / spread), clone_max=float(1 / spread))
