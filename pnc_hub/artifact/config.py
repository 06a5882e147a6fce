"""The schema of ``config.json``, format version 1, and its strict parsing.

Annotations are evaluated here (no ``from __future__ import annotations``): the validators read them.
"""

import hashlib
import json
import types
import typing
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any

from huggingface_hub.dataclasses import strict, validated_field
from huggingface_hub.errors import StrictDataclassError

from pnc_hub.artifact import checks, files
from pnc_hub.errors import FormatVersionError, IntegrityError, MalformedArtifactError
from pnc_hub.models.insertion import INPUT, LAYOUTS, InsertionPoint
from pnc_hub.models.labels import same_label
from pnc_hub.models.preprocess import Preprocess

FORMAT_VERSION = 1
LIBRARY_NAME = "pnc-hub"
MAX_ADAPTERS = 200  # each is compared with the target's weights when the clone is attached


@strict
@dataclass
class SourceConfig:
    """Where the clone was cut from."""

    hub_id: str | None = validated_field(checks.hub_id)
    revision: str | None = validated_field(checks.commit)
    architecture: str = validated_field(checks.architecture)
    model_args: dict[str, Any] = validated_field(checks.model_args)
    fingerprint: dict[str, str] = validated_field(checks.values(checks.sha256))
    license: str = validated_field(checks.word)

    def arguments(self) -> dict[str, Any]:
        """``model_args`` as timm's constructors take them: tuples where JSON has lists."""
        return {name: tuple(value) if isinstance(value, list) else value for name, value in self.model_args.items()}


@strict
@dataclass
class CutConfig:
    """The module of the source after which the tail begins."""

    module: str = validated_field(checks.module_path)
    index: int = validated_field(checks.between(0, 0))


@strict
@dataclass
class ClassConfig:
    """One cloned class: its name and its row in the source's head."""

    label: str = validated_field(checks.text)
    source_index: int = validated_field(checks.between(0, checks.MAX_CLASSES))


@strict
@dataclass
class PreprocessConfig:
    """The source's image convention."""

    input_size: list[int] = validated_field(checks.between(1, checks.MAX_SIDE))
    mean: list[float] = validated_field(checks.between(-1e3, 1e3))
    std: list[float] = validated_field(checks.between(1e-6, 1e3))
    interpolation: str = validated_field(checks.word)
    crop_pct: float = validated_field(checks.between(1e-3, 10.0))

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

    shapes: dict[str, list[int]] = validated_field(checks.values(checks.size), default_factory=dict)
    attributes: dict[str, dict[str, int]] = validated_field(
        checks.values(checks.values(checks.size)), default_factory=dict
    )


@strict
@dataclass
class TargetConfig:
    """The target that an adapter was made for."""

    hub_id: str | None = validated_field(checks.hub_id)
    revision: str | None = validated_field(checks.commit)
    architecture: str | None = validated_field(checks.architecture)
    fingerprint: dict[str, str] = validated_field(checks.values(checks.sha256))
    num_classes: int = validated_field(checks.between(1, checks.MAX_CLASSES))


@strict
@dataclass(kw_only=True)
class InsertionConfig:
    """Where the target is read, and which of its modules and parameters come before."""

    module: str = validated_field(checks.module_path)
    index: int = validated_field(checks.between(0, 0))
    channels: int = validated_field(checks.size)
    reduction: int = validated_field(checks.size)
    layout: str = field()
    grid: list[int] = validated_field(checks.between(1, checks.MAX_SIDE))
    prefix_tokens: int = validated_field(checks.between(0, 4096))
    trunk: list[str] = field(default_factory=list)

    def validate_fields(self) -> None:
        """The layout is known, the grid has two sides, the trunk is a list of paths, and only the input has none."""
        if self.layout not in LAYOUTS:
            raise ValueError(f"layout {self.layout!r:.20} is none of {', '.join(LAYOUTS)}")
        if len(self.grid) != 2:
            raise ValueError(f"grid has {len(self.grid)} sides instead of 2")
        for name in self.trunk:
            checks.module_path(name)
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
@dataclass(kw_only=True)
class AdapterConfig:
    """An adapter and gate for one target; ``target`` is None for the universal one, at the input of any target."""

    name: str = validated_field(checks.matching(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,95}", "adapter name"))
    target: TargetConfig | None
    insertion: InsertionConfig
    file: str
    sha256: str = validated_field(checks.matching(r"([0-9a-f]{64})?", "sha256"))
    metrics: dict[str, Any] = validated_field(checks.metrics, default_factory=dict)

    def validate_file(self) -> None:
        """The file is named for the adapter, and a universal adapter reads the input."""
        if self.file != f"adapters/{self.name}.safetensors":
            raise ValueError(
                f"adapter {self.name!r} must be in adapters/{self.name}.safetensors, not {self.file!r:.80}"
            )
        if self.target is None and self.insertion.module != INPUT:
            raise ValueError(f"adapter {self.name!r} names no target and is not at the input")


@strict
@dataclass
class ProbeConfig:
    """How closely the probe's expected output must be met."""

    atol: float = validated_field(checks.between(0.0, 1.0))
    rtol: float = validated_field(checks.between(0.0, 1.0))


@strict
@dataclass(kw_only=True)
class CloneConfig:
    """Everything that ``config.json`` says."""

    format_version: int
    library_name: str
    pnc_hub_version: str = validated_field(checks.matching(r"[0-9A-Za-z.+\-]{1,40}", "version"))
    source: SourceConfig
    cut: CutConfig
    classes: list[ClassConfig]
    preprocess: PreprocessConfig
    tail: TailConfig
    adapters: list[AdapterConfig]
    files: dict[str, str] = validated_field(checks.values(checks.sha256))
    probe: ProbeConfig

    def validate_classes(self) -> None:
        """Labels and rows are unique, labels also after Unicode normalisation and case folding."""
        if not 1 <= len(self.classes) <= checks.MAX_CLASSES:
            raise ValueError(f"a clone adds 1 to {checks.MAX_CLASSES} classes, found {len(self.classes)}")
        for what, values in (
            ("labels", [same_label(entry.label) for entry in self.classes]),
            ("source indices", [entry.source_index for entry in self.classes]),
        ):
            if len(set(values)) != len(values):
                raise ValueError(f"two classes have the same {what}")

    def validate_adapters(self) -> None:
        """At least one adapter, each under its own name, also where file names ignore case."""
        names = [adapter.name.casefold() for adapter in self.adapters]
        if not 1 <= len(names) <= MAX_ADAPTERS or len(set(names)) != len(names):
            raise ValueError(f"adapters must be 1 to {MAX_ADAPTERS} and have different names, found {names!r:.80}")

    def validate_files(self) -> None:
        """Only files that a clone has beside its adapters."""
        unknown = sorted(self.files.keys() - {files.CONFIG, files.WEIGHTS, files.PREFIX, files.PROBE})
        if unknown:
            raise ValueError(f"a clone has no file {unknown[0]!r:.80}")

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the cloned classes, in the order of their logits."""
        return tuple(entry.label for entry in self.classes)

    @property
    def recorded(self) -> dict[str, str]:
        """sha256 by name of every file but the configuration and the page."""
        return {**{adapter.file: adapter.sha256 for adapter in self.adapters}, **self.files}

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries and lists, as written to JSON, sealed."""
        return seal(asdict(self))

    @classmethod
    def from_dict(cls, values: Any) -> "CloneConfig":
        """Parse what was read from JSON.

        Raises:
            FormatVersionError: written in another version of the format.
            IntegrityError: it is not what was written.
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
            config: CloneConfig = _parse(cls, values, "config")
        except (StrictDataclassError, TypeError, ValueError) as error:
            raise MalformedArtifactError(f"config.json is not valid: {_one_line(error)}") from error
        if values["files"].get(files.CONFIG) != seal(values)["files"][files.CONFIG]:
            raise IntegrityError(
                "config.json was changed or damaged since it was written (its sha256 is not the one it records of itself);"
                " download it again (force_download=True), or ask its publisher to save it again"
            )
        config.files = {name: digest for name, digest in config.files.items() if name != files.CONFIG}
        return config


def seal(values: dict[str, Any]) -> dict[str, Any]:
    """The configuration ``values`` with, among its ``files``, the sha256 of everything else that it says.

    It is that of the values, however they are written. It tells damage, not malice: who changes a configuration on purpose
    can seal it again, and only a commit's sha or a lock file tells that.
    """
    others = {name: digest for name, digest in values["files"].items() if name != files.CONFIG}
    text = json.dumps({**values, "files": others}, sort_keys=True, separators=(",", ":"))
    return {**values, "files": {files.CONFIG: hashlib.sha256(text.encode()).hexdigest(), **others}}


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
    made: Any = kind
    return made(**{name: _parse(hints[name], value[name], f"{place}.{name}") for name in names})


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:400]
