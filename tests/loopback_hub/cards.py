"""Model cards: the metadata at the top of README.md, and the tags that the Hub derives from it."""

import json
import re
from collections.abc import Iterable
from typing import Any

import yaml

from .repository import Commit

_METADATA = re.compile(r"^\s*---\r?\n(.*?)^---[ \t]*\r?$", re.DOTALL | re.MULTILINE)


class CardError(ValueError):
    """The metadata of a model card cannot be read."""


def read_card(readme: str) -> dict[str, Any]:
    """Return the metadata of a README, `{}` where it has none.

    Raises:
        CardError: The metadata is no YAML, or no mapping.
    """
    found = _METADATA.match(readme)
    try:
        metadata = yaml.safe_load(found[1]) if found else None
    except yaml.YAMLError as error:
        raise CardError(f"YAML metadata error: {error}") from error
    if not isinstance(metadata or {}, dict):
        raise CardError("YAML metadata error: not a mapping")
    # Dates and the like come back as text, as from the real Hub.
    return json.loads(json.dumps(metadata or {}, default=str))


def card_of(commit: Commit) -> dict[str, Any]:
    """Return the metadata of a commit's README, `{}` where it has none."""
    readme = commit.files.get("README.md")
    return read_card(readme.content.decode()) if readme else {}


def tags_of(commit: Commit) -> list[str]:
    """Return the tags by which the Hub finds a commit's repository."""
    card = card_of(commit)
    relation = card.get("base_model_relation", "finetune")
    base_models = _as_list(card.get("base_model"))
    tags = [
        *_as_list(card.get("library_name")),
        *(["safetensors"] if any(path.endswith(".safetensors") for path in commit.files) else []),
        *_as_list(card.get("tags")),
        *_as_list(card.get("pipeline_tag")),
        *_as_list(card.get("language")),
        *_prefixed("dataset", _as_list(card.get("datasets"))),
        *_prefixed("base_model", base_models),
        *_prefixed(f"base_model:{relation}", base_models),
        *_prefixed("license", _as_list(card.get("license"))),
    ]
    return list(dict.fromkeys(tags))


def _as_list(value: Any) -> list[str]:
    if value is None:
        return []
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]


def _prefixed(prefix: str, values: Iterable[str]) -> list[str]:
    return [f"{prefix}:{value}" for value in values]
