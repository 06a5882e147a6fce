"""Commands that look at one clone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from pnc_hub.cli import common, models

if TYPE_CHECKING:
    from pnc_hub.hub.clone import Clone


@click.command()
@models.named("model", "", argument=True)
@common.clone_argument
@common.revision
@common.as_json
def check(model: models.Model, clone: str, revision: str | None, as_json: bool) -> None:
    """Say whether CLONE would attach to MODEL, where, and at what cost.

    CLONE is user/name, user/name@revision or a folder; its weights are not downloaded. MODEL is a name that timm knows, with
    timm's pretrained weights, or hf-hub:user/name. Exit code 0 if it would attach, else 1.
    """
    from pnc_hub import check as find_out

    result = find_out(model.build(), clone, revision=revision)
    common.show_verdict(result, result.attaches, as_json)


@click.command()
@common.clone_argument
@common.revision
@common.as_json
def verify(clone: str, revision: str | None, as_json: bool) -> None:
    """Check every file of CLONE and run its probes.

    Nothing is attached to any model. CLONE is user/name, user/name@revision or a folder; all of it is downloaded. Exit code
    0 if it is whole and answers as recorded, else 1.
    """
    from pnc_hub.hub.verification import verify as find_out

    result = find_out(clone, revision=revision)
    common.show_verdict(result, result.passed, as_json)


@click.command()
@common.clone_argument
@common.revision
@common.as_json
def info(clone: str, revision: str | None, as_json: bool) -> None:
    """Show what CLONE adds, where it fits and what was measured.

    CLONE is user/name, user/name@revision or a folder; of it config.json alone is read.
    """
    read = common.read(clone, revision)
    common.show(
        lambda: _page(read),
        lambda: {"repo_id": read.repo_id, "revision": read.revision, "config": read.config.to_dict()},
        as_json,
    )


def _page(clone: Clone) -> str:
    from pnc_hub.report.rows import listed

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
            (f"adapter {adapter.name}", f"{fits or 'a model without a name'}, read at {adapter.insertion.name}")
        )
    return "\n".join([listed(name, rows), "", str(clone.report)])
