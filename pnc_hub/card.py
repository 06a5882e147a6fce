"""Every word of a clone's Hub page. Metadata go through ModelCardData; class names are text, never markup."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from pnc_hub import report
from pnc_hub.config import LIBRARY_NAME

if TYPE_CHECKING:
    from pnc_hub.artifact import Clone

# Licence identifiers that the Hub knows and timm uses; any other is published as "other".
_LICENSES = {
    "apache-2.0",
    "mit",
    "bsd-3-clause",
    "bsd-2-clause",
    "cc-by-4.0",
    "cc-by-sa-4.0",
    "cc-by-nc-4.0",
    "cc0-1.0",
}


def render(clone: Clone) -> str:
    """The README.md of a clone: YAML metadata and a page that says what it adds, how to attach it, what was measured."""
    return f"---\n{metadata(clone).to_yaml()}\n---\n\n{_body(clone)}"


def metadata(clone: Clone) -> Any:
    """The card's ``ModelCardData``: tags to find it by, the models it belongs to, the measured results."""
    from huggingface_hub import EvalResult, ModelCardData

    config = clone.config
    targets = [adapter.target for adapter in config.adapters if adapter.target is not None]
    named = [config.source.hub_id, *(target.hub_id for target in targets)]
    models = list(dict.fromkeys(name for name in named if name))
    metrics = clone.report.metrics
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
        base_model=models or None,
        base_model_relation="adapter" if models else None,
        metrics=["accuracy"],
        model_name=f"Clone of {config.source.architecture}" if results else None,
        eval_results=results or None,
        tags=[
            LIBRARY_NAME,
            "partial-network-cloning",
            "timm",
            "arxiv:2303.10597",
            *(f"pnc-class:{label}" for label in config.labels),
            *dict.fromkeys(f"pnc-target:{target.architecture}" for target in targets if target.architecture),
        ],
    )


def _body(clone: Clone) -> str:
    config, metrics = clone.config, clone.report.metrics
    rows = "\n".join(f"| {index} | {_text(label)} |" for index, label in enumerate(config.labels))
    targets = "\n".join(
        f"| {_text(adapter.name)} | {_text((adapter.target and adapter.target.architecture) or 'any timm classifier')}"
        f" | `{adapter.insertion.module}` |"
        for adapter in config.adapters
    )
    measured = "\n".join(
        f"| {text} | {_text(report.shown(metrics.get(name), kind))} |" for name, text, kind in report.ROWS
    )
    origin = config.source.hub_id or config.source.architecture
    return f"""# {len(config.labels)} classes cloned from {_text(origin)}

This is a *clone*: the part of `{config.source.architecture}` that knows the classes below. Attached to another timm
classifier it adds them as new logits; the classifier itself is not changed and is what it was once the clone is detached
(partial network cloning, [arXiv:2303.10597](https://arxiv.org/abs/2303.10597)).

```python
import pnc_hub, timm

model = timm.create_model("...", pretrained=True).eval()
with pnc_hub.attach(model, "user/name@revision") as clone:   # this repository, pinned to a commit
    logits = model(images)                                    # the model's own classes, then those below
```

## Classes it adds

| logit | class |
| --- | --- |
{rows}

## Where it fits

| adapter | target | read at |
| --- | --- | --- |
{targets}

## Measured on held-out images

| | |
| --- | --- |
{measured}

Regime: {_text(report.shown(metrics.get("regime"), "text"))}. Source licence: {_text(config.source.license)}.
Written by pnc_hub {config.pnc_hub_version}.
"""


def _text(value: str) -> str:
    """``value`` as plain text inside a Markdown table cell: punctuation that could be markup is escaped."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~$&@:])", r"\\\1", value)
