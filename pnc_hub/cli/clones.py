"""Commands that publish clones, find them, and look at one."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NoReturn

import click

from pnc_hub.cli import common, completion, models

if TYPE_CHECKING:
    from pnc_hub.hub.clone import Clone


@click.command()
@click.argument("folder", shell_complete=completion.folders)
@click.argument("repo_id", metavar="USER/NAME")
@click.option("--private/--public", default=None, help="Visibility, where the repository is new.")
@click.option("--revision", help="Branch to commit to.")
@click.option("--create-pr", is_flag=True, help="Open a pull request instead of committing.")
@click.option("--message", "commit_message", help="Title of the commit.")
@click.option(
    "--dataset", "datasets", multiple=True, help="What the source was trained on, for the page; may be repeated."
)
@common.as_json
def publish(folder: str, repo_id: str, as_json: bool, **options: Any) -> None:
    """Publish the clone in FOLDER as USER/NAME on the Hub.

    That is one commit, and what is there already is not uploaded again. The repository is created if it is not there. Log in
    first, with `hf auth login`.
    """
    commit = common.read(folder).push_to_hub(repo_id, **options)
    published = {"repo_id": repo_id, "revision": commit.oid, "url": commit.commit_url, "pull_request": commit.pr_url}
    lines = [f"Published {repo_id}@{commit.oid}", commit.pr_url or commit.commit_url]
    common.show(lambda: "\n".join(lines), lambda: published, as_json)


@click.command()
@click.argument("classes", nargs=-1, metavar="[CLASS]...")
@click.option(
    "--target", shell_complete=completion.models, help="What it is to be attached to: resnet50, or resnet50.a1_in1k."
)
@click.option("--source", help="Hub id of the model that it was cloned from.")
@click.option("--author", help="User or organisation.")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="How many to list, at most.")
@common.as_json
def search(as_json: bool, **wanted: Any) -> None:
    """Find clones on the Hub that add every CLASS."""
    from pnc_hub.hub import search as hub_search

    try:
        clones = hub_search.search(**wanted)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    common.show(
        lambda: hub_search.table(clones) if clones else "No clone on the Hub meets all of that.",
        lambda: [asdict(info) for info in clones],
        as_json,
    )


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
    _show_verdict(result, result.attaches, as_json)


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
    _show_verdict(result, result.passed, as_json)


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


def _show_verdict(result: Any, yes: bool, as_json: bool) -> NoReturn:
    """Print the result of a check, and leave with 0 for yes and 1 for no."""
    common.show(lambda: str(result), result.to_dict, as_json)
    sys.exit(0 if yes else 1)


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
        rows += [(f"adapter {adapter.name}", f"{fits or 'a model without a name'}, read at {adapter.insertion.name}")]
    return "\n".join([listed(name, rows), "", str(clone.report)])
