"""Models that are given by name, and what timm knows of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import timm
from timm.models import load_model_config_from_hf, parse_model_name
from torch import nn

from pnc_hub.errors import PncHubError, SourceError
from pnc_hub.models.classifier import pretrained_cfg


def named_model(
    model: nn.Module | str, hub_id: str | None, license: str | None, kind: type[PncHubError] = SourceError
) -> tuple[nn.Module, str | None, str | None]:
    """(model, Hub id, licence); one that is given by name is loaded, pretrained, and told what timm knows of it.

    Raises:
        SourceError: timm can not load it; ``kind``, if another is given.
    """
    if not isinstance(model, (str, Path)):
        return model, hub_id, license
    try:
        loaded = timm.create_model(str(model), pretrained=True)
    except Exception as error:  # timm, torch, safetensors and the Hub's client each raise errors of their own
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
        raise kind(
            f"timm can not load {str(model)!r} ({said}). Give a name that timm.list_pretrained() has, hf-hub:user/name,"
            " local-dir:folder, or a model"
        ) from error
    cfg = pretrained_cfg(loaded)
    # a folder may hold the configuration of what its weights were made from
    known = None if str(model).startswith("local-dir:") else cfg.get("hf_hub_id")
    return loaded, hub_id or known, license or cfg.get("license")


def named_arguments(name: str) -> dict[str, Any]:
    """Constructor arguments that the configuration beside a model's weights asks for, for ``hf-hub:`` and ``local-dir:`` names.

    Raises:
        SourceError: there is no such configuration.
    """
    scheme, place = parse_model_name(name)
    try:
        if scheme == "hf-hub":
            arguments = load_model_config_from_hf(place)[2]
        elif scheme == "local-dir":
            arguments = json.loads((Path(place) / "config.json").read_text(encoding="utf-8")).get("model_args")
        else:
            return {}
    except Exception as error:  # as above
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
        raise SourceError(f"the configuration of {name!r} can not be read ({said}); check the name") from error
    # what is read off the model itself
    return {key: value for key, value in (arguments or {}).items() if key not in ("num_classes", "in_chans")}
