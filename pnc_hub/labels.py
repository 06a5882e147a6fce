"""Names of classes: what a model calls its classes, and when two names are the same to a reader."""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from importlib import resources

from torch import nn


def same_label(label: str) -> str:
    """What two labels have in common when a reader would take them for the same."""
    return unicodedata.normalize("NFKC", label).casefold()


def class_names(model: nn.Module, count: int) -> list[tuple[str, ...]] | None:
    """For each of the ``count`` classes of ``model`` the names it goes by, or None where nothing is recorded.

    timm records names with some weights; those trained on ImageNet-1k (a tag such as ``a1_in1k``) have the names of its
    synsets: ``("n01537544", "indigo bunting", "indigo finch", ...)``.
    """
    cfg = getattr(model, "pretrained_cfg", None) or {}
    names = cfg.get("label_names")
    if names and len(names) == count:
        return [(str(name),) for name in names]
    if count == 1000 and "in1k" in str(cfg.get("tag")):
        return _imagenet()
    return None


@lru_cache(maxsize=1)
def _imagenet() -> list[tuple[str, ...]]:
    # what timm.data.ImageNetInfo reads, but for the definitions: they take most of its time
    folder = resources.files("timm.data") / "_info"
    synsets = (folder / "imagenet_synsets.txt").read_text(encoding="utf-8").split()
    wanted, names = set(synsets), {}
    for line in (folder / "imagenet_synset_to_lemma.txt").read_text(encoding="utf-8").splitlines():
        synset, _, lemmas = line.partition("\t")
        if synset in wanted:
            names[synset] = lemmas.split(", ")
    return [(synset, *names[synset]) for synset in synsets]
