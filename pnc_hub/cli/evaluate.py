"""``pnc-hub evaluate``: how well a model answers with a clone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import click

from pnc_hub.cli import common, models
from pnc_hub.errors import DataError

if TYPE_CHECKING:
    from torch import nn
    from tqdm.auto import tqdm

    from pnc_hub.artifact.config import SourceConfig

_ROWS = (
    ("target_alone", "model alone, its own classes", "percent"),
    ("ori", "with the clone, the model's classes (Ori)", "percent"),
    ("tar", "with the clone, the cloned classes (Tar)", "percent"),
    ("avg", "both, weighted by numbers of classes (Avg)", "percent"),
    ("diverted", "the model's photos diverted to the clone", "percent"),
    ("auroc", "gate AUROC", "number"),
    ("restored", "the model is what it was, bit for bit", "text"),
)


@click.command()
@common.clone_option(help="user/name, user/name@revision or a folder.")
@models.of_clone
@common.photos(
    "--data",
    required=True,
    help="Photos of the cloned classes: a folder with a folder per class, a tar file, hfds/user/name ...",
)
@common.photos("--target-data", help="Photos of the model's own classes; without them only Tar is measured.")
@click.option("--batch-size", type=click.IntRange(min=1), default=64, show_default=True, help="Photos at a time.")
@common.workers
@common.cpu
@common.as_json
def evaluate(
    clone: str,
    model: models.Model,
    data: str,
    target_data: str | None,
    batch_size: int,
    workers: int,
    device: str | None,
    as_json: bool,
) -> None:
    """Measure a clone on photos of old and new classes together.

    The photos should be others than those that the clone was learned from.
    """
    from torch.utils.data import DataLoader

    from pnc_hub.cloning.images.classes import relabel_cloned, relabel_target
    from pnc_hub.cloning.images.data import Images, open_dataset
    from pnc_hub.cloning.measuring.evaluate import measure
    from pnc_hub.models.preprocess import Preprocess
    from pnc_hub.report.rows import listed, shown

    read = common.read(clone)
    model = model.or_target_of(read)
    target = model.build()
    wants, opened = Preprocess.of(target), open_dataset(data)
    wanted = {entry.label: entry.source_index for entry in read.config.classes}
    sides = [Images(opened, wants, relabel_cloned(wanted, _name_plate(read.config.source), opened))]
    if target_data is not None:
        own = open_dataset(target_data)
        sides.append(Images(own, wants, relabel_target(target, own, read.labels)))
    counts = [len(side) for side in sides]
    for count, folder, whose in zip(counts, (data, target_data), ("that the clone adds", "of the model"), strict=False):
        if not count:
            raise DataError(
                f"no photo in {folder!r} shows a class {whose}; its folders are to be named as these (those named as cloned"
                " classes are not taken for the model's)"
            )
    passes = counts[0] + 2 * sum(counts[1:])  # the model's own are shown without the clone, too
    with common.bar("evaluate", passes) as bar:
        cloned, *others = [_Watched(DataLoader(side, batch_size, num_workers=workers), bar) for side in sides]
        result = measure(target.to(common.device(device)), read, cloned, others[0] if others else None)
    measured = {name: result[name] for name in (*(row[0] for row in _ROWS), "avg_u", "kl")}
    photos = dict(zip(("cloned", "target"), [*counts, 0], strict=False))
    title = f"{model.name} with {clone} on {' and '.join(map(str, counts))} photos"
    common.show(
        lambda: listed(title, [(text, shown(measured[name], kind)) for name, text, kind in _ROWS]),
        lambda: {"model": model.name, "clone": clone, "photos": photos, **measured},
        as_json,
    )


class _Watched:
    """Batches of (images, labels), counted on a progress bar."""

    def __init__(self, batches: Iterable[Any], bar: tqdm[Any]) -> None:
        self.batches, self.bar = batches, bar

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches:
            yield batch
            self.bar.update(len(batch[1]))


def _name_plate(source: SourceConfig) -> nn.Module:
    """What a clone records of its source, as far as the names of its classes are concerned."""
    from timm.models import get_pretrained_cfg

    cfg = get_pretrained_cfg((source.hub_id or "").rpartition("/")[2])
    plate = SimpleNamespace(num_classes=source.arguments()["num_classes"], pretrained_cfg=cfg and cfg.to_dict())
    return cast("nn.Module", plate)
