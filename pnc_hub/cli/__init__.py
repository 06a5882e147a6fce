"""The command line, ``pnc-hub``.

Exit codes: 0 for done or yes; 1 for an error, or for a check that says no; 2 for a command that was not understood.
"""

from __future__ import annotations

import sys

import click

from pnc_hub import __version__
from pnc_hub.cli import examine, hub, local
from pnc_hub.errors import PncHubError


class _Commands(click.Group):
    """Shows an error of ours as a paragraph and exit code 1; ``--debug`` shows where it came from."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except PncHubError as error:
            if ctx.params.get("debug"):
                raise
            click.echo(f"{type(error).__name__}: {' '.join(str(error).split())}", err=True)
            sys.exit(1)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, package_name="pnc-hub")
@click.option("--debug", is_flag=True, help="Show where an error came from.")
def main(debug: bool) -> None:
    """Clone what a classifier knows about some classes and attach it to any timm model."""


for _module in (local, hub, examine):
    for _command in _module.COMMANDS:
        main.add_command(_command)
