"""Which images show cloned classes and which show others: labels of data sets, by their names or their numbers."""

from __future__ import annotations

import difflib
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any

from torch import nn

from pnc_hub.artifact import checks
from pnc_hub.cloning.images.data import UNLABELLED, Images, class_names, labels_of
from pnc_hub.errors import DataError, SourceError
from pnc_hub.models import labels
from pnc_hub.models.classifier import as_classifier
from pnc_hub.models.labels import same_label
from pnc_hub.models.preprocess import Preprocess

FEW = 20  # images of a class, or of all others together, from which on a gate can be learned


def resolve_classes(classes: Mapping[str, int] | Sequence[str | int], source: nn.Module) -> dict[str, int]:
    """Label -> row of the source's head, from such a mapping or from labels or indices of the source's classes.

    Raises:
        SourceError: a class is not one of the source's, or is named twice.
    """
    count = as_classifier(source).num_classes
    names = labels.class_names(source, count)
    if isinstance(classes, str):
        raise SourceError(f"classes are a list or a mapping, received the text {classes!r:.80}; give [{classes!r:.80}]")
    if isinstance(classes, Mapping):
        resolved = [(str(label), _plain(index)) for label, index in classes.items()]
    else:
        resolved = [_resolve(_plain(entry), names, source, count) for entry in classes]
    for label, index in resolved:
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < count:
            raise SourceError(f"class {label!r} is index {index!r}, and the source has classes 0 to {count - 1}")
        try:
            checks.text(label)
        except ValueError as error:
            raise SourceError(f"a class cannot have this name: {error}") from None
    different = {index for _, index in resolved}, {same_label(label) for label, _ in resolved}
    if not resolved or any(len(values) != len(resolved) for values in different):
        raise SourceError(f"give at least one class, each once and under its own name; received {list(classes)!r:.200}")
    return dict(resolved)


def relabel_cloned(classes: dict[str, int], source: nn.Module, dataset: Any) -> dict[int, int]:
    """Label of the data set -> position among the cloned classes.

    Without names the data set's labels are the source's class indices; with names they are matched to the cloned labels, to
    the other names that the source's classes go by, and to their indices.
    """
    names, aliases_of = class_names(dataset), labels.class_names(source, as_classifier(source).num_classes)
    if names is None:
        return {index: position for position, index in enumerate(classes.values())}
    label_of = {same_label(name): label for label, name in enumerate(names)}
    mapped = {}
    for position, (label, index) in enumerate(classes.items()):
        aliases = (label, str(index), *(aliases_of[index] if aliases_of else ()))
        given = next((label_of[same_label(alias)] for alias in aliases if same_label(alias) in label_of), None)
        if given is None:
            raise DataError(
                f"no images of class {label!r} (source index {index}): the data has {', '.join(names[:20])}. Name its folder"
                f" {label!r} or {str(index)!r}"
            )
        mapped[given] = position
    return mapped


def relabel_target(target: nn.Module, dataset: Any, cloned: Iterable[str]) -> dict[int, int]:
    """Label of the data set -> index of the target's class, or -1 for all where the names do not tell.

    Images of classes that have the name of a ``cloned`` one are left out: they are no examples of anything else.
    """
    names, count = class_names(dataset), as_classifier(target).num_classes
    own = labels.class_names(target, count)
    if names is None or (own is None and len(names) == count):
        return {index: index for index in range(count)}
    index_of = {same_label(name): index for index, aliases in enumerate(own or ()) for name in aliases}
    new = {same_label(label) for label in cloned}
    mapped = {label: index_of.get(same_label(name)) for label, name in enumerate(names) if same_label(name) not in new}
    recognised = {label: index for label, index in mapped.items() if index is not None}
    return recognised if len(recognised) == len(mapped) else dict.fromkeys(mapped, UNLABELLED)


def sides(
    source: nn.Module, target: nn.Module, preprocess: Preprocess, wanted: dict[str, int], data: Any, target_data: Any
) -> tuple[Images, Images | None, str]:
    """Images of the cloned classes, images of others (the target's, else the source's), and the regime, R1 to R4."""
    relabel = relabel_cloned(wanted, source, data)
    cloned = Images(data, preprocess, relabel)
    missing = sorted(set(range(len(wanted))) - set(cloned.labels))
    if missing:
        raise DataError(f"no images of {', '.join(list(wanted)[position] for position in missing)} in the data")
    if target_data is not None:
        others = Images(target_data, preprocess, relabel_target(target, target_data, wanted))
        fewest = min(Counter(others.labels).values(), default=0)
        return cloned, others, "R3" if fewest <= FEW else "R4"
    # the source's other classes
    others = Images(data, preprocess, {label: UNLABELLED for label in set(labels_of(data)) - set(relabel)})
    if len(others) >= FEW:
        return cloned, others, "R2"
    warnings.warn(
        "the gate has seen images of the cloned classes alone, so nothing can be said of what it does to others: give images"
        " of the target's classes as target_data, or leave images of the source's other classes in data",
        stacklevel=3,
    )
    return cloned, None, "R1"


def covers(shown: Iterable[int], target: nn.Module) -> bool:
    """Whether images with these labels are of at least half of the target's classes, or of classes that nobody named."""
    different = set(shown)
    return UNLABELLED in different or 2 * len(different) >= as_classifier(target).num_classes


def _plain(value: Any) -> Any:
    """The same number as an int where it is an integer of another type (numpy's)."""
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else value


def _resolve(entry: Any, names: list[tuple[str, ...]] | None, source: nn.Module, count: int) -> tuple[str, int]:
    if isinstance(entry, int):
        return (labels.spoken(names[entry]) if names and 0 <= entry < count else str(entry)), entry
    if not isinstance(entry, str):
        raise SourceError(f"a class is named by its label or its index, received {entry!r:.80}")
    same = [index for index, aliases in enumerate(names or []) if same_label(entry) in map(same_label, aliases)]
    if len(same) != 1:
        close = difflib.get_close_matches(entry, [name for aliases in names or [] for name in aliases], 3, 0.7)
        first = ", ".join(map(labels.spoken, (names or [])[:10]))
        have = f"its classes are {first} ..." if names else "it does not record the names of its classes"
        raise SourceError(
            f"{entry!r} names {len(same)} of the {count} classes of {type(source).__name__}:"
            f" {f'did you mean {close[0]!r}?' if close else f'{have}.'} Or give a mapping from label to class index, as in"
            " classes={'heron': 131}"
        )
    return entry, same[0]
