"""Source and target side by side: frozen copies, fed the same images, read at any of their points."""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from pnc_hub import attachment
from pnc_hub.cloning.images.shown import Remembered, Shown
from pnc_hub.errors import SourceError
from pnc_hub.models.classifier import as_classifier, without_classifier
from pnc_hub.models.cost import parameters
from pnc_hub.models.features import read
from pnc_hub.models.insertion import INPUT, InsertionPoint
from pnc_hub.models.preprocess import Preprocess, Reprocess
from pnc_hub.models.skeleton import Skeleton

OUTPUT = ""  # the name of what a network answers, among its features


class Lesson(NamedTuple):
    """What the source says of a batch of images."""

    cloned: Tensor  # logits of the cloned classes [B, K]
    rejected: Tensor  # energy (logsumexp) of its other classes [B]; -inf where there are none
    penultimate: Tensor  # what its classifier reads [B, C]
    features: dict[str, Tensor]  # by cut
    cloned_wins: Tensor | None = None  # whether the largest of all its logits is one of the cloned classes [B]


class Reader:
    """A frozen float32 copy of a model that returns its output and its features at chosen points from one forward pass."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        """The model itself is only read; clones attached to it do not take part."""
        self.model = copy.deepcopy(model)
        attachment.detach(self.model)
        self.model.eval().requires_grad_(False).float().to(device)
        self.preprocess = Preprocess.of(self.model)
        self.skeleton = Skeleton(self.model)
        self._remembered = Remembered(self._read, exact=(OUTPUT, INPUT))

    def __call__(self, images: Shown | Tensor, points: Collection[str] = ()) -> tuple[Tensor, dict[str, Tensor]]:
        """Images [B, C, H, W] -> (output, features by point name)."""
        found = self._remembered(images, {OUTPUT, *points})
        return found[OUTPUT], {point: found[point] for point in points}

    def feature(self, images: Shown | Tensor, point: str) -> Tensor:
        """The feature at one point [B, ...], without running what comes after it."""
        return self._remembered(images, [point])[point]

    def _read(self, pixels: Tensor, names: Collection[str]) -> dict[str, Tensor]:
        points = [name for name in names if name != OUTPUT]
        output, features = read(self.model, pixels, points, stop=OUTPUT not in names)
        return features if output is None else {**features, OUTPUT: output}


class SourceAndTarget(Protocol):
    """What choosing and fitting an adapter asks of the two networks."""

    device: torch.device
    target: Reader
    odds: float  # classes of the source that are not cloned, for each that is

    def teach(self, images: Shown | Tensor, cuts: Collection[str] = ()) -> Lesson:
        """What the source says of the target's ``images`` [B, C, H, W]."""

    def cuts(self) -> dict[str, InsertionPoint]:
        """Where the source can be cut."""


class Networks:
    """The source and the target of one clone."""

    def __init__(self, source: nn.Module, target: nn.Module, classes: list[int], device: torch.device) -> None:
        """Make frozen copies on ``device``; ``classes`` are the source's indices of the cloned classes.

        Raises:
            SourceError: the source does not end in one linear layer.
        """
        self.device = device
        self.target = Reader(target, device)
        self.source = Reader(source, device)
        self.parameters = parameters(self.source.model)
        self.num_classes = as_classifier(source).num_classes
        self.head = self._take_head()
        self.width = self.head.in_features
        self.source.skeleton = Skeleton(self.source.model)
        others = sorted(set(range(self.num_classes)) - set(classes))
        self.classes, self.others = (torch.tensor(rows, dtype=torch.long, device=device) for rows in (classes, others))
        self.odds = len(others) / len(classes)
        self.to_source = Reprocess(self.target.preprocess, self.source.preprocess).to(device)

    @torch.no_grad()
    def teach(self, images: Shown | Tensor, cuts: Collection[str] = ()) -> Lesson:
        """What the source says of the target's ``images`` [B, C, H, W]."""
        seen = self.to_source(images) if isinstance(images, Tensor) else images.through(self.to_source)
        penultimate, features = self.source(seen, cuts)
        logits = self.head(penultimate)
        cloned, others = logits[:, self.classes], logits[:, self.others]
        cloned_wins = torch.isin(logits.argmax(1), self.classes)
        return Lesson(cloned, others.logsumexp(1), penultimate, features, cloned_wins)

    def cuts(self) -> dict[str, InsertionPoint]:
        """Where the source can be cut."""
        return {name: point for name, point in self.source.skeleton.points.items() if name != INPUT}

    def tail(self, cut: str) -> nn.Module:
        """A copy of the source after ``cut``, up to its penultimate feature."""
        return copy.deepcopy(self.source.skeleton.tail(self.source.model, cut))

    def trunk(self, cut: str) -> nn.Module:
        """The source up to ``cut``."""
        return self.source.skeleton.trunk(self.source.model, cut)

    def head_rows(self, reject: tuple[Tensor, Tensor]) -> nn.Linear:
        """The source's rows of the cloned classes, and below them the reject rows (weight [R, C], bias [R])."""
        weight, bias = reject
        rows = nn.Linear(self.width, len(self.classes) + len(bias), device=self.device)
        rows.weight = nn.Parameter(torch.cat([self.head.weight[self.classes], weight]))
        rows.bias = nn.Parameter(torch.cat([self.head.bias[self.classes], bias]))
        return rows

    @torch.no_grad()
    def _take_head(self) -> nn.Linear:
        """Replace the source's classifier by the identity; the classifier as a linear layer, checked to be the same."""
        model = self.source.model
        example = torch.randn(2, *self.source.preprocess.input_size, device=self.device)
        expected, classifier = model(example), as_classifier(model).get_classifier()
        _, width = without_classifier(model)
        head = nn.Linear(width, self.num_classes, device=self.device).requires_grad_(False)
        head.weight.copy_(classifier.weight.flatten(1))
        head.bias.zero_() if classifier.bias is None else head.bias.copy_(classifier.bias)
        penultimate = model(example)
        if penultimate.shape != (2, width) or not torch.allclose(head(penultimate), expected, rtol=1e-3, atol=1e-3):
            raise SourceError(
                f"{type(model).__name__} cannot be a source: its classifier is not the last thing it does, so the rows of"
                " single classes cannot be taken out. Use a model that ends in one linear layer."
            )
        return head
