"""Every word of a clone's Hub page. Metadata go through ModelCardData; class names are text, never markup."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pnc_hub.artifact import checks, files
from pnc_hub.artifact.config import LIBRARY_NAME, AdapterConfig, CloneConfig
from pnc_hub.hub import download, search
from pnc_hub.report import figures
from pnc_hub.report.rows import classes, rows_of, shown

# Licence identifiers that the Hub knows and timm uses; any other is published as "other".
_LICENSES = {
    *("apache-2.0", "bsd-2-clause", "bsd-3-clause", "mit"),
    *("cc-by-4.0", "cc-by-nc-4.0", "cc-by-sa-4.0", "cc0-1.0"),
}


def page(config: CloneConfig, repo_id: str | None = None) -> dict[str, bytes]:
    """The files of a clone's page: the card, as ``render`` writes it, and the figures that it shows."""
    drawn = {drawing.file: drawing.png() for drawing in _drawings(config).values()}
    return {files.CARD: render(config, repo_id).encode(), **drawn}


def render(config: CloneConfig, repo_id: str | None = None) -> str:
    """The README.md of a clone: YAML metadata and a page that says what it adds, how to attach it, what was measured.

    Args:
        config: the clone's configuration; the sha256 that it records are listed.
        repo_id: where it will be published; by default a placeholder stands for it.
    """
    return f"---\n{metadata(config).to_yaml()}\n---\n\n{_body(config, repo_id or 'user/name')}"


def metadata(config: CloneConfig) -> Any:
    """The card's ``ModelCardData``: tags to find it by, the models it belongs to, the measured results."""
    from huggingface_hub import EvalResult, ModelCardData

    targets = [adapter.target for adapter in config.adapters if adapter.target is not None]
    named = [config.source.hub_id, *(target.hub_id for target in targets)]
    models = list(dict.fromkeys(name for name in named if name))
    metrics = config.adapters[0].metrics
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=f"held-out-{images}",  # those of one type would be listed under one name
            dataset_name=f"held-out images of the {classes}",
            metric_type="accuracy",
            metric_name=f"accuracy of the {classes}",
            metric_value=round(float(metrics[key]), 4),
        )
        for key, images, classes in (("tar", "cloned", "cloned classes"), ("ori", "target", "target's classes"))
        if isinstance(metrics.get(key), (int, float))
    ]
    license_name = config.source.license.lower()
    return ModelCardData(
        library_name=LIBRARY_NAME,
        pipeline_tag="image-classification",
        license=license_name if license_name in _LICENSES else "other",
        license_name=None if license_name in _LICENSES else license_name,
        base_model=models or None,
        base_model_relation="adapter" if models else None,
        datasets=[name for name in _datasets(config) if download.is_repo_id(name)] or None,
        metrics=["accuracy"],
        model_name=f"Clone of {config.source.architecture}" if results else None,
        eval_results=results or None,
        tags=[LIBRARY_NAME, "partial-network-cloning", "timm", "arxiv:2303.10597", *search.tags(config)],
    )


def with_datasets(config: CloneConfig, datasets: Sequence[str]) -> CloneConfig:
    """``config`` with what its publisher says that the source was trained on; Hub ids (``user/name``) are linked.

    Raises:
        ValueError: a name is not a printable text without commas, or all of them are longer than 200 characters.

    Example:
        >>> with_datasets(config, ["ILSVRC/imagenet-1k"])  # doctest: +SKIP
    """
    if any("," in name for name in datasets):
        raise ValueError(f"names of data sets have no commas; received {list(datasets)!r:.200}")
    joined = ", ".join(datasets)
    checks.text(joined)
    first, *others = config.adapters
    return replace(config, adapters=[replace(first, metrics={**first.metrics, "datasets": joined}), *others])


def _datasets(config: CloneConfig) -> list[str]:
    """What was named when each of the adapters was published."""
    named = [adapter.metrics.get("datasets") for adapter in config.adapters]
    return list(
        dict.fromkeys(name for names in named if isinstance(names, str) and names for name in names.split(", "))
    )


def _drawings(config: CloneConfig) -> dict[str, figures.Drawing]:
    """The figures that can be drawn here, by name."""
    return {drawing.name: drawing for drawing in figures.drawings(config)} if figures.can_draw() else {}


def _body(config: CloneConfig, repo_id: str) -> str:
    drawn = _drawings(config)
    use = (_adds(config), _attaching(config, repo_id), _measured(config, drawn), _fits(config, drawn))
    return "\n\n".join([*use, _origin(config), _files(config), f"Written by pnc_hub {config.pnc_hub_version}.\n"])


def _adds(config: CloneConfig) -> str:
    origin = config.source.hub_id or config.source.architecture
    rows = ((index, _text(entry.label), entry.source_index) for index, entry in enumerate(config.classes))
    return f"""# {classes(len(config.labels))} cloned from {_text(origin)}

This is a *clone*: the part of `{config.source.architecture}` that knows the classes below. Attached to another timm
classifier it adds them as new logits; the classifier itself is not changed and is what it was once the clone is detached
(partial network cloning, [arXiv:2303.10597](https://arxiv.org/abs/2303.10597)).

## Classes it adds

{_table(("logit", "class", "in the source"), rows)}"""


def _attaching(config: CloneConfig, repo_id: str) -> str:
    target = config.adapters[0].target
    libraries, model = "pnc_hub, timm", 'timm.create_model("...", pretrained=True).eval()'
    if target is not None and "/" in (target.hub_id or ""):
        model = f'timm.create_model("hf-hub:{target.hub_id}", pretrained=True).eval()'
    elif target is not None:  # the architecture's pretrained weights are another model
        made_for = f"{target.architecture or 'classifier'} with {classes(target.num_classes)}"
        libraries = "pnc_hub"
        model = f"...  # the {made_for} that this clone was made for; its weights are not on the Hub"
    return f"""## How to attach it

```python
import {libraries}

model = {model}
with pnc_hub.attach(model, "{repo_id}@<commit>") as clone:
    logits = model(images)  # the model's own classes, then those above
```

`<commit>` is the full sha of a commit of this repository. A page cannot name the commit that it is part of; the list of
commits does, and so does `pnc_hub.attach(model, "{repo_id}").clone.revision`. What is pinned is then always the same files,
and those in the cache are used without asking the Hub; their sha256 are below. A tag (`"{repo_id}@v1"`) can be moved."""


def _measured(config: CloneConfig, drawn: Mapping[str, figures.Drawing]) -> str:
    metrics = config.adapters[0].metrics
    value = {name: _value(metrics.get(name), "percent") for name in _ACCURACIES}
    alone = "nothing to choose among" if len(config.labels) == 1 else value["source_alone"]
    rows = (
        ("the target's classes", value["target_alone"], value["ori"]),
        ("the cloned classes (alone: among them only)", alone, value["tar"]),
        ("the cloned classes (alone: among all the source's)", value["source_alone_among_all"], value["tar"]),
        ("both, weighted by numbers of classes", "not measured", value["avg"]),
    )
    others = (
        (text, _value(metrics.get(name), kind)) for name, text, kind in rows_of(metrics) if name not in _ACCURACIES
    )
    return f"""## Measured on held-out images

{_table(("accuracy on", "the network that knows them, alone", "target with the clone"), rows)}
{_figures(drawn, "accuracy", "confusion")}
{_table(("locality, size and cost", ""), others)}
{_figures(drawn, "reliability", "kept")}

Regime: {_value(metrics.get("regime"), "text")}. With the clone attached every image is answered among old and new classes
together, with no hint which it shows."""


def _fits(config: CloneConfig, drawn: Mapping[str, figures.Drawing]) -> str:
    adapters = config.adapters
    rows = (
        (
            _text(adapter.name),
            _text((adapter.target and (adapter.target.hub_id or adapter.target.architecture)) or "any timm classifier"),
            f"`{adapter.insertion.name}`",
            *(_value(adapter.metrics.get(name), "percent") for name in ("target_alone", "ori")),
            _knows(adapter),
            _value(adapter.metrics.get("diverted"), "percent"),
        )
        for adapter in adapters
    )
    titles = ("adapter", "target", "read at", "its classes, alone", "with the clone", "cloned classes", "diverted")
    shown = (f"{kind}-{adapter.name}" for adapter in adapters for kind in ("insertion", "gate"))
    return f"""## Where it fits

{_table(titles, rows)}
{_figures(drawn, *shown)}
A target is recognised by its weights before the insertion point. Targets that the clone was ported to had images without
labels: for them "as the source" is the share of images of cloned classes that are answered as the source answers them."""


def _origin(config: CloneConfig) -> str:
    source = config.source
    rows = [("source", _text(source.hub_id or source.architecture), _text(source.license))]
    rows += [
        ("target", _text(adapter.target.hub_id or adapter.target.architecture or adapter.name), _license_of(adapter))
        for adapter in config.adapters
        if adapter.target is not None
    ]
    named = ", ".join(map(_text, _datasets(config))) or "not named by the publisher"
    return f"""## Origin and licences

{_table(("", "weights", "licence"), rows)}

The clone is a part of the source's weights and has their licence. No weights of a target are in these files; adapters and
gates were fitted to what the targets make of images. Training data of the source: {named}."""


def _files(config: CloneConfig) -> str:
    rows = ((f"`{file}`", f"`{digest}`") for file, digest in sorted(config.files.items()))
    return f"""## Files

{_table(("file", "sha256"), rows)}

Nothing in these files is executed: they are numbers (safetensors) and one description (`config.json`)."""


_ACCURACIES = ("target_alone", "ori", "source_alone", "source_alone_among_all", "tar", "avg")


def _knows(adapter: AdapterConfig) -> str:
    if "agreement" in adapter.metrics:
        return f"{_value(adapter.metrics['agreement'], 'percent')} as the source"
    return _value(adapter.metrics.get("tar"), "percent")


def _license_of(adapter: AdapterConfig) -> str:
    named = adapter.metrics.get("target_license")
    return _text(named) if isinstance(named, str) and named else "not recorded"


def _figures(drawn: Mapping[str, figures.Drawing], *names: str) -> str:
    """Those of ``names`` that there are, each with what it shows and how to read it."""
    figures_of = (drawn[name] for name in names if name in drawn)
    return "".join(f"\n![{_text(one.alt)}]({one.file})\n\n{_text(one.note)}\n" for one in figures_of)


def _table(titles: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Cells are Markdown already."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _value(value: Any, kind: str) -> str:
    return _text(shown(value, kind))


def _text(value: str) -> str:
    """``value`` as plain text inside a Markdown table cell: punctuation that could be markup is escaped."""
    # nothing that leaves the line or turns it round gets here from a file; what was set in memory may
    value = "".join(character if character.isprintable() else f"\\u{ord(character):04x}" for character in value)
    value = re.sub(r"([\\`*_{}\[\]<>()#+!|~$&@:])", r"\\\1", value)
    return re.sub(r"(?i)\b(www)\.", r"\1\\.", value)  # some renderers make links of these
