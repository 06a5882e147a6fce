"""Names of classes: what a model calls its classes, and when two names are the same to a reader."""

from __future__ import annotations

import pkgutil
import unicodedata
from functools import lru_cache

from torch import nn

from pnc_hub.models.classifier import pretrained_cfg


def same_label(label: str) -> str:
    """What two labels have in common when a reader would take them for the same."""
    return unicodedata.normalize("NFKC", label).casefold()


def class_names(model: nn.Module, count: int) -> list[tuple[str, ...]] | None:
    """For each of the ``count`` classes of ``model`` the names it goes by, or None where nothing is recorded.

    timm records names with some weights; those trained on ImageNet-1k (a tag such as ``a1_in1k``) have the names of its
    synsets: ``("n01537544", "indigo bunting", "indigo finch", ...)``.
    """
    cfg = pretrained_cfg(model)
    names = cfg.get("label_names")
    if names and len(names) == count:
        return [(str(name),) for name in names]
    if count == 1000 and "in1k" in str(cfg.get("tag")):
        return _imagenet()
    return None


def spoken(names: tuple[str, ...]) -> str:
    """The one of a class's names that people use: the first that is no number of a synset.

    Example:
        >>> spoken(("n01537544", "indigo bunting", "indigo finch"))
        'indigo bunting'
    """
    return names[min(1, len(names) - 1)]


@lru_cache(maxsize=1)
def _imagenet() -> list[tuple[str, ...]]:
    try:
        return _read_imagenet()
    except (OSError, ValueError):  # this timm keeps them elsewhere; asking it takes some 20 ms more
        from timm.data import ImageNetInfo

        info = ImageNetInfo("imagenet-1k")
        return [
            (info.index_to_label_name(index), *info.index_to_description(index).split(", ")) for index in range(1000)
        ]


def _read_imagenet() -> list[tuple[str, ...]]:
    """The same from timm's files: of a table of 21,841 synsets those of ImageNet-1k, both in alphabetical order."""
    synsets, table = (
        (pkgutil.get_data("timm.data", f"_info/{file}") or b"").decode()
        for file in ("imagenet_synsets.txt", "imagenet_synset_to_lemma.txt")
    )
    names, end = [], 0
    for synset in synsets.split():
        start = table.index(f"{synset}\t", end)
        end = table.index("\n", start)
        names.append((synset, *table[start:end].partition("\t")[2].split(", ")))
    if len(names) != 1000:
        raise ValueError(f"{len(names)} names")
    return names
