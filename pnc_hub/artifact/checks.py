"""What single values of an artifact may be: names, numbers, labels. Each check raises ``ValueError`` or ``TypeError``."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

MAX_CLASSES = 100_000
MAX_SIDE = 2048
MAX_TEXT = 200
MAX_ROWS = 100  # of a measured series: it is drawn or written as a table

# Constructor arguments of timm architectures that an artifact may name, with the largest integer each may hold.
_SIZES = (
    *("base_width", "channels", "dims", "embed_dim", "embed_dims", "head_hidden_size", "num_features"),
    *("stem_chs", "stem_size", "stem_width", "width", "widths"),
)
_COUNTS = ("cardinality", "num_heads", "patch_size", "window_size")
_BLOCKS = ("depth", "depths", "layers")
MODEL_ARGS: dict[str, int] = {
    "num_classes": MAX_CLASSES,
    "in_chans": 64,
    "img_size": MAX_SIDE,
    **dict.fromkeys(_SIZES, 8192),
    **dict.fromkeys(_COUNTS, 128),
    **dict.fromkeys(_BLOCKS, 100),
    **dict.fromkeys(("act_layer", "class_token", "global_pool", "norm_layer", "pad_type", "stem_type"), 1),
}
# timm's deepest architecture has 96 blocks; building a source must stay a matter of a second, on the meta device too
_MAX_BLOCKS = 100
_MAX_ITEMS = 32
_UNPRINTABLE = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def matching(pattern: str, what: str) -> Callable[[str | None], None]:
    """A check that a text is wholly of the form ``pattern``; None passes."""
    compiled = re.compile(pattern)

    def check(value: str | None) -> None:
        if value is not None and (len(value) > 2 * MAX_TEXT or not compiled.fullmatch(value)):
            raise ValueError(f"{value!r:.80} is no {what}")

    return check


def between(low: float, high: float) -> Callable[[Any], None]:
    """A check that a number is in ``[low, high]``."""

    def check(value: Any) -> None:
        if not low <= value <= high:
            raise ValueError(f"{value!r:.40} is not between {low} and {high}")

    return check


def one_of(allowed: Sequence[Any]) -> Callable[[Any], None]:
    """A check that a value is among those ``allowed``."""

    def check(value: Any) -> None:
        if value not in allowed:
            raise ValueError(f"{value!r:.40} is none of {', '.join(map(str, allowed))}")

    return check


def each(check: Callable[[Any], None]) -> Callable[[Any], None]:
    """A check that every value of a dictionary, or every item of a sequence, passes ``check``."""

    def check_each(value: Any) -> None:
        for item in value.values() if isinstance(value, dict) else value:
            check(item)

    return check_each


def model_args(value: dict[str, Any]) -> None:
    """Constructor arguments of a source: only those listed, with values that cannot take long or fill the memory."""
    for name, argument in value.items():
        if name not in MODEL_ARGS:
            raise ValueError(f"{name!r:.80} is no model argument that an artifact may set")
        items = argument if isinstance(argument, list) else [argument]
        if len(items) > _MAX_ITEMS:
            raise ValueError(f"{name} has {len(items)} items, at most {_MAX_ITEMS} are allowed")
        for item in items:
            _model_arg(name, item)
        if name in _BLOCKS and sum(items) > _MAX_BLOCKS:
            raise ValueError(f"{name} asks for {sum(items)} blocks, at most {_MAX_BLOCKS} are allowed")


def text(value: str) -> None:
    """A text for people: 1 to 200 printable characters without spaces around them."""
    if not 1 <= len(value) <= MAX_TEXT or value != value.strip():
        raise ValueError(f"1 to {MAX_TEXT} characters without spaces around them are needed, found {value!r:.80}")
    for character in value:
        if unicodedata.category(character) in _UNPRINTABLE:
            raise ValueError(f"{value!r:.80} holds the unprintable character {character!r}")


def metrics(value: dict[str, Any]) -> None:
    """Measurements: a plain name, and a finite number, a printable text or nothing for each."""
    for name, item in value.items():
        word(name)
        if isinstance(item, str):
            if item:
                text(item)
        elif item is not None and not (isinstance(item, (int, float)) and math.isfinite(item)):
            raise ValueError(f"metric {name} is {item!r:.40}")


def series(value: dict[str, dict[str, list[Any]]]) -> None:
    """Tables by name, and in them columns by name, equally long: measurements as ``metrics`` allows."""
    for name, table in value.items():
        word(name)
        lengths = {len(column) for column in table.values()}
        if len(lengths) != 1 or max(lengths) > MAX_ROWS:
            raise ValueError(f"series {name} needs columns of one length, at most {MAX_ROWS}")
        for row in zip(*table.values(), strict=True):
            metrics(dict(zip(table, row, strict=True)))


def passes(check: Callable[[Any], None], value: Any) -> bool:
    """Whether ``value`` is a text that passes ``check``."""
    try:
        check(value)
    except (TypeError, ValueError):
        return False
    return isinstance(value, str)


module_path = matching(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*", "module path")
sha256 = matching(r"[0-9a-f]{64}", "sha256")
xxh3 = matching(r"[0-9a-f]{32}", "digest of weights")
commit = matching(r"[0-9a-f]{40}", "commit sha")
architecture = matching(r"[A-Za-z0-9_]{1,96}", "timm architecture")
word = matching(r"[a-zA-Z0-9_.\-]{1,64}", "plain word")
hub_id = matching(r"(?!.*(\.\.|--))[A-Za-z0-9_][A-Za-z0-9_.\-]{0,95}(/[A-Za-z0-9_][A-Za-z0-9_.\-]{0,95})?", "Hub id")
size = between(1, 1 << 20)


def _model_arg(name: str, item: Any) -> None:
    if isinstance(item, str) and name not in _BLOCKS:
        matching(r"[a-z0-9_]{0,32}", f"value for {name}")(item)
    elif not isinstance(item, (bool, int)):
        raise TypeError(f"{name} holds a {type(item).__name__}")
    elif not 0 <= item <= MODEL_ARGS[name]:
        raise ValueError(f"{name}={item!r:.40} is not between 0 and {MODEL_ARGS[name]}")
