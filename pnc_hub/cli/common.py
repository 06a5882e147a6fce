"""What several commands have in common: options, a model that is named on the command line, and how results are printed."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pnc_hub.cli import completion

if TYPE_CHECKING:
    import torch
    from tqdm.auto import tqdm

    from pnc_hub.hub.clone import Clone

debug = functools.partial(click.Option, ["--debug"], is_flag=True, help="Show where an error came from.")
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
revision = click.option("--revision", help="Branch, tag, pull request or commit on the Hub.")
clone_argument = click.argument("clone", shell_complete=completion.folders)
cpu = click.option(
    "--device", type=click.Choice(["cpu"]), help="Stay off an accelerator; one is used where there is one."
)
workers = click.option("--workers", type=click.IntRange(min=0), default=0, help="Processes that load images.")


clone_option = functools.partial(click.option, "--clone", required=True, shell_complete=completion.folders)
photos = functools.partial(click.option, metavar="PHOTOS", shell_complete=completion.folders)

FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def show(text: Callable[[], str], value: Callable[[], Any], as_json: bool) -> None:
    """Print ``text`` for a person, or ``value`` as JSON, which has no NaN and no infinity: null stands for them."""
    if not as_json:
        click.echo(text())
        return
    plain = json.loads(json.dumps(value(), default=str), parse_constant=lambda _: None)
    click.echo(json.dumps(plain, indent=2, ensure_ascii=False))


def read(clone: str, revision: str | None = None) -> Clone:
    """The clone of this name, or in this folder."""
    from pnc_hub import Clone

    return Clone.from_pretrained(clone, revision=revision)


def is_watched() -> bool:
    """Whether somebody sees a progress bar; in a file or a pipe it would be in the way."""
    return sys.stderr.isatty()


def bar(what: str, photos: int, each: Iterable[Any] | None = None) -> tqdm[Any]:
    """A progress bar over ``each``, or one to be updated: removed when it is done, and shown only on a terminal."""
    from tqdm.auto import tqdm

    return tqdm(each, total=photos, desc=what, unit="photo", disable=not is_watched(), leave=False)


def hub_id(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    """Refuse what no artifact can record, before anything is learned."""
    from pnc_hub.artifact import checks

    try:
        if value is not None:
            checks.hub_id(value)
    except ValueError as error:
        raise click.BadParameter(f"user/name is needed ({error})") from error
    return value


def device(chosen: str | None) -> torch.device:
    """The accelerator of this machine, unless there is none or ``chosen`` is another."""
    import torch

    own = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return torch.device(chosen or own or "cpu")
