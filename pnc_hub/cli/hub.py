"""Commands that publish clones and find them."""

from __future__ import annotations

import click

from pnc_hub.cli import common, completion


@click.command()
@click.argument("folder", shell_complete=completion.folders)
@click.argument("repo_id", metavar="USER/NAME")
@click.option("--private/--public", default=None, help="Visibility, where the repository is new.")
@click.option("--revision", help="Branch to commit to.")
@click.option("--create-pr", is_flag=True, help="Open a pull request instead of committing.")
@click.option("--message", help="Title of the commit.")
@click.option(
    "--dataset", "datasets", multiple=True, help="What the source was trained on, for the page; may be repeated."
)
@common.as_json
def publish(
    folder: str,
    repo_id: str,
    private: bool | None,
    revision: str | None,
    create_pr: bool,
    message: str | None,
    datasets: tuple[str, ...],
    as_json: bool,
) -> None:
    """Publish the clone in FOLDER as USER/NAME on the Hub.

    That is one commit, and what is there already is not uploaded again. The repository is created if it is not there. Log in
    first, with `hf auth login`.
    """
    commit = common.read(folder).push_to_hub(
        repo_id,
        private=private,
        revision=revision,
        create_pr=create_pr,
        commit_message=message,
        datasets=datasets,
    )
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
def search(
    classes: tuple[str, ...], target: str | None, source: str | None, author: str | None, limit: int, as_json: bool
) -> None:
    """Find clones on the Hub that add every CLASS."""
    from dataclasses import asdict

    from pnc_hub.hub.search import search as find
    from pnc_hub.hub.search import table

    try:
        clones = find(classes=classes, target=target, source=source, author=author, limit=limit)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    common.show(
        lambda: table(clones) if clones else "No clone on the Hub meets all of that.",
        lambda: [asdict(info) for info in clones],
        as_json,
    )
