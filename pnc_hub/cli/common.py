"""What several commands have in common."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from torch import nn

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
revision = click.option("--revision", help="Branch, tag, pull request or commit on the Hub.")


def show(text: Callable[[], str], value: Callable[[], Any], as_json: bool) -> None:
    """Print ``text`` for a person, or ``value`` as JSON."""
    click.echo(json.dumps(value(), indent=2, ensure_ascii=False, default=str) if as_json else text())


def timm_model(name: str, **options: Any) -> nn.Module:
    """The model of this name, with whatever timm finds wrong as one paragraph."""
    import timm

    from pnc_hub.errors import TargetError

    try:
        return timm.create_model(name, **options).eval()
    except Exception as error:  # timm, torch and the Hub's client each raise errors of their own
        said = " ".join(str(error).split())[:500] or type(error).__name__
        raise TargetError(
            f"timm can not make {name!r} ({said}); give a name that timm.list_models() lists, or hf-hub:user/name"
        ) from error
