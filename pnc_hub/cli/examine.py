"""Commands that look at one clone."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from pnc_hub.cli import common

if TYPE_CHECKING:
    from pnc_hub.artifact import Clone


@click.command()
@click.argument("model")
@click.argument("clone")
@common.revision
@click.option("--checkpoint", type=click.Path(exists=True, dir_okay=False), help="Weights of MODEL, if not timm's own.")
@click.option("--model-args", default="{}", metavar="JSON", help="Arguments of MODEL, such as '{\"num_classes\": 10}'.")
@common.as_json
def check(model: str, clone: str, revision: str | None, checkpoint: str | None, model_args: str, as_json: bool) -> None:
    """Would CLONE attach to MODEL? Exit code 0 if so, else 1.

    CLONE is user/name, user/name@revision or a folder; its weights are not downloaded. MODEL is a name that timm knows, with
    timm's pretrained weights, or hf-hub:user/name.
    """
    from pnc_hub import check as find_out

    try:
        arguments = json.loads(model_args)
        if not isinstance(arguments, dict):
            raise ValueError("not an object")
    except ValueError as error:
        raise click.BadParameter(f"a JSON object is needed ({error})", param_hint="--model-args") from error
    weights = {"checkpoint_path": checkpoint} if checkpoint else {"pretrained": True}
    found = find_out(common.timm_model(model, **weights, **arguments), clone, revision=revision)
    common.show(lambda: str(found), found.to_dict, as_json)
    sys.exit(0 if found.attaches else 1)


@click.command()
@click.argument("clone")
@common.revision
@common.as_json
def verify(clone: str, revision: str | None, as_json: bool) -> None:
    """Check every file of CLONE and run its probes, without attaching it. Exit code 1 if anything fails.

    CLONE is user/name, user/name@revision or a folder; all of it is downloaded.
    """
    from pnc_hub.verification import verify as find_out

    found = find_out(clone, revision=revision)
    common.show(lambda: str(found), found.to_dict, as_json)
    sys.exit(0 if found.passed else 1)


@click.command()
@click.argument("clone")
@common.revision
@common.as_json
def info(clone: str, revision: str | None, as_json: bool) -> None:
    """Show what CLONE adds, where it fits and what was measured.

    CLONE is user/name, user/name@revision or a folder; of it config.json alone is read.
    """
    from pnc_hub import Clone

    found = Clone.from_pretrained(clone, revision=revision)
    common.show(
        lambda: _page(found),
        lambda: {"repo_id": found.repo_id, "revision": found.revision, "config": found.config.to_dict()},
        as_json,
    )


def _page(clone: Clone) -> str:
    config = clone.config
    name = f"{clone.repo_id}@{clone.revision}" if clone.revision else str(clone.repo_id)
    rows: list[tuple[str, Any]] = [
        ("source", config.source.hub_id or config.source.architecture),
        ("licence of the source", config.source.license),
        ("written by", f"pnc_hub {config.pnc_hub_version}, format version {config.format_version}"),
    ]
    for adapter in config.adapters:
        fits = "any timm classifier" if adapter.target is None else adapter.target.hub_id or adapter.target.architecture
        rows.append(
            (f"adapter {adapter.name}", f"{fits or 'a model without a name'}, read at {adapter.insertion.module}")
        )
    return "\n".join([name, *(f"  {text:<44}{value}" for text, value in rows), "", str(clone.report)])


COMMANDS = (check, verify, info)
