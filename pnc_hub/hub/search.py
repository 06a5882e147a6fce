"""Find clones on the Hub, by the tags that their cards carry."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from torch import nn

from pnc_hub.artifact import checks
from pnc_hub.artifact.config import LIBRARY_NAME, CloneConfig
from pnc_hub.errors import HubError
from pnc_hub.hub.client import api, first_line
from pnc_hub.models.classifier import pretrained_cfg

_CLASS, _SOURCE, _TARGET = "pnc-class:", "pnc-source:", "pnc-target:"
_ANY = "any"  # target of a clone that fits every classifier, at its input
_BASE, _LICENSE = "base_model:adapter:", "license:"  # the Hub makes these of a card's other fields


@dataclass(frozen=True)
class CloneInfo:
    """A clone on the Hub, as far as its card tells.

    Attributes:
        repo_id: ``"user/name"``, as ``attach`` takes it.
        sha: the commit that was found, to pin it: ``"user/name@sha"``.
        labels: the classes that it adds.
        source: Hub id of the model that it was cloned from, its architecture where it has no id, or None where no card says.
        targets: the models that it has an adapter for: Hub ids, or architectures where the card names no id.
        universal: whether it fits any other classifier too, at its input.
        license: licence of the source, as the Hub spells it, or None.
        downloads: in the last 30 days.
        last_modified: when the repository was changed.
    """

    repo_id: str
    sha: str
    labels: tuple[str, ...]
    source: str | None
    targets: tuple[str, ...]
    universal: bool
    license: str | None
    downloads: int
    last_modified: datetime | None


def search(
    *,
    classes: str | Collection[str] | None = None,
    target: str | nn.Module | None = None,
    source: str | None = None,
    author: str | None = None,
    limit: int | None = None,
    token: str | bool | None = None,
) -> list[CloneInfo]:
    """List the clones on the Hub that meet every condition, most downloaded first.

    Args:
        classes: names of classes that a clone adds, all of them, spelt as on its card.
        target: what it is to be attached to: a timm model, or the name of one. A name with a tag (``"resnet50.a1_in1k"``)
            leaves out clones that were made for other weights of the architecture alone. Those that fit any target by way
            of its input are listed as well. ``pnc_hub.check`` tells of any clone whether it attaches.
        source: Hub id of the model that it was cloned from, or its architecture where it has none.
        author: user or organisation.
        limit: how many to list, at most.
        token: Hub token; by default the one that is stored on this machine.

    Raises:
        ValueError: ``target`` has no architecture that is known by name, or ``limit`` is not positive.
        HubError: the Hub did not answer.

    Example:
        >>> import pnc_hub
        >>> pnc_hub.search(classes=["painted bunting"], target="resnet50.a1_in1k")  # doctest: +SKIP
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit is a positive number, or None for all; received {limit!r}")
    wanted = [classes] if isinstance(classes, str) else list(classes or ())
    architecture, checkpoint = _named(target) if target is not None else (None, None)
    common = [LIBRARY_NAME, *(_CLASS + label for label in wanted), *([_SOURCE + source] if source else [])]
    # the Hub lists what carries all of some tags, so either of two takes two lists
    kinds = [[_TARGET + architecture], [_TARGET + _ANY]] if architecture else [[]]

    def fits(info: CloneInfo) -> bool:
        others = [name for name in info.targets if _split(name)[0] == architecture and "." in name]
        made_for = info.universal or not others or checkpoint in (None, *(_split(name)[1] for name in others))
        return set(wanted) <= set(info.labels) and source in (None, info.source) and made_for

    lists = [_listed([*common, *more], author, token) for more in kinds]
    listed = heapq.merge(*lists, key=lambda info: -info.downloads)

    def new() -> Iterator[CloneInfo]:
        seen = set()
        for info in listed:
            if info.repo_id not in seen and fits(info):
                seen.add(info.repo_id)
                yield info

    return list(itertools.islice(new(), limit))


def tags(config: CloneConfig) -> list[str]:
    """What a clone's card is tagged with, for ``search`` to find it by."""
    targets = [adapter.target for adapter in config.adapters]
    architectures = [target.architecture for target in targets if target and target.architecture]
    return [
        *(_CLASS + label for label in config.labels),
        _SOURCE + (config.source.hub_id or config.source.architecture),
        *dict.fromkeys(_TARGET + architecture for architecture in architectures),
        *([_TARGET + _ANY] if None in targets else []),
    ]


def table(clones: Collection[CloneInfo]) -> str:
    """Clones as a person reads of them, a line each."""
    head = ("clone", "adds", "to", "from", "licence", "downloads", "changed")
    rows = [
        (
            info.repo_id,
            _short(info.labels),
            _short((*info.targets, *(["any model"] if info.universal else []))) or "-",
            info.source or "-",
            info.license or "-",
            f"{info.downloads:,}",
            f"{info.last_modified:%Y-%m-%d}" if info.last_modified else "-",
        )
        for info in clones
    ]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = ("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in (head, *rows))
    return "\n".join(line.rstrip() for line in lines)


def _listed(tags: list[str], author: str | None, token: str | bool | None) -> Iterator[CloneInfo]:
    """What carries all of ``tags``, page after page; a repository whose tags are not a clone's is left out."""
    asked = [tag for tag in tags if "," not in tag]  # the Hub ends a tag at a comma; ``search`` looks again
    try:
        models = api(token).list_models(
            filter=asked,
            author=author,
            sort="downloads",
            # not the card itself: one that is odd would end the whole list
            expand=["downloads", "lastModified", "sha", "tags"],
        )
        for model in models:
            info = _info(model)
            if info is not None:
                yield info
    except Exception as error:  # huggingface_hub and its HTTP client each raise errors of their own
        raise HubError(
            f"the Hub did not answer the search ({first_line(error)}); try again later, or check your token"
        ) from error


def _info(model: Any) -> CloneInfo | None:
    """What the tags of a repository tell; they are anybody's words, so only those are believed that a clone can have."""
    tags = [tag for tag in model.tags or () if isinstance(tag, str)]
    labels, sources, architectures, models, licenses = (
        [tag[len(prefix) :] for tag in tags if tag.startswith(prefix)]
        for prefix in (_CLASS, _SOURCE, _TARGET, _BASE, _LICENSE)
    )
    believed = (
        *(checks.passes(checks.text, label) for label in labels),
        *(checks.passes(checks.architecture, name) for name in architectures),
        *(checks.passes(checks.hub_id, name) for name in (*models, *sources)),
    )
    if not all(believed):
        return None
    source = sources[0] if len(sources) == 1 else None
    named = [name for name in models if name != source]
    unnamed = [name for name in architectures if name not in (_ANY, *(_split(name)[0] for name in named))]
    return CloneInfo(
        repo_id=model.id,
        sha=model.sha,
        labels=tuple(labels),
        source=source,
        targets=(*named, *unnamed),
        universal=_ANY in architectures,
        license=licenses[0] if licenses and checks.passes(checks.word, licenses[0]) else None,
        downloads=model.downloads or 0,
        last_modified=model.last_modified,
    )


def _named(target: str | nn.Module) -> tuple[str, str | None]:
    """(architecture, "architecture.tag" or None) of a model, or of one of the forms in which timm writes its name.

    What a model says of its weights is what timm offers for its architecture, whether they were loaded or not.
    """
    name = str(pretrained_cfg(target).get("architecture") or "") if isinstance(target, nn.Module) else target
    architecture, checkpoint = _split(name)
    if not checks.passes(checks.architecture, architecture):
        raise ValueError(
            f"no architecture is known of {target if isinstance(target, str) else type(target).__name__!r}; give a timm"
            " model, or the name of one such as 'resnet50' or 'resnet50.a1_in1k'"
        )
    return architecture, checkpoint


def _split(name: str) -> tuple[str, str | None]:
    """``"timm/resnet50.a1_in1k"`` -> (``"resnet50"``, ``"resnet50.a1_in1k"``); without a tag the second is None."""
    last = name.rpartition("/")[2]
    architecture, dot, _ = last.partition(".")
    return architecture, last if dot else None


def _short(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
