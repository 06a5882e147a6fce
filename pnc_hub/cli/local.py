"""Commands that need nothing but this machine."""

from __future__ import annotations

import functools
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pnc_hub.cli import common, completion, models
from pnc_hub.errors import TargetError

if TYPE_CHECKING:
    from pnc_hub.models.insertion import InsertionPoint


@click.command()
@click.option("--output", type=common.FOLDER, default="pnc-demo", show_default=True, help="Where to write.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Makes everything reproducible.")
@common.as_json
def demo(output: Path, seed: int, as_json: bool) -> None:
    """The whole story on handwritten digits: offline, two minutes."""
    from pnc_hub.cli import demo as story

    say = functools.partial(click.echo, err=as_json)
    result = story.run(output, seed, say=say, progress=common.is_watched())
    if as_json:
        common.show(str, lambda: result, as_json)


@click.command()
@click.argument("model", shell_complete=completion.models)
@models.arguments
@common.as_json
def points(model: str, model_args: dict[str, Any], as_json: bool) -> None:
    """List where a clone can be inserted into MODEL, or MODEL be cut.

    MODEL is a name that timm knows, or hf-hub:user/name; its weights are not needed.
    """
    import torch

    from pnc_hub.cloning.named import timm_model
    from pnc_hub.models.skeleton import insertion_points

    with torch.device("meta"):
        built = timm_model(model, TargetError, **model_args)
    points = insertion_points(built)
    common.show(lambda: _table(points), lambda: [asdict(point) for point in points], as_json)


def _table(points: tuple[InsertionPoint, ...]) -> str:
    lines = [f"{'name':<28}{'channels':>9}{'reduction':>11}  {'layout':<6}{'grid':>10}"]
    for point in points:
        grid = f"{point.grid[0]}x{point.grid[1]}"
        lines.append(f"{point.name:<28}{point.channels:>9}{point.reduction:>11}  {point.layout:<6}{grid:>10}")
    return "\n".join(lines)
