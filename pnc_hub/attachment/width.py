"""What ``model.num_classes`` says while clones are attached: the width of what the model returns."""

from __future__ import annotations

from torch import nn

from pnc_hub.errors import NoClassifierError
from pnc_hub.models.classifier import as_classifier, heads


class Width:
    """How many classes a model has without clones; somebody may exchange its head meanwhile, by any way there is."""

    def __init__(self, model: nn.Module) -> None:
        """To be made before a clone is attached."""
        self._before = self._width = self._shown = int(as_classifier(model).num_classes)
        self._heads = heads(model)

    def alone(self, model: nn.Module) -> int:
        """How many classes the model has without clones."""
        if model.num_classes != self._shown:
            return int(as_classifier(model).num_classes)
        found = heads(model)
        if found == self._heads:
            return self._width
        widths = (getattr(head, "out_features", getattr(head, "out_channels", None)) for head in found)
        return next((width for width in widths if isinstance(width, int)), self._width)

    def show(self, model: nn.Module, added: int | None) -> None:
        """Let ``num_classes`` say how many there are with those ``added``; None restores what it said without clones."""
        width, found = self.alone(model), heads(model)
        if model.num_classes != self._shown or found != self._heads:  # somebody exchanged the head
            self._before = width
        self._width, self._heads = width, found
        self._shown = width + (added or 0)
        as_classifier(model).num_classes = self._before if added is None else self._shown

    def follow(self, model: nn.Module, width: int, added: int) -> None:
        """The model has returned ``width`` logits of its own: it may have another head than before.

        Raises:
            NoClassifierError: it has none.
        """
        if model.num_classes == self._shown and width == self._width:
            return
        if self.alone(model) <= 0:
            raise NoClassifierError(
                f"{type(model).__name__} was left without a classifier (num_classes={model.num_classes}) while a clone was"
                " attached, so there are no logits to extend; detach the clone, or reset the classifier to some classes"
            )
        self.show(model, added)
        self._width, self._shown = width, width + added
        as_classifier(model).num_classes = self._shown
