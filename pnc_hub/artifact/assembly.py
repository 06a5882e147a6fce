"""From a configuration and its tensors to modules that run.

The source's architecture is rebuilt on the meta device and cut, pruned shapes are applied, and the whole is run once without
weights; only then are tensors read, and exactly those that the modules then need.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pnc_hub.artifact import files
from pnc_hub.artifact.config import AdapterConfig, CloneConfig
from pnc_hub.errors import InsertionPointError, MalformedArtifactError
from pnc_hub.models.architecture import Architecture
from pnc_hub.models.insertion import INPUT, InsertionPoint, empty
from pnc_hub.models.meta import IndicesInRange, ShapesOnly
from pnc_hub.models.preprocess import Preprocess, Reprocess
from pnc_hub.models.tensors import put_tensors, shrink, tensors_of
from pnc_hub.module import Adapter, CloneModule, Gate

Read = Callable[[str, dict[str, files.TensorSpec]], dict[str, Tensor]]


def assemble(config: CloneConfig, adapter: AdapterConfig, given: Preprocess, read: Read) -> tuple[CloneModule, Gate]:
    """The module and gate of one of ``config.adapters``, frozen and in eval mode.

    ``given`` is the image convention of the target (used by an adapter at the input); ``read`` returns the tensors of a file,
    which must be those specified.

    Raises:
        MalformedArtifactError: the configuration describes nothing that can be built.
    """
    source = rebuilt(config)
    pruned = _pruned(config, source)
    head = cast(nn.Linear, pruned["head"])
    gate = Gate(head.in_features, device="meta")
    added = nn.ModuleDict({"gate": gate})
    cut, point, at_input = config.cut, adapter.insertion, adapter.insertion.name == INPUT
    first: nn.Module
    if at_input:
        first = source.trunk(cut)
    else:
        first = added["adapter"] = Adapter(point, source.point(cut), adapter.kernel, device="meta")
    _try(first, point, f"adapter {adapter.name!r}", source, cut, adapter.kernel)
    _fill(pruned, files.WEIGHTS, read)
    _fill(added, adapter.file, read)
    if at_input:
        _fill(nn.ModuleDict({"trunk": first}), files.TRUNK, read)
        first = nn.Sequential(Reprocess(given, config.preprocess), first)
    module = CloneModule(first, pruned["tail"], head)
    _check_numbers(module, point)
    return module.requires_grad_(False).eval(), gate.requires_grad_(False).eval()


def rebuilt(config: CloneConfig) -> Architecture:
    """The source's architecture, which is known to have the cut.

    Raises:
        MalformedArtifactError: this timm has no such architecture, or cannot build it as the configuration says.
    """
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
        source = Architecture.of(named.architecture, arguments, config.preprocess.input_size)
        source.point(config.cut)
    except Exception as error:  # arguments that do not go together fail in as many ways as timm has constructors
        raise MalformedArtifactError(
            f"its source {named.architecture!r} with {named.model_args!s:.200} cannot be rebuilt and cut"
            f" ({error!s:.500})",
            file=files.CONFIG,
        ) from error
    return source


def _check_numbers(module: CloneModule, point: InsertionPoint) -> None:
    """What is finite and of the right shape and cannot be true all the same: a negative variance, an index out of range."""
    tensors = tensors_of(module)
    for name, tensor in tensors.items():
        if name.endswith("running_var") and bool(tensor.lt(0).any()):
            raise MalformedArtifactError(f"the variance {name!r} is negative somewhere", file=files.WEIGHTS)
    indices = {name for name, tensor in tensors.items() if tensor.dim() and not tensor.is_floating_point()}
    if not indices:
        return
    module.train().eval()  # some layers remember what they have read, and forget it here
    # nothing is computed, whatever size the artifact names: only indices have numbers
    given = {name: tensor if name in indices else tensor.to("meta") for name, tensor in tensors.items()}
    try:
        with ShapesOnly(), IndicesInRange(), torch.no_grad():
            functional_call(module, given, empty(point, device="meta"))
    except Exception as error:  # whatever an index out of range makes a layer raise
        reason = f"its whole numbers do not index what they should ({error!s:.500})"
        raise MalformedArtifactError(reason, file=files.WEIGHTS) from error


def _fill(module: nn.ModuleDict, file: str, read: Read) -> None:
    """Put the tensors of ``file`` into ``module``, which says what they must be."""
    put_tensors(module, read(file, files.specs(tensors_of(module).items())))


def _pruned(config: CloneConfig, source: Architecture) -> nn.ModuleDict:
    """{tail, head} on the meta device, with the shapes that the configuration records; they have run once."""
    if max(entry.source_index for entry in config.classes) >= source.num_classes:
        raise MalformedArtifactError(
            f"a source_index is beyond the source's {source.num_classes} classes", file=files.CONFIG
        )
    cut, rows = config.cut, len(config.classes) + 1  # one row is for the reject logit
    head = nn.Linear(source.features, rows, device="meta", dtype=torch.float32)
    pruned = nn.ModuleDict({"tail": source.tail(cut), "head": head})
    try:
        shrink(pruned, config.tail.shapes, config.tail.attributes)
    except InsertionPointError as error:
        raise MalformedArtifactError(f"{error!s:.500}", file=files.CONFIG) from None
    tail = nn.Sequential(pruned["tail"], pruned["head"])
    _try(tail, source.point(cut), "its tail", source, cut, rows, config.tail)
    return pruned


def _try(module: nn.Module, point: InsertionPoint, what: str, source: Architecture, *described: Any) -> None:
    """One pass without weights or memory: shapes that do not fit together show before anything is read.

    ``described`` is all that ``module`` was made of; ``source`` remembers what has passed, which cannot fail again.
    """
    digest = hashlib.sha256(repr((point, described)).encode()).digest()
    if digest in source.passed:
        return
    try:
        with ShapesOnly(), torch.no_grad():
            module.eval()(empty(point, device="meta"))
    except Exception as error:  # as above: a layer may fail in any way on shapes that it was not made for
        reason = f"{what} does not run on the feature that it is given ({error!s:.500})"
        raise MalformedArtifactError(reason, file=files.CONFIG) from error
    source.passed.add(digest)
