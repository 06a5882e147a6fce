"""The schema of ``config.json``, format version 1, and its strict parsing.

Annotations are evaluated here (no ``from __future__ import annotations``): the validators read them.
"""

import hashlib
import json
import types
import typing
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any

from huggingface_hub.dataclasses import strict, type_validator, validated_field
from huggingface_hub.errors import StrictDataclassError

from pnc_hub.artifact import checks, files
from pnc_hub.errors import FormatVersionError, IntegrityError, MalformedArtifactError, one_line
from pnc_hub.models.insertion import INPUT, LAYOUTS, InsertionPoint
from pnc_hub.models.labels import same_label
from pnc_hub.models.preprocess import Preprocess

FORMAT_VERSION = 1
LIBRARY_NAME = "pnc-hub"
MAX_ADAPTERS = 200  # each is compared with the target's weights when the clone is attached
KERNELS = (1, 3, 5)


def _fields(**allowed: Callable[[Any], None]) -> Callable[[Any], None]:
    """A check that each field of a value object is of its type and passes; ``models`` makes these without asking."""

    def check(value: Any) -> None:
        hints = typing.get_type_hints(type(value))
        for name, passes in allowed.items():
            type_validator(name, getattr(value, name), hints[name])
            passes(getattr(value, name))

    return check


_INSERTION = _fields(
    name=checks.module_path,
    channels=checks.size,
    reduction=checks.size,
    layout=checks.one_of(LAYOUTS),
    grid=checks.each(checks.between(1, checks.MAX_SIDE)),
    prefix_tokens=checks.between(0, 4096),
)
_PREPROCESS = _fields(
    input_size=checks.each(checks.between(1, checks.MAX_SIDE)),
    mean=checks.each(checks.between(-1e3, 1e3)),
    std=checks.each(checks.between(1e-6, 1e3)),
    interpolation=checks.word,
    crop_pct=checks.between(1e-3, 10.0),
)


@strict
@dataclass
class SourceConfig:
    """Where the clone was cut from."""

    hub_id: str | None = validated_field(checks.hub_id)
    revision: str | None = validated_field(checks.commit)
    architecture: str = validated_field(checks.architecture)
    model_args: dict[str, Any] = validated_field(checks.model_args)
    fingerprint: dict[str, str] = validated_field(checks.each(checks.xxh3))
    license: str = validated_field(checks.word)

    def arguments(self) -> dict[str, Any]:
        """``model_args`` as timm's constructors take them: tuples where JSON has lists."""
        return {name: tuple(value) if isinstance(value, list) else value for name, value in self.model_args.items()}


@strict
@dataclass
class ClassConfig:
    """One cloned class: its name and its row in the source's head."""

    label: str = validated_field(checks.text)
    source_index: int = validated_field(checks.between(0, checks.MAX_CLASSES))


@strict
@dataclass
class TailConfig:
    """What pruning changed of the tail and head: tensor shapes, and the integer attributes of their layers."""

    shapes: dict[str, list[int]] = validated_field(checks.each(checks.each(checks.size)), default_factory=dict)
    attributes: dict[str, dict[str, int]] = validated_field(checks.each(checks.each(checks.size)), default_factory=dict)


@strict
@dataclass
class TargetConfig:
    """The target that an adapter was made for.

    ``trunk`` names its modules, parameters and buffers up to the insertion point; ``fingerprint`` is that of these.
    """

    hub_id: str | None = validated_field(checks.hub_id)
    revision: str | None = validated_field(checks.commit)
    architecture: str | None = validated_field(checks.architecture)
    fingerprint: dict[str, str] = validated_field(checks.each(checks.xxh3))
    num_classes: int = validated_field(checks.between(1, checks.MAX_CLASSES))
    trunk: list[str] = validated_field(checks.each(checks.module_path))


@strict
@dataclass(kw_only=True)
class AdapterConfig:
    """An adapter and gate for one target; ``target`` is None for the universal one, at the input of any target.

    Attributes:
        name: of the adapter, and of its file.
        target: the model that it was made for.
        insertion: where the target is read.
        kernel: width of the convolution that the adapter is.
        metrics: what was measured: name -> number, text or None.
        series: what was measured more than once: table -> column -> a value per row.
    """

    name: str = validated_field(checks.matching(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,95}", "adapter name"))
    target: TargetConfig | None
    insertion: InsertionPoint = validated_field(_INSERTION)
    kernel: int = validated_field(checks.one_of(KERNELS), default=1)
    metrics: dict[str, Any] = validated_field(checks.metrics, default_factory=dict)
    series: dict[str, dict[str, list[Any]]] = validated_field(checks.series, default_factory=dict)

    @property
    def file(self) -> str:
        """Where its tensors are."""
        return f"adapters/{self.name}.safetensors"

    def validate_insertion(self) -> None:
        """Only the input has no trunk and no adapter before it, and nothing else suits every target."""
        at_input = self.insertion.name == INPUT
        if self.target is None and not at_input:
            raise ValueError(f"adapter {self.name!r} names no target and is not at the input")
        if self.target is not None and bool(self.target.trunk) == at_input:
            raise ValueError("a trunk is listed exactly where the insertion point is not the input")
        if at_input and self.kernel != 1:
            raise ValueError("at the input there is no adapter that could have a kernel")


@strict
@dataclass
class ProbeConfig:
    """How closely the probe's expected output must be met."""

    atol: float = validated_field(checks.between(0.0, 1.0))
    rtol: float = validated_field(checks.between(0.0, 1.0))


@strict
@dataclass(kw_only=True)
class CloneConfig:
    """Everything that ``config.json`` says; ``cut`` is the module of the source after which the tail begins."""

    format_version: int
    library_name: str
    pnc_hub_version: str = validated_field(checks.matching(r"[0-9A-Za-z.+\-]{1,40}", "version"))
    source: SourceConfig
    cut: str = validated_field(checks.module_path)
    classes: list[ClassConfig]
    preprocess: Preprocess = validated_field(_PREPROCESS)
    tail: TailConfig
    adapters: list[AdapterConfig]
    files: dict[str, str] = validated_field(checks.each(checks.sha256))
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

    def validate_preprocess(self) -> None:
        """A mean and a standard deviation for each channel."""
        if {len(self.preprocess.mean), len(self.preprocess.std)} != {self.preprocess.input_size[0]}:
            raise ValueError("preprocess needs as many values of mean and std as input_size has channels")

    def validate_files(self) -> None:
        """Only files that a clone has."""
        adapters = {adapter.file for adapter in self.adapters}
        unknown = sorted(self.files.keys() - {files.CONFIG, files.WEIGHTS, files.TRUNK, files.PROBE} - adapters)
        if unknown:
            raise ValueError(f"a clone has no file {unknown[0]!r:.80}")

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the cloned classes, in the order of their logits."""
        return tuple(entry.label for entry in self.classes)

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries and lists, as written to JSON, sealed."""
        return seal(asdict(self, dict_factory=_as_json))

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
            raise MalformedArtifactError(f"config.json is not valid: {one_line(error, 400)}") from error
        if values["files"].get(files.CONFIG) != seal(values)["files"][files.CONFIG]:
            raise IntegrityError(
                "config.json was changed or damaged since it was written (its sha256 is not the one it records of itself);"
                " download it again (force_download=True), or ask its publisher to save it again"
            )
        config.files = {name: digest for name, digest in config.files.items() if name != files.CONFIG}
        return config


def seal(values: dict[str, Any]) -> dict[str, Any]:
    """The configuration ``values`` with, among its ``files``, the sha256 of everything else that it says.

    It depends on the values alone, however they are written. It shows damage, not malice: anyone who changes a configuration
    on purpose can seal it again; what shows that is a commit's sha, or a lock file.
    """
    others = {name: digest for name, digest in values["files"].items() if name != files.CONFIG}
    text = json.dumps({**values, "files": others}, sort_keys=True, separators=(",", ":"))
    return {**values, "files": {files.CONFIG: hashlib.sha256(text.encode()).hexdigest(), **others}}


def _parse(kind: Any, value: Any, path: str) -> Any:
    origin = typing.get_origin(kind)
    if origin in (types.UnionType, typing.Union):
        inner = [option for option in typing.get_args(kind) if option is not type(None)]
        return None if value is None else _parse(inner[0], value, path)
    if origin is tuple and isinstance(value, list):
        return tuple(value)
    if origin is list and is_dataclass(typing.get_args(kind)[0]):
        if not isinstance(value, list):
            raise TypeError(f"{path} is a {type(value).__name__} instead of a list")
        return [_parse(typing.get_args(kind)[0], item, f"{path}[{i}]") for i, item in enumerate(value)]
    if not is_dataclass(kind):
        return value
    if not isinstance(value, dict):
        raise TypeError(f"{path} is a {type(value).__name__} instead of an object")
    names = {entry.name for entry in fields(kind)}
    if set(value) != names:
        missing, unknown = sorted(names - set(value)), sorted(set(value) - names)
        raise ValueError(f"{path} misses {missing} and has unknown {unknown!r:.200}")
    hints = typing.get_type_hints(kind)
    made: Any = kind
    return made(**{name: _parse(hints[name], value[name], f"{path}.{name}") for name in names})


def _as_json(items: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in items}
