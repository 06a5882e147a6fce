"""Models that are given by name, and what timm knows of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import timm
from timm.models import load_model_config_from_hf, parse_model_name
from torch import nn

from pnc_hub.errors import PncHubError, SourceError, one_line
from pnc_hub.models.classifier import pretrained_cfg


def named_model(
    model: nn.Module | str, hub_id: str | None, license: str | None, kind: type[PncHubError] = SourceError
) -> tuple[nn.Module, str | None, str | None]:
    """(model, Hub id, licence); one that is given by name is loaded, pretrained, and timm knows the rest of it.

    Raises:
        SourceError: timm cannot load it; ``kind``, if another is given.
    """
    if not isinstance(model, (str, Path)):
        return model, hub_id, license
    loaded = timm_model(str(model), kind, pretrained=True)
    return loaded, hub_id or hub_id_of(str(model), loaded), license or pretrained_cfg(loaded).get("license")


def timm_model(name: str, kind: type[PncHubError], hint: str | None = None, **options: Any) -> nn.Module:
    """The model of this name in eval mode.

    Raises:
        PncHubError: of this ``kind``, with what timm finds wrong, and what to do: ``hint``, or which names there are.
    """
    hint = hint or "give a name that timm.list_models() has, hf-hub:user/name, local-dir:FOLDER, or in Python a model"
    try:
        return timm.create_model(name, **options).eval()
    except Exception as error:  # timm, torch, safetensors and the Hub's client each raise errors of their own
        raise kind(f"timm cannot make {name!r} ({type(error).__name__}: {one_line(error, 500)}); {hint}") from error


def hub_id_of(name: str, model: nn.Module) -> str | None:
    """Where the weights of a model of this name are on the Hub."""
    # a folder may hold the configuration of what its weights were made from
    hub_id: str | None = None if name.startswith("local-dir:") else pretrained_cfg(model).get("hf_hub_id")
    return hub_id


def named_arguments(name: str) -> dict[str, Any]:
    """Constructor arguments that the configuration beside a model's weights asks for, for ``hf-hub:`` and ``local-dir:`` names.

    Raises:
        SourceError: there is no such configuration.
    """
    scheme, location = parse_model_name(name)
    try:
        if scheme == "hf-hub":
            arguments = load_model_config_from_hf(location)[2]
        elif scheme == "local-dir":
            arguments = json.loads((Path(location) / "config.json").read_text(encoding="utf-8")).get("model_args")
        else:
            return {}
    except Exception as error:  # as above
        raise SourceError(
            f"the configuration of {name!r} cannot be read ({type(error).__name__}: {one_line(error, 500)}); check the name"
        ) from error
    # what is read off the model itself
    return {key: value for key, value in (arguments or {}).items() if key not in ("num_classes", "in_chans")}
