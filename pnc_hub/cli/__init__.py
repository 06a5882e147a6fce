"""The command line, ``pnc-hub``.

Exit codes: 0 for done or yes; 1 for an error, or for a check that says no; 2 for a command that was not understood. With
``--json`` the standard output holds one JSON value, or nothing where there was an error; all else that is said, warnings and
progress bars included, goes to the standard error, and progress bars only where that is a terminal.
"""

from __future__ import annotations

import os
import sys
import warnings

import click

from pnc_hub import __version__
from pnc_hub.cli import clones, common, completion, evaluate, learn, predict
from pnc_hub.errors import PncHubError, one_line

# Read by the libraries when they are imported, which they are not yet.
_BARS = ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS")
_GROUPS: dict[str, tuple[click.Command, ...]] = {
    "Learn a clone": (learn.demo, learn.points, learn.clone, learn.port, clones.publish),
    "Find and use clones": (
        clones.search,
        clones.info,
        clones.check,
        clones.verify,
        predict.predict,
        evaluate.evaluate,
    ),
}


class _Commands(click.Group):
    """Lists its commands by purpose, and shows an error as a paragraph and exit code 1."""

    def invoke(self, ctx: click.Context) -> object:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            for category in (FutureWarning, DeprecationWarning):  # for the developers of other libraries
                warnings.simplefilter("ignore", category)
            try:
                return super().invoke(ctx)
            except (click.ClickException, click.Abort, click.exceptions.Exit, BrokenPipeError):
                raise  # click's own, and a reader that has seen enough, which click knows how to leave to
            except Exception as error:
                if ctx.params.get("debug"):
                    raise
                click.echo(_paragraph(error), err=True)
                sys.exit(1)

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        cmd.params.append(common.debug(expose_value=False, callback=_debug_everything, hidden=True))
        super().add_command(cmd, name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, commands in _GROUPS.items():
            rows = [(str(command.name), command.get_short_help_str(formatter.width)) for command in commands]
            with formatter.section(title):
                formatter.write_dl(rows)


def _debug_everything(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    """``--debug`` after the command means the same as before it."""
    if value:
        ctx.find_root().params["debug"] = True


def _paragraph(error: Exception) -> str:
    text = f"{type(error).__name__}: {one_line(error, 10_000)}"
    foreseen = isinstance(error, (PncHubError, OSError, ImportError))
    return text if foreseen else f"{text} (not foreseen: the option --debug shows where it came from)"


def _show_warning(message: Warning | str, *_where: object, **_line: object) -> None:
    click.echo(f"Warning: {one_line(message, 10_000)}", err=True)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, package_name="pnc-hub")
@completion.option
@click.option("--debug", is_flag=True, help="Show where an error came from.")
def main(debug: bool) -> None:
    """Clone what a classifier knows of some classes; attach it to any timm model."""
    if not common.is_watched():
        for name in _BARS:
            os.environ.setdefault(name, "1")


for _commands in _GROUPS.values():
    for _command in _commands:
        main.add_command(_command)
