"""``pnc-hub predict``: what photos show, and which of the classes come from a clone."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pnc_hub.cli import classes, common, models

if TYPE_CHECKING:
    from torch import nn

    from pnc_hub.cloning.images.files import ImageFiles
    from pnc_hub.hub.clone import Clone


@click.command()
@click.argument("photos", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@common.clone_option(multiple=True, help="user/name, user/name@revision or a folder; may be repeated.")
@models.of_clone
@click.option(
    "--labels",
    type=common.FILE,
    callback=classes.labels,
    help="File with the names of the model's own classes, one a line, where timm does not know them.",
)
@click.option("--top", type=click.IntRange(min=1), default=5, show_default=True, help="How many classes to show.")
@common.cpu
@common.as_json
def predict(
    photos: tuple[Path, ...],
    clone: tuple[str, ...],
    model: models.Model,
    labels: list[str] | None,
    top: int,
    device: str | None,
    as_json: bool,
) -> None:
    """Name what PHOTOS (files or folders) show.

    The most likely classes of the model and of the clones that are attached to it, with their probabilities among all; each
    class that comes from a clone is followed by the clone's name. Exit code 1 if a photo could not be read.
    """
    from pnc_hub.cloning.images.files import ImageFiles, files_among

    files = files_among(photos)
    read = {name: common.read(name) for name in clone}
    model = model.or_target_of(read[clone[0]])
    built = model.build()
    own = _own_labels(built, labels)
    shown = ImageFiles(files, built)
    each = _answers(built.to(common.device(device)), own, read, shown, top)
    with common.bar("predict", len(files), each) as bar:
        answers = list(bar)
    unreadable = [{"file": str(path), "error": error} for path, error in shown.unreadable.items()]
    common.show(
        lambda: "\n".join([f"{model.name} with {', '.join(read)}", *map(_lines, answers)]),
        lambda: {"model": model.name, "clones": list(read), "photos": answers, "unreadable": unreadable},
        as_json,
    )
    for path, error in shown.unreadable.items():
        click.echo(f"{path} cannot be read ({error}); give a photo that Pillow opens", err=True)
    sys.exit(1 if unreadable else 0)


def _answers(
    model: nn.Module, own: list[str], clones: dict[str, Clone], photos: ImageFiles, top: int
) -> Iterator[dict[str, Any]]:
    """For each photo the most likely classes of ``model`` and ``clones`` together."""
    import torch

    from pnc_hub import attach

    columns: list[dict[str, Any]] = [{"label": label, "clone": None} for label in own]
    device = next(model.parameters()).device
    with ExitStack() as stack:
        for name, clone in clones.items():
            # it is said which class is whose, so two may have the same name
            joined = stack.enter_context(attach(model, clone, on_collision="allow"))
            joined.verify()
            columns += [{"label": label, "clone": name} for label in joined.labels]
        for paths, images in photos:
            with torch.inference_mode():
                likely = model(images.to(device)).float().softmax(1).topk(min(top, len(columns)))
            for path, *best in zip(paths, likely.values.tolist(), likely.indices.tolist(), strict=True):
                likeliest = zip(*best, strict=True)
                answers = [{**columns[index], "index": index, "probability": share} for share, index in likeliest]
                yield {"file": str(path), "top": answers}


def _lines(photo: dict[str, Any]) -> str:
    rows = []
    for answer in photo["top"]:
        origin = f"from {answer['clone']}" if answer["clone"] else ""
        rows.append(f"{answer['probability']:>9.1%}  {answer['label']:<36}{origin}".rstrip())
    return "\n".join([photo["file"], *rows])


def _own_labels(model: nn.Module, given: list[str] | None) -> list[str]:
    """Names of the model's own classes: those given, else those that timm knows, else their numbers."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    from pnc_hub.models.classifier import as_classifier
    from pnc_hub.models.labels import class_names, spoken

    count = as_classifier(model).num_classes
    if given is not None:
        if len(given) != count:
            raise click.UsageError(f"--labels has {len(given)} names, and the model has {count} classes")
        return given
    names = class_names(model, count)
    if names:
        return [spoken(aliases) for aliases in names]
    subset = infer_imagenet_subset(model)
    if subset and count > 1000:  # those larger numbers of classes are nobody else's
        info = ImageNetInfo(subset)
        return [info.index_to_description(index).split(", ")[0] for index in range(count)]
    return [f"class {index}" for index in range(count)]
