"""From a configuration and its tensors to modules that run.

The source's architecture is rebuilt on the meta device and cut, pruned shapes are applied, and the whole is run once without
weights; only then are tensors read, and exactly those that the modules then need.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, fx, nn

from pnc_hub import files
from pnc_hub.config import AdapterConfig, CloneConfig
from pnc_hub.errors import InsertionPointError, MalformedArtifactError
from pnc_hub.module import Adapter, CloneModule, Gate, Source, empty, put_tensors, shrink, tensors_of
from pnc_hub.points import INPUT
from pnc_hub.preprocess import Preprocess, Reprocess

Read = Callable[[str, dict[str, files.TensorSpec]], dict[str, Tensor]]


def assemble(config: CloneConfig, adapter: AdapterConfig, given: Preprocess, read: Read) -> tuple[CloneModule, Gate]:
    """The module and gate of one adapter, frozen and in eval mode.

    Args:
        config: the clone's configuration.
        adapter: one of ``config.adapters``.
        given: image convention of the target (used by an adapter at the input).
        read: returns the tensors of a file, which must be those specified.

    Raises:
        MalformedArtifactError: the configuration describes nothing that can be built.
    """

    def fill(module: nn.Module, file: str) -> None:
        put_tensors(module, read(file, files.specs(tensors_of(module).items())))

    source = _source(config)
    prefix, branch = _branch(config, source)
    own = nn.ModuleDict({"gate": Gate(branch["head"].in_features, device="meta")})
    at_input = adapter.insertion.module == INPUT
    first: nn.Module = prefix
    if not at_input:
        cut = source.skeleton.point(config.cut.module)
        first = own["adapter"] = Adapter(adapter.insertion.point(), cut, device="meta")
    _dry_run(CloneModule(first, branch["tail"], branch["head"]), adapter)
    fill(branch, files.WEIGHTS)
    fill(own, adapter.file)
    if at_input:
        fill(nn.ModuleDict({"prefix": prefix}), files.PREFIX)
        first = nn.Sequential(Reprocess(given, config.preprocess.value()), prefix)
    module = CloneModule(first, branch["tail"], branch["head"])
    return module.requires_grad_(False).eval(), own["gate"].requires_grad_(False).eval()


def _source(config: CloneConfig) -> Source:
    from timm.models import is_model

    named = config.source
    if not is_model(named.architecture):
        raise MalformedArtifactError(
            f"its source is a {named.architecture!r}, which this timm does not have; upgrade timm, or import the"
            " package that registers it",
            file=files.CONFIG,
        )
    arguments = named.arguments()
    try:
        source = Source.of(named.architecture, tuple(sorted(arguments.items())), config.preprocess.value().input_size)
        source.skeleton.point(config.cut.module)
    except Exception as error:  # arguments that do not go together fail in as many ways as timm has constructors
        raise MalformedArtifactError(
            f"its source {named.architecture!r} with {named.model_args!s:.200} can not be rebuilt and cut"
            f" ({error!s:.500})",
            file=files.CONFIG,
        ) from error
    return source


def _branch(config: CloneConfig, source: Source) -> tuple[fx.GraphModule, nn.ModuleDict]:
    """(prefix, {tail, head}) on the meta device, with the shapes that the configuration records."""
    if max(entry.source_index for entry in config.classes) >= source.num_classes:
        raise MalformedArtifactError(
            f"a source_index is beyond the source's {source.num_classes} classes", file=files.CONFIG
        )
    prefix, tail = source.parts(config.cut.module)
    head = nn.Linear(source.features, len(config.classes) + 1, device="meta")  # one row for the reject logit
    branch = nn.ModuleDict({"tail": tail, "head": head})
    try:
        shrink(branch, config.tail.shapes, config.tail.attributes)
    except InsertionPointError as error:
        raise MalformedArtifactError(f"{error!s:.500}", file=files.CONFIG) from None
    return prefix, branch


def _dry_run(module: nn.Module, adapter: AdapterConfig) -> None:
    """One pass without weights or memory: shapes that do not fit together show before anything is read."""
    try:
        module.eval()(empty(adapter.insertion.point(), device="meta"))
    except Exception as error:  # as above: a layer may fail in any way on shapes that it was not made for
        reason = f"its tail does not run on what adapter {adapter.name!r} gives it ({error!s:.500})"
        raise MalformedArtifactError(reason, file=files.CONFIG) from error
