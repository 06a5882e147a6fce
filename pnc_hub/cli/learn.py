"""Commands that learn: a clone, or an adapter of one for another target; and what may come before."""

from __future__ import annotations

import functools
import shlex
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pnc_hub.cli import classes as names
from pnc_hub.cli import common, completion, models
from pnc_hub.errors import PublishError, TargetError

if TYPE_CHECKING:
    from pnc_hub.hub.clone import Clone
    from pnc_hub.models.insertion import InsertionPoint


@click.command()
@click.option("--output", type=common.FOLDER, default="pnc-demo", show_default=True, help="Where to write.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Makes everything reproducible.")
@common.as_json
def demo(output: Path, seed: int, as_json: bool) -> None:
    """The whole story on handwritten digits: offline, two minutes."""
    from pnc_hub.cli import demo as story

    say = functools.partial(click.echo, err=as_json)
    result = story.run(output, seed, say=say, progress=common.is_watched())
    if as_json:
        common.show(str, lambda: result, as_json)


@click.command()
@click.argument("model", shell_complete=completion.models)
@models.arguments
@common.as_json
def points(model: str, model_args: dict[str, Any], as_json: bool) -> None:
    """List where a clone can be inserted into MODEL, or MODEL be cut.

    MODEL is a name that timm knows, or hf-hub:user/name; its weights are not needed.
    """
    import torch

    from pnc_hub.cloning.named import timm_model
    from pnc_hub.models.skeleton import insertion_points

    with torch.device("meta"):
        built = timm_model(model, TargetError, **model_args)
    points = insertion_points(built)
    common.show(lambda: _points_table(points), lambda: [asdict(point) for point in points], as_json)


def _points_table(points: tuple[InsertionPoint, ...]) -> str:
    lines = [f"{'name':<28}{'channels':>9}{'reduction':>11}  {'layout':<6}{'grid':>10}"]
    for point in points:
        grid = f"{point.grid[0]}x{point.grid[1]}"
        lines.append(f"{point.name:<28}{point.channels:>9}{point.reduction:>11}  {point.layout:<6}{grid:>10}")
    return "\n".join(lines)


_OPTIONS = (
    click.option(
        "--output", required=True, type=common.FOLDER, help="Folder for the clone: new, empty, or a clone to replace."
    ),
    click.option("--report", "page", type=click.Path(dir_okay=False, path_type=Path), help="Also write an HTML page."),
    common.photos("--target-data", help="Photos of the target's classes; they calibrate the gate."),
    click.option(
        "--locality-budget",
        type=click.FloatRange(0, 1, min_open=True, max_open=True),
        help="Share of photos like those of --target-data that may be diverted to the clone.",
    ),
    click.option("--insertion", metavar="MODULE", help="Read the target here; searched for by default."),
    click.option(
        "--target-id",
        metavar="USER/NAME",
        callback=common.hub_id,
        help="Hub id of the target's weights, for the record.",
    ),
    click.option("--batch-size", type=click.IntRange(min=1), help="Photos at a time."),
    common.workers,
    click.option("--seed", type=click.IntRange(min=0), help="Makes everything reproducible."),
    common.cpu,
    common.as_json,
)


def _options(command: Callable[..., None]) -> Callable[..., None]:
    return functools.reduce(lambda decorated, option: option(decorated), reversed(_OPTIONS), command)


@click.command()
@models.named("source", "Model that knows the classes: resnet50.a1_in1k, or hf-hub:user/name.")
@models.named("target", "Model that is to receive them.")
@click.option(
    "--classes",
    "chosen",
    required=True,
    metavar="FILE|NAMES",
    callback=names.parse,
    shell_complete=completion.files,
    help="File with a class a line (label, index, or label and index), or names with commas between.",
)
@common.photos(
    "--data",
    required=True,
    help="Photos of these classes: a folder with a folder per class, a tar file, hfds/user/name ...",
)
@click.option("--keep", type=click.FloatRange(0, 1, min_open=True), help="Largest size, as a share of the source's.")
@click.option("--max-parameters", type=click.IntRange(min=1), help="Largest number of parameters.")
@click.option("--max-macs", type=click.FloatRange(0, min_open=True), help="Most multiply-accumulates per image.")
@click.option("--cut", metavar="MODULE", help="Cut the source after this; searched for by default.")
@click.option("--epochs", type=click.FloatRange(min=0), help="Passes of training; 0: in closed form alone.")
@click.option("--flip/--no-flip", default=None, help="Whether mirrored photos are of the same class (not for text).")
@click.option("--universal/--no-universal", default=None, help="Whether to fit other targets too (a larger folder).")
@click.option(
    "--source-id", metavar="USER/NAME", callback=common.hub_id, help="Hub id of the source's weights, for the record."
)
@click.option("--license", help="Licence of the source's weights, where timm does not know it.")
@_options
def clone(
    source: models.Model,
    target: models.Model,
    chosen: names.Classes,
    data: str,
    output: Path,
    page: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Learn a clone of classes of a source for a target.

    \b
    pnc-hub clone --source hf-hub:user/bird-classifier --target resnet50.a1_in1k
      --classes birds.txt --data photos/ --output clone-birds/

    Neither model is changed. Options that are not given are chosen by the method; what they came to is in the report.
    """  # noqa: D301  (the backslash is for click, which takes it for: keep these lines)
    from pnc_hub.cloning.learn import clone as learn
    from pnc_hub.cloning.named import named_arguments

    _check_writable(output, page)
    knows, receives = source.build(), target.build()
    budget = _given({what: options.pop(f"max_{what}") for what in ("parameters", "macs")})
    given = {
        "budget": budget or None,
        "source_args": {**named_arguments(str(source.name)), **source.structure},
        "source_id": source.hub_id(knows),
        "target_id": target.hub_id(receives),
        "license": source.license(knows),
        **_given(options),
    }
    learned = learn(knows, receives, chosen, data, **given, progress=common.is_watched())
    _write(learned, output, page, as_json)


@click.command()
@common.clone_argument
@models.named("target", "One more model that is to receive it.")
@common.photos(
    "--data",
    required=True,
    help="Photos, some of them of cloned classes; the source says what they show, they need no labels.",
)
@click.option("--name", help="Of the adapter; by default the target's architecture and fingerprint.")
@_options
def port(
    clone: str, target: models.Model, data: str, output: Path, page: Path | None, as_json: bool, **options: Any
) -> None:
    """Fit an adapter of CLONE for one more target.

    CLONE is user/name, user/name@revision or a folder; it needs the source's first layers, which clones have unless they were
    made with --no-universal. The classes stay the same. --output may be the folder that CLONE is in.
    """
    from pnc_hub.cloning.port import port as extend

    _check_writable(output, page)
    receives = target.build()
    given = {"target_id": target.hub_id(receives), **_given(options)}
    ported = extend(clone, receives, data, **given, progress=common.is_watched())
    _write(ported, output, page, as_json)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """The options that were given; the library has defaults for the others."""
    return {name: value for name, value in options.items() if value is not None}


def _check_writable(output: Path, page: Path | None) -> None:
    """Raise ``PublishError`` now, not after an hour of learning, if the result could not be written."""
    from pnc_hub.artifact.storage import is_replaceable

    if output.exists() and not is_replaceable(output):
        raise PublishError(f"{output} holds something else than a clone; choose a new or empty folder as --output")
    if page is not None and page.resolve().is_relative_to(output.resolve()):
        raise PublishError(f"{output} is for the files of a clone alone; write the report {page.name} beside it")
    for parent in (path.resolve().parent for path in (output, page) if path is not None):
        existing = next(folder for folder in (parent, *parent.parents) if folder.exists())
        try:
            with tempfile.TemporaryDirectory(dir=existing):
                pass
        except OSError as error:
            raise PublishError(f"nothing can be written to {parent} ({error}); choose another folder") from error


def _write(clone: Clone, output: Path, page: Path | None, as_json: bool) -> None:
    """Save the clone, in one of the processes if there are several, and show what was measured."""
    from accelerate import PartialState

    if not PartialState().is_main_process:
        return
    folder = clone.save_pretrained(output)
    if page is not None:
        page.parent.mkdir(parents=True, exist_ok=True)
        clone.report.save(page)
    written = [str(path) for path in (folder, page) if path is not None]
    common.show(
        lambda: "\n".join([str(clone.report), "", f"Written: {', '.join(written)}", *_next(clone, folder)]),
        lambda: {
            "folder": str(folder),
            "report": None if page is None else str(page),
            "labels": clone.labels,
            "metrics": clone.report.metrics,
            "ported": clone.report.ported,
            "curve": clone.curve,
        },
        as_json,
    )


def _next(clone: Clone, folder: Path) -> Iterable[str]:
    target, name = clone.config.adapters[0].target, shlex.quote(str(folder))
    model = "" if target is not None and target.hub_id else " --model TARGET"
    yield f"Try it: pnc-hub predict --clone {name}{model} PHOTO"
    yield f"Publish it: pnc-hub publish {name} USER/NAME"
