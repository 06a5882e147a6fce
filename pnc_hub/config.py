"""The schema of ``config.json``, format version 1, and its strict parsing: types, names, bounds.

Annotations are evaluated here (no ``from __future__ import annotations``): the validators read them.
"""

import re
import types
import typing
import unicodedata
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any

from huggingface_hub.dataclasses import strict, validated_field
from huggingface_hub.errors import StrictDataclassError

from pnc_hub.errors import FormatVersionError, MalformedArtifactError
from pnc_hub.points import INPUT, LAYOUTS, InsertionPoint
from pnc_hub.preprocess import Preprocess

FORMAT_VERSION = 1
LIBRARY_NAME = "pnc-hub"
MAX_CLASSES = 100_000
MAX_LABEL = 200

# Constructor arguments of timm architectures that an artifact may name, with the largest integer each may hold.
_SIZES = ("base_width", "channels", "dims", "embed_dim", "embed_dims", "head_hidden_size", "num_features")
_SIZES += ("stem_chs", "stem_size", "stem_width", "width", "widths")
_COUNTS = ("cardinality", "depth", "depths", "layers", "num_heads", "patch_size", "window_size")
MODEL_ARGS: dict[str, int] = {
    "num_classes": MAX_CLASSES,
    "in_chans": 64,
    "img_size": 2048,
    **dict.fromkeys(_SIZES, 8192),
    **dict.fromkeys(_COUNTS, 128),
    **dict.fromkeys(("act_layer", "class_token", "global_pool", "norm_layer", "pad_type", "stem_type"), 1),
}


def _matching(pattern: str, what: str) -> Callable[[str], None]:
    compiled = re.compile(pattern)

    def check(value: str | None) -> None:
        if value is not None and not compiled.fullmatch(value):
            raise ValueError(f"{value!r:.80} is no {what}")

    return check


def _between(low: float, high: float) -> Callable[[Any], None]:
    def check(value: Any) -> None:
        for number in value if isinstance(value, list) else (value,):
            if not low <= number <= high:
                raise ValueError(f"{number!r:.40} is not between {low} and {high}")

    return check


def _values(check: Callable[[Any], None]) -> Callable[[dict], None]:
    def each(value: dict) -> None:
        for item in value.values():
            check(item)

    return each


def _model_args(value: dict[str, Any]) -> None:
    for name, argument in value.items():
        if name not in MODEL_ARGS:
            raise ValueError(f"{name!r:.80} is no model argument that an artifact may set")
        items = argument if isinstance(argument, list) else [argument]
        if len(items) > 32:
            raise ValueError(f"{name} has {len(items)} items, at most 32 are allowed")
        for item in items:
            if isinstance(item, str):
                _matching(r"[a-z0-9_]{0,32}", f"value for {name}")(item)
            elif isinstance(item, (bool, int)) and not 0 <= item <= MODEL_ARGS[name]:
                raise ValueError(f"{name}={item!r:.40} is not between 0 and {MODEL_ARGS[name]}")
            elif not isinstance(item, (bool, int)):
                raise ValueError(f"{name} holds a {type(item).__name__}")


def _label(value: str) -> None:
    if not 1 <= len(value) <= MAX_LABEL or value != value.strip():
        raise ValueError(f"a label has 1 to {MAX_LABEL} characters and no spaces around it, found {value!r:.80}")
    for character in value:
        if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"):
            raise ValueError(f"label {value!r:.80} holds the unprintable character {character!r}")


_module = _matching(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*", "module path")
_hex = _matching(r"[0-9a-f]{64}", "sha256")
_hub_id = _matching(r"[A-Za-z0-9_.\-]{1,96}(/[A-Za-z0-9_.\-]{1,96})?", "Hub id")
_architecture = _matching(r"[a-z0-9_]{1,96}", "timm architecture")
_revision = _matching(r"[0-9a-f]{40}", "commit sha")
_word = _matching(r"[a-zA-Z0-9_.\-]{1,64}", "plain word")
_size = _between(1, 1 << 20)


@strict
@dataclass
class SourceConfig:
    """Where the clone was cut from."""

    hub_id: str | None = validated_field(_hub_id)
    revision: str | None = validated_field(_revision)
    architecture: str = validated_field(_architecture)
    model_args: dict[str, Any] = validated_field(_model_args)
    fingerprint: dict[str, str] = validated_field(_values(_hex))
    license: str = validated_field(_word)


@strict
@dataclass
class CutConfig:
    """The module of the source after which the tail begins."""

    module: str = validated_field(_module)
    index: int = validated_field(_between(0, 0))


@strict
@dataclass
class ClassConfig:
    """One cloned class: its name and its row in the source's head."""

    label: str = validated_field(_label)
    source_index: int = validated_field(_between(0, MAX_CLASSES))


@strict
@dataclass
class PreprocessConfig:
    """The source's image convention."""

    input_size: list[int] = validated_field(_between(1, 8192))
    mean: list[float] = validated_field(_between(-1e3, 1e3))
    std: list[float] = validated_field(_between(1e-6, 1e3))
    interpolation: str = validated_field(_word)
    crop_pct: float = validated_field(_between(1e-3, 10.0))

    def validate_lengths(self) -> None:
        """Three sizes, and a mean and standard deviation per channel."""
        if len(self.input_size) != 3 or {len(self.mean), len(self.std)} != {self.input_size[0]}:
            raise ValueError("input_size needs three numbers, mean and std one per channel")

    @classmethod
    def from_value(cls, value: Preprocess) -> "PreprocessConfig":
        """The same as lists."""
        return cls(list(value.input_size), list(value.mean), list(value.std), value.interpolation, value.crop_pct)

    def value(self) -> Preprocess:
        """The same as a value object."""
        size = (self.input_size[0], self.input_size[1], self.input_size[2])
        return Preprocess(size, tuple(self.mean), tuple(self.std), self.interpolation, self.crop_pct)


@strict
@dataclass
class TailConfig:
    """What pruning changed of the tail and head: tensor shapes, and the integer attributes of their layers."""

    shapes: dict[str, list[int]] = validated_field(_values(_size), default_factory=dict)
    attributes: dict[str, dict[str, int]] = validated_field(_values(_values(_size)), default_factory=dict)


@strict
@dataclass
class TargetConfig:
    """The target that an adapter was made for."""

    hub_id: str | None = validated_field(_hub_id)
    revision: str | None = validated_field(_revision)
    architecture: str | None = validated_field(_architecture)
    fingerprint: dict[str, str] = validated_field(_values(_hex))
    num_classes: int = validated_field(_between(1, MAX_CLASSES))


@strict
@dataclass
class InsertionConfig:
    """Where the target is read, and which of its modules and parameters come before."""

    module: str = validated_field(_module)
    index: int = validated_field(_between(0, 0))
    channels: int = validated_field(_size)
    reduction: int = validated_field(_size)
    layout: str = field()
    grid: list[int] = validated_field(_size)
    prefix_tokens: int = validated_field(_between(0, 4096))
    trunk: list[str] = field(default_factory=list)

    def validate_fields(self) -> None:
        """The layout is known, the grid has two sides, the trunk is a list of paths, and only the input has none."""
        if self.layout not in LAYOUTS:
            raise ValueError(f"layout {self.layout!r:.20} is none of {', '.join(LAYOUTS)}")
        if len(self.grid) != 2:
            raise ValueError(f"grid has {len(self.grid)} sides instead of 2")
        for name in self.trunk:
            _module(name)
        if bool(self.trunk) == (self.module == INPUT):
            raise ValueError("a trunk is listed exactly where the insertion point is not the input")

    @classmethod
    def of(cls, point: InsertionPoint, trunk: list[str]) -> "InsertionConfig":
        """The configuration of ``point``."""
        return cls(
            module=point.name,
            index=point.index,
            channels=point.channels,
            reduction=point.reduction,
            layout=point.layout,
            grid=list(point.grid),
            prefix_tokens=point.prefix_tokens,
            trunk=trunk,
        )

    def point(self) -> InsertionPoint:
        """The same as a value object."""
        grid = (self.grid[0], self.grid[1])
        return InsertionPoint(
            self.module, self.index, self.channels, self.reduction, self.layout, grid, self.prefix_tokens
        )


@strict
@dataclass
class AdapterConfig:
    """An adapter and gate for one target; ``target`` is None for the universal one, at the input of any target."""

    name: str = validated_field(_matching(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,95}", "adapter name"))
    target: TargetConfig | None
    insertion: InsertionConfig
    file: str
    sha256: str = validated_field(_matching(r"([0-9a-f]{64})?", "sha256"))
    metrics: dict[str, Any] = field(default_factory=dict)

    def validate_file(self) -> None:
        """The file is named for the adapter, a universal adapter reads the input, metrics are plain values."""
        if self.file != f"adapters/{self.name}.safetensors":
            raise ValueError(
                f"adapter {self.name!r} must be in adapters/{self.name}.safetensors, not {self.file!r:.80}"
            )
        if self.target is None and self.insertion.module != INPUT:
            raise ValueError(f"adapter {self.name!r} names no target and is not at the input")
        for name, value in self.metrics.items():
            if not isinstance(value, (int, float, str, type(None))):
                raise ValueError(f"metric {name!r:.40} is a {type(value).__name__}")


@strict
@dataclass
class ProbeConfig:
    """How closely the probe's expected output must be met."""

    atol: float = validated_field(_between(0.0, 1.0))
    rtol: float = validated_field(_between(0.0, 1.0))


@strict
@dataclass
class CloneConfig:
    """Everything that ``config.json`` says."""

    format_version: int
    library_name: str
    pnc_hub_version: str = validated_field(_matching(r"[0-9A-Za-z.+\-]{1,40}", "version"))
    source: SourceConfig
    cut: CutConfig
    classes: list[ClassConfig]
    preprocess: PreprocessConfig
    tail: TailConfig
    adapters: list[AdapterConfig]
    files: dict[str, str] = validated_field(_values(_hex))
    probe: ProbeConfig

    def validate_classes(self) -> None:
        """Labels and rows are unique, labels also after Unicode normalisation and case folding."""
        if not 1 <= len(self.classes) <= MAX_CLASSES:
            raise ValueError(f"a clone adds 1 to {MAX_CLASSES} classes, found {len(self.classes)}")
        for what, values in (
            ("labels", [same_label(entry.label) for entry in self.classes]),
            ("source indices", [entry.source_index for entry in self.classes]),
        ):
            if len(set(values)) != len(values):
                raise ValueError(f"two classes have the same {what}")

    def validate_adapters(self) -> None:
        """At least one adapter, each under its own name."""
        names = [adapter.name for adapter in self.adapters]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"adapters must be at least one and have different names, found {names!r:.80}")

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the cloned classes, in the order of their logits."""
        return tuple(entry.label for entry in self.classes)

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries and lists, as written to JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Any) -> "CloneConfig":
        """Parse what was read from JSON.

        Raises:
            FormatVersionError: written in another version of the format.
            MalformedArtifactError: anything else is not as the schema says.
        """
        if not isinstance(values, dict) or values.get("library_name") != LIBRARY_NAME:
            raise MalformedArtifactError(f"not a clone: config.json has no library_name {LIBRARY_NAME!r}")
        version = values.get("format_version")
        if version != FORMAT_VERSION or isinstance(version, bool):
            raise FormatVersionError(
                f"the artifact has format version {version!r:.20}, this pnc_hub reads version {FORMAT_VERSION};"
                " upgrade with `pip install -U pnc-hub`, or ask its publisher to save it again"
            )
        try:
            return _parse(cls, values, "config")
        except (StrictDataclassError, TypeError, ValueError) as error:
            raise MalformedArtifactError(f"config.json is not valid: {_one_line(error)}") from error


def same_label(label: str) -> str:
    """What two labels have in common when a reader would take them for the same."""
    return unicodedata.normalize("NFKC", label).casefold()


def _parse(kind: Any, value: Any, place: str) -> Any:
    origin = typing.get_origin(kind)
    if origin in (types.UnionType, typing.Union):
        inner = [option for option in typing.get_args(kind) if option is not type(None)]
        return None if value is None else _parse(inner[0], value, place)
    if origin is list and is_dataclass(typing.get_args(kind)[0]):
        if not isinstance(value, list):
            raise TypeError(f"{place} is a {type(value).__name__} instead of a list")
        return [_parse(typing.get_args(kind)[0], item, f"{place}[{i}]") for i, item in enumerate(value)]
    if not is_dataclass(kind):
        return value
    if not isinstance(value, dict):
        raise TypeError(f"{place} is a {type(value).__name__} instead of an object")
    names = {entry.name for entry in fields(kind)}
    if set(value) != names:
        missing, unknown = sorted(names - set(value)), sorted(set(value) - names)
        raise ValueError(f"{place} misses {missing} and has unknown {unknown!r:.200}")
    hints = typing.get_type_hints(kind)
    return kind(**{name: _parse(hints[name], value[name], f"{place}.{name}") for name in names})


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:400]
