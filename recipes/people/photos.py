"""A person's photos: folders read once into pixels, a clone learned of them once, and what the target says before and after."""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

import pnc_hub
from pnc_hub import Clone
from pnc_hub.cloning.images.files import ENDINGS, find
from pnc_hub.cloning.measuring.evaluate import accuracy, measure
from pnc_hub.errors import DataError
from pnc_hub.models.fingerprint import state_digest
from pnc_hub.models.labels import same_label
from pnc_hub.models.preprocess import UNREADABLE, Preprocess, Reprocess, upright
from recipes.frame.reading import Raw, TensorImages

FEWEST, MOST = 10, 4000  # photos: of a class, and of a folder with all its classes
TEST = 5  # one in so many photos is kept back until the end
BATCH = 32


class Photos(NamedTuple):
    """Photos of some classes as a target wants them.

    Attributes:
        learn: those that may be learned from, labelled by the position of their class.
        test: one in five, for the end.
        files: where those of ``test`` are.
        classes: names of the classes.
    """

    learn: TensorImages
    test: TensorImages
    files: list[Path]
    classes: list[str]


def plain(name: str) -> str:
    """What two names of a class have in common: ``Indigo_Bunting`` and ``indigo bunting`` are one."""
    return " ".join(same_label(name).replace("_", " ").replace("-", " ").split())


def class_folders(folder: Path) -> dict[str, list[Path]]:
    """Class -> its photos, in order. A folder without folders is one class, named as the folder.

    Raises:
        DataError: there is no such folder, or a class has fewer than ten photos.
    """
    if not folder.is_dir():
        raise DataError(f"{str(folder)!r} is no folder; give one that has a folder of photos for each class")
    inside = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    photos = {part.resolve().name: find(part) for part in inside or [folder]}
    few = [f"{name!r} ({len(paths)})" for name, paths in photos.items() if len(paths) < FEWEST]
    if few:
        raise DataError(
            f"at least {FEWEST} photos of each class are needed, better forty; in {str(folder)!r} there are fewer of"
            f" {', '.join(few[:10])}. Add photos or take the folder out (a photo ends in {', '.join(ENDINGS)})"
        )
    return photos


def read(folder: Path, preprocess: Preprocess, seed: int = 0, most: int = MOST, progress: bool = True) -> Photos:
    """The photos of ``class_folders(folder)``, each decoded once, cut and scaled as ``preprocess`` says.

    Of more than ``most`` photos as many are drawn, evenly from the classes. Those that cannot be read are left out with a
    warning.
    """
    draw, classes = random.Random(seed), class_folders(folder)
    turns = zip_longest(*(draw.sample(paths, len(paths)) for paths in classes.values()))
    chosen = [(path, label) for turn in turns for label, path in enumerate(turn) if path is not None][:most]
    transform = create_transform(
        preprocess.input_size,
        interpolation=preprocess.interpolation,
        crop_pct=preprocess.crop_pct,
        normalize=False,
    )

    def pixels(entry: tuple[Path, int]) -> Tensor | None:
        try:
            return transform(_opened(entry[0], preprocess))
        except UNREADABLE:
            return None

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        decoded = pool.map(pixels, chosen)
        bar = tqdm(decoded, f"read {folder.name}", len(chosen), leave=False, disable=None if progress else True)
        images = list(bar)
    unread = [path for (path, _), image in zip(chosen, images, strict=True) if image is None]
    if unread:
        warnings.warn(
            f"{len(unread)} of {len(chosen)} files are no photos that can be read: {unread[0]} ...", stacklevel=2
        )
    kept = [(*entry, image) for entry, image in zip(chosen, images, strict=True) if image is not None]
    return _parts(kept, list(classes), preprocess)


def learned_once(output: Path, settings: dict[str, Any], learn: Callable[[], Clone]) -> Clone:
    """The clone in ``output``/clone if it was learned with these ``settings``; else it is learned, and its report written.

    Raises:
        PublishError: there is something else in that folder.
    """
    folder, made = output / "clone", output / "settings.json"
    if made.is_file() and folder.is_dir() and json.loads(made.read_text()) == settings:
        print(f"{folder} was learned from the same photos and networks; delete {output} to learn it again.")
        return Clone.from_pretrained(folder)
    made.unlink(missing_ok=True)
    clone = learn()
    output.mkdir(parents=True, exist_ok=True)
    clone.save_pretrained(folder)
    clone.report.save(output / "report.html")
    made.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return Clone.from_pretrained(folder)


def before_and_after(
    source: nn.Module, target: nn.Module, clone: Clone, new: TensorImages, old: TensorImages
) -> dict[str, Any]:
    """Accuracies on photos that were kept back from cloning: what ``measure`` gives, and that of the source alone.

    Args:
        source: the source.
        target: the target.
        clone: made of them.
        new: photos of the cloned classes, labelled by position.
        old: photos of the target's classes, labelled by its classes (or -1).
    """
    own = [entry.source_index for entry in clone.config.classes]
    logits = torch.cat([run_on(source, target, images)[:, own] for images, _ in DataLoader(new, BATCH)])
    shares = measure(target, clone, DataLoader(new, BATCH), DataLoader(old, BATCH))
    return shares | {"source_alone": accuracy(logits, torch.tensor(new.targets))}


@torch.no_grad()
def run_on(model: nn.Module, target: nn.Module, images: Tensor) -> Tensor:
    """What ``model`` says of images [B, C, H, W] that were made for ``target``."""
    return model(Reprocess(Preprocess.of(target), Preprocess.of(model))(images))


def table(shares: dict[str, Any]) -> str:
    """``before_and_after`` as a newcomer reads it."""

    def percent(name: str) -> str:
        return "-" if shares.get(name) is None else f"{100 * shares[name]:.1f} %"

    rows = [
        ("photos that were kept back", "old classes", "new classes"),
        ("target alone", percent("target_alone"), "-"),
        ("source alone (told that the class is new)", "-", percent("source_alone")),
        ("target with the clone (told nothing)", percent("ori"), percent("tar")),
    ]
    lines = [f"{what:<44}{old:>12}{new:>13}" for what, old, new in rows]
    return "\n".join([*lines, f"{percent('diverted')} of the old photos go to the clone."])


@torch.no_grad()
def show(target: nn.Module, clone: Clone, names: Sequence[str], *shown: Photos, count: int = 3) -> None:
    """Attach ``clone``, print the top five of ``count`` photos each (marked where the clone speaks), detach, check the target.

    ``names`` are those of the target's classes.
    """
    before = state_digest(target)
    with pnc_hub.attach(target, clone, on_collision="allow") as attached:
        width, both = attached.logit_slice.start, [*names, *attached.labels]
        for read in shown:
            step = max(1, len(read.files) // count)
            for place in range(0, len(read.files), step)[:count]:
                image, label = read.test[place]
                top = target(image[None])[0].softmax(0).topk(min(5, len(both)))
                print(f"\n{read.files[place].name} ({read.classes[label]})")
                for share, index in zip(top.values.tolist(), top.indices.tolist(), strict=True):
                    print(f"  {100 * share:5.1f} %  {'+' if index >= width else ' '} {both[index]}")
    same = state_digest(target) == before and not pnc_hub.attachments(target)
    print(
        f"\n+ is an answer of the clone. Detached, the target is {'what it was, bit for bit' if same else 'CHANGED'}."
    )


def _opened(path: Path, preprocess: Preprocess) -> Image.Image:
    channels, *sides = preprocess.input_size
    with Image.open(path) as image:
        # a camera's JPEG has ten times the pixels that are needed: decode no more than twice the side
        image.draft("L" if channels == 1 else "RGB", (2 * max(sides),) * 2)
        return upright(image, channels)


def _parts(kept: list[tuple[Path, int, Tensor]], classes: list[str], preprocess: Preprocess) -> Photos:
    """The first of every five of each class are for the end: their order is random already."""
    seen: dict[int, int] = {}
    learn, test = [], []
    for place, (_, label, _) in enumerate(kept):
        turn = seen[label] = seen.get(label, -1) + 1
        (test if turn % TEST == 0 else learn).append(place)
    short = [name for label, name in enumerate(classes) if seen.get(label, -1) + 1 < FEWEST]
    if short:
        raise DataError(f"fewer than {FEWEST} photos of {', '.join(short[:10])} could be taken")
    stored = Raw(torch.stack([image for *_, image in kept]), torch.tensor([label for _, label, _ in kept]), classes)
    images = TensorImages.of(stored, preprocess.mean, preprocess.std)
    test.sort(key=lambda place: kept[place][1])
    return Photos(images.subset(learn), images.subset(test), [kept[place][0] for place in test], classes)
