"""Commands that need nothing but this machine."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from pnc_hub.cli import common


@click.command()
@click.option(
    "--output", type=click.Path(path_type=Path), default="pnc-demo", show_default=True, help="Where to write."
)
@click.option("--seed", default=0, show_default=True, help="Makes everything reproducible.")
def demo(output: Path, seed: int) -> None:
    """The whole story on handwritten digits: offline, in about two minutes."""
    try:
        from pnc_hub import demo as story
    except ModuleNotFoundError as error:
        raise click.ClickException(str(error)) from error
    story.run(output, seed, say=click.echo, progress=sys.stderr.isatty())


@click.command()
@click.argument("model")
def points(model: str) -> None:
    """List where a clone can be inserted into MODEL (a timm name), or where it can be cut."""
    import torch

    from pnc_hub.points import insertion_points

    with torch.device("meta"):
        built = common.timm_model(model)
    found = insertion_points(built)
    click.echo(f"{'name':<28}{'channels':>9}{'reduction':>11}  {'layout':<6}{'grid':>10}")
    for point in found:
        grid = f"{point.grid[0]}x{point.grid[1]}"
        click.echo(f"{point.name:<28}{point.channels:>9}{point.reduction:>11}  {point.layout:<6}{grid:>10}")


COMMANDS = (demo, points)
