"""From learned parts to an artifact: configuration, tensors, probe; checked by building it back."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from timm.models import is_model
from torch import Tensor, nn

from pnc_hub._version import __version__
from pnc_hub.artifact import checks, files, probe
from pnc_hub.artifact.config import (
    FORMAT_VERSION,
    LIBRARY_NAME,
    AdapterConfig,
    ClassConfig,
    CloneConfig,
    ProbeConfig,
    SourceConfig,
    TailConfig,
    TargetConfig,
)
from pnc_hub.cloning.networks import Networks, Reader
from pnc_hub.cloning.pruning.localize import changes
from pnc_hub.cloning.search.learned import Learned
from pnc_hub.errors import InsertionPointError, SourceError, one_line
from pnc_hub.hub.clone import Clone
from pnc_hub.models.architecture import Architecture
from pnc_hub.models.classifier import as_classifier, pretrained_cfg
from pnc_hub.models.cost import macs
from pnc_hub.models.fingerprint import fingerprint
from pnc_hub.models.insertion import INPUT, empty
from pnc_hub.models.tensors import put_tensors, tensors_of
from pnc_hub.module import Adapter, CloneModule

UNIVERSAL = "universal"
TOLERANCE = 1e-3


def source_config(
    source: nn.Module, given: dict[str, Any], hub_id: str | None, license: str | None, networks: Networks
) -> SourceConfig:
    """How to name the source so that its tail can be rebuilt, checked by rebuilding it.

    Raises:
        SourceError: timm does not know its architecture, other constructor arguments are needed, or an artifact cannot
            record what was given.
    """
    architecture = pretrained_cfg(source).get("architecture")
    if not architecture or not is_model(architecture):
        raise SourceError(
            f"the source ({type(source).__name__}) names no architecture registered in timm; register it (timm's"
            " @register_model) so that artifacts can name it"
        )
    arguments: dict[str, Any] = {"num_classes": networks.num_classes}
    if networks.source.preprocess.input_size[0] != 3:
        arguments["in_chans"] = networks.source.preprocess.input_size[0]
    arguments.update({name: list(value) if isinstance(value, tuple) else value for name, value in given.items()})
    try:
        described = SourceConfig(hub_id, None, architecture, arguments, fingerprint(source), license or "unknown")
    except StrictDataclassError as error:
        raise SourceError(f"an artifact cannot record this of its source: {one_line(error)}") from error
    _check_rebuilt(described, networks)
    return described


def package(
    learned: Learned,
    networks: Networks,
    source: SourceConfig,
    classes: dict[str, int],
    target_id: str | None,
    target: nn.Module,
) -> Clone:
    """The clone, in memory; its outputs are checked to be the learned module's."""
    made, own = _made_for(learned, networks.target, target, target_id)
    module, adapters = learned.module, [made]
    pruned = nn.ModuleDict({"tail": module.tail, "head": module.head})
    tensors = {files.WEIGHTS: _owned(pruned), made.file: own}
    if learned.universal_gate is not None:
        point = networks.source.skeleton.point(INPUT)
        adapters.append(AdapterConfig(name=UNIVERSAL, target=None, insertion=point))
        tensors[adapters[1].file] = _owned(nn.ModuleDict({"gate": learned.universal_gate}))
        tensors[files.TRUNK] = _owned(nn.ModuleDict({"trunk": networks.trunk(learned.cut.name)}))
    head = nn.Linear(networks.width, module.head.out_features)
    whole = nn.ModuleDict({"tail": networks.tail(learned.cut.name), "head": head})
    config = CloneConfig(
        format_version=FORMAT_VERSION,
        library_name=LIBRARY_NAME,
        pnc_hub_version=__version__,
        source=source,
        cut=learned.cut.name,
        classes=[ClassConfig(label, index) for label, index in classes.items()],
        preprocess=networks.source.preprocess,
        tail=TailConfig(*changes(pruned, whole)),
        adapters=adapters,
        files={},
        probe=ProbeConfig(TOLERANCE, TOLERANCE),
    )
    clone = Clone(config, tensors)
    tensors[files.PROBE] = _probe(clone, made, networks.target, module)
    if learned.universal_gate is not None:
        tensors[files.PROBE] |= _probe(clone, adapters[1], networks.source, None)
    return clone


def extend(
    clone: Clone, learned: Learned, reader: Reader, target: nn.Module, target_id: str | None, name: str | None = None
) -> tuple[Clone, AdapterConfig]:
    """``clone`` with one more adapter, and that adapter's entry; everything else holds the same numbers as before.

    ``learned`` has the clone's own tail and head; ``name`` is the adapter's, by default architecture and fingerprint.

    Raises:
        ValueError: the name is in use, or it or the id cannot be recorded.
    """
    config, tensors = copy.deepcopy(clone.config), clone.all_tensors()
    try:
        made, own = _made_for(learned, reader, target, target_id, name)
        # before the universal one
        config.adapters.insert(sum(adapter.target is not None for adapter in config.adapters), made)
        config.validate_adapters()
    except (StrictDataclassError, ValueError) as error:
        taken = ", ".join(adapter.name for adapter in clone.config.adapters)
        raise ValueError(
            f"an artifact cannot record an adapter with {name=} and {target_id=}: {one_line(error)};"
            f" the names {taken} are taken"
        ) from error
    tensors[made.file] = own
    extended = Clone(config, tensors)
    tensors[files.PROBE] |= _probe(extended, made, reader, learned.module)
    return extended, made


def _made_for(
    learned: Learned, reader: Reader, target: nn.Module, target_id: str | None, name: str | None = None
) -> tuple[AdapterConfig, dict[str, Tensor]]:
    """The entry of the adapter that was learned for ``target``, and its tensors."""
    learned.module.cpu().eval()
    trunk = reader.skeleton.trunk_names(learned.insertion.name)
    cfg = pretrained_cfg(target)
    architecture, weights = cfg.get("architecture"), fingerprint(target, trunk)
    made_for = TargetConfig(target_id, None, architecture, weights, as_classifier(reader.model).num_classes, trunk)
    name = name or f"{architecture or 'target'}-{weights['float32'][:8]}"
    own = nn.ModuleDict({"gate": learned.gate, "adapter": learned.module.adapter})
    metrics = {
        "macs": macs(learned.module, empty(learned.insertion)),
        "target_license": cfg.get("license") if checks.passes(checks.word, cfg.get("license")) else None,
    }
    kernel = cast(Adapter, learned.module.adapter).kernel
    entry = AdapterConfig(name=name, target=made_for, insertion=learned.insertion, kernel=kernel, metrics=metrics)
    return entry, _owned(own)


@torch.inference_mode()
def _probe(clone: Clone, adapter: AdapterConfig, reader: Reader, module: CloneModule | None) -> dict[str, Tensor]:
    """An input and what is made of it; the clone built back must answer as the learned ``module`` does, if one is given."""
    size, point = reader.preprocess.input_size, adapter.insertion.name
    image = probe.pattern(2, size[0])
    feature = reader(probe.enlarge(image, size).to(next(reader.model.parameters()).device), [point])[1][point].cpu()
    logits = clone.build(adapter, clone.config.preprocess)[0](feature)[0]
    if module is not None and not _close(logits, module(feature).logits):
        raise SourceError("the pruned tail cannot be rebuilt from its configuration; please report this architecture")
    recorded = {"image": image, "feature": feature, "logits": logits}
    return {f"{adapter.name}/{name}": value.clone() for name, value in recorded.items()}


@torch.no_grad()
def _check_rebuilt(described: SourceConfig, networks: Networks) -> None:
    """The architecture built from its name and arguments must answer as the source does."""
    arguments = described.arguments()
    body = networks.source.model
    try:
        rebuilt = Architecture(described.architecture, arguments, networks.source.preprocess.input_size).model
    except (TypeError, ValueError, RuntimeError, AssertionError, InsertionPointError) as error:
        raise SourceError(f"timm cannot build {described.architecture!r} with {arguments} ({error})") from error
    given, made = (
        {name: list(tensor.shape) for name, tensor in tensors_of(model).items()} for model in (body, rebuilt)
    )
    differing = [name for name in sorted({*given, *made}) if given.get(name) != made.get(name)]
    if differing:
        name = differing[0]
        what = f"{len(differing)} tensors differ, {name!r} is {given.get(name)} there and {made.get(name)} here"
    else:
        put_tensors(rebuilt, tensors_of(body))
        example = torch.randn(1, *networks.source.preprocess.input_size, device=networks.device)
        if _close(rebuilt.eval()(example), body(example)):
            return
        what = "it answers otherwise"
    raise SourceError(
        f"timm's {described.architecture!r} with {described.model_args} is not the source ({what}): it was built"
        " with other arguments. Name them, as in source_args={'pad_type': 'same'}"
    )


def _close(output: Tensor, expected: Tensor) -> bool:
    """Equal but for the order in which a differently laid out weight is summed."""
    return float((output - expected).abs().max()) <= 1e-4 * (1 + float(expected.abs().max()))


def _owned(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in tensors_of(module).items()}
