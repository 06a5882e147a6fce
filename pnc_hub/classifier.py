"""What timm's classifiers have that ``nn.Module`` has not: a number of classes, and layers that make logits of features."""

from __future__ import annotations

from typing import Any, Protocol, cast

from torch import nn


class Classifier(Protocol):
    """The part of a timm model that its annotations leave out."""

    num_classes: int
    pretrained_cfg: dict[str, Any] | None

    def get_classifier(self) -> Any:
        """The layer that makes logits, or several."""


def as_classifier(model: nn.Module) -> Classifier:
    """The same object, annotated; whether it has these attributes is for the caller to know."""
    return cast(Classifier, model)


def heads(model: nn.Module) -> tuple[nn.Module, ...]:
    """The layers that make logits: none where the model does not tell, two in distilled ones.

    Example:
        >>> import timm
        >>> heads(timm.create_model("resnet18"))
        (Linear(in_features=512, out_features=1000, bias=True),)
    """
    found = as_classifier(model).get_classifier() if hasattr(model, "get_classifier") else ()
    return tuple(found) if isinstance(found, (tuple, list)) else (found,)
