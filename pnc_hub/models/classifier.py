"""What timm's classifiers have that ``nn.Module`` has not: a number of classes, and layers that make logits of features."""

from __future__ import annotations

from typing import Any, Protocol, cast

from torch import nn

from pnc_hub.errors import SourceError


class Classifier(Protocol):
    """The part of a timm model that its annotations leave out."""

    num_classes: int

    def get_classifier(self) -> Any:
        """The layer that makes logits, or several."""


def as_classifier(model: nn.Module) -> Classifier:
    """The same object, annotated; whether it has these attributes is for the caller to know."""
    return cast(Classifier, model)


def pretrained_cfg(model: nn.Module) -> dict[str, Any]:
    """What timm records of the weights that a model was built for; empty where it records nothing.

    Example:
        >>> import timm
        >>> pretrained_cfg(timm.create_model("resnet18"))["architecture"]
        'resnet18'
    """
    return dict(getattr(model, "pretrained_cfg", None) or {})


def heads(model: nn.Module) -> tuple[nn.Module, ...]:
    """The layers that make logits: none where the model does not tell, two in distilled ones.

    Example:
        >>> import timm
        >>> heads(timm.create_model("resnet18"))
        (Linear(in_features=512, out_features=1000, bias=True),)
    """
    layers = as_classifier(model).get_classifier() if hasattr(model, "get_classifier") else ()
    return tuple(layers) if isinstance(layers, (tuple, list)) else (layers,)


def classifier_name(model: nn.Module) -> str:
    """Path of the module that ``model.get_classifier()`` returns, or "" where it is no single module of the model."""
    layers = heads(model)
    return next((name for name, module in model.named_modules() if len(layers) == 1 and module is layers[0]), "")


def without_classifier(model: nn.Module) -> tuple[nn.Module, int]:
    """Replace the classifier of ``model`` in place by the identity; returns (model, features that it took in).

    Raises:
        SourceError: the model does not end in one linear classifier.
    """
    name = classifier_name(model)
    classifier = model.get_submodule(name) if name else None
    if not isinstance(classifier, (nn.Linear, nn.Conv2d)) or getattr(classifier, "kernel_size", (1, 1)) != (1, 1):
        raise SourceError(
            f"{type(model).__name__} cannot be a source: its classifier is"
            f" {type(classifier).__name__ if classifier is not None else 'missing or not one layer'}, and cloning needs"
            " the rows of one linear (or 1x1 convolutional) layer. Use a model with a single classifier."
        )
    width = classifier.in_features if isinstance(classifier, nn.Linear) else classifier.in_channels
    model.set_submodule(name, nn.Identity())
    return model, width
