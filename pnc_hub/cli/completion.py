"""Completion of commands, options and the values that are quick to find, by click's own means."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import click
from click.shell_completion import CompletionItem, get_completion_class

SHELLS = ("bash", "zsh", "fish")


def _print_script(ctx: click.Context, _param: click.Parameter, shell: str | None) -> None:
    kind = get_completion_class(shell) if shell else None
    if kind is not None and not ctx.resilient_parsing:
        click.echo(kind(ctx.command, {}, "pnc-hub", "_PNC_HUB_COMPLETE").source())
        ctx.exit()


option = click.option(
    "--completion",
    type=click.Choice(SHELLS),
    is_eager=True,
    expose_value=False,
    callback=_print_script,
    help='Set up: eval "$(pnc-hub --completion bash)"',
)


# left to the shell
folders, files = click.Path(file_okay=False).shell_complete, click.Path().shell_complete


def models(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of timm's architectures; once one is written, with the weights there are of it."""
    names = (name for name in model_names() if name.startswith(incomplete) and ("." not in name or "." in incomplete))
    return [CompletionItem(name) for name in sorted(names)]


def model_names() -> set[str]:
    """What timm's source text registers. Importing timm takes seconds, which nobody waits for after a key."""
    spec = find_spec("timm")
    names: set[str] = set()
    for path in Path(spec.origin).parent.glob("models/*.py") if spec and spec.origin else ():
        text = path.read_text(encoding="utf-8")
        names.update(re.findall(r"^def ([a-z]\w*)\(pretrained", text, re.MULTILINE))
        names.update(re.findall(r"^\s+['\"](\w+\.[\w.]+)['\"]: _?\w*cfg", text, re.MULTILINE))
    return names
