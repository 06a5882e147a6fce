"""The command line, ``pnc-hub``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from pnc_hub import __version__
from pnc_hub.errors import PncHubError


class _Commands(click.Group):
    """Shows an error of ours as a paragraph and exit code 1; ``--debug`` shows where it came from."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except PncHubError as error:
            if ctx.params.get("debug"):
                raise
            click.echo(f"{type(error).__name__}: {error}", err=True)
            sys.exit(1)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, package_name="pnc-hub")
@click.option("--debug", is_flag=True, help="Show where an error came from.")
def main(debug: bool) -> None:
    """Clone what a classifier knows about some classes and attach it to any timm model."""


@main.command()
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


@main.command()
@click.argument("model")
def points(model: str) -> None:
    """List where a clone can be inserted into MODEL (a timm name), or where it can be cut."""
    import timm
    import torch

    from pnc_hub.points import insertion_points

    try:
        with torch.device("meta"):
            built = timm.create_model(model)
    except RuntimeError as error:
        raise click.ClickException(f"{error}; pnc-hub takes the names that timm.list_models() gives") from error
    found = insertion_points(built)
    click.echo(f"{'name':<28}{'channels':>9}{'reduction':>11}  {'layout':<6}{'grid':>10}")
    for point in found:
        grid = f"{point.grid[0]}x{point.grid[1]}"
        click.echo(f"{point.name:<28}{point.channels:>9}{point.reduction:>11}  {point.layout:<6}{grid:>10}")
