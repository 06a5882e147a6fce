"""Bird classes from the iNaturalist MobileNetV2 for an ImageNet MobileNetV2 whose bird rows were removed.

The source knows 964 kinds of birds; the target has the 941 classes of ImageNet that are no birds. Photos of the birds are
yours: a folder of photos for each, named by its common or its scientific name.

python recipes/people/birds.py --data DIR --list bunting
python recipes/people/birds.py --data DIR --photos my-birds/ --output clone-birds
python recipes/people/birds.py --data DIR --rehearse
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from timm.data import ImageNetInfo
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

sys.path.insert(0, str(Path(__file__).parents[2]))

import pnc_hub
from pnc_hub import Clone
from pnc_hub.errors import DataError, PncHubError
from pnc_hub.models.fingerprint import state_digest
from pnc_hub.models.preprocess import Preprocess
from recipes.frame import networks, reading
from recipes.frame.reading import HALF, MissingDataError, Raw, TensorImages
from recipes.people import photos
from recipes.people.photos import Photos, plain

# The classes of ImageNet below the synset bird (n01503061) in WordNet 3.0: gallinaceous to perching birds and owls, then
# grouse to waterfowl, then waders and seabirds. 59 indices in timm's order, which is that of the WordNet ids.
IMAGENET_BIRDS = (*range(7, 25), *range(80, 101), *range(127, 147))
PLACE = {"cut": "blocks.6.0", "epochs": 0}  # late and in closed form: minutes instead of hours on a CPU
KNOWN = 40, 15  # photos of each of 20 of the target's classes, to learn from and to test on
# for a rehearsal: the same, kinds of birds, and photos of birds that the source is shown, of each split
FEW_KNOWN, KINDS, LOOKED_AT = (10, 5), 5, (400, 200)


class Bird(NamedTuple):
    """A class of the source: its index, scientific name, and common name (the scientific one where none is recorded)."""

    index: int
    scientific: str
    common: str

    def __str__(self) -> str:
        return self.common if self.common == self.scientific else f"{self.common} ({self.scientific})"


def birds(data: Path) -> list[Bird]:
    """The kinds of birds that the source knows (its last class is the background).

    Raises:
        MissingDataError: the labels are not in ``data``/weights.
    """
    path = data / "weights" / "inat_bird_labels.txt"
    if not path.is_file():
        raise MissingDataError(f"no {path}; give the folder that holds weights/ with --data")
    kinds = []
    for index, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        name = re.fullmatch(r"(?P<scientific>[^(]+) \((?P<common>.+)\)", line.strip())
        if name:
            kinds.append(Bird(index, name["scientific"], name["common"]))
        elif line.strip() != "background":
            kinds.append(Bird(index, line.strip(), line.strip()))
    return kinds


def find(wanted: Sequence[str], known: Sequence[Bird]) -> dict[str, Bird]:
    """The bird of each name, which is common, scientific, both (as ``--list`` shows them) or an index.

    Raises:
        DataError: there is no such bird.
    """
    names = {plain(name): bird for bird in known for name in (str(bird.index), bird.scientific, bird.common, str(bird))}
    missing = [name for name in wanted if plain(name) not in names]
    if missing:
        close = [str(names[name]) for name in difflib.get_close_matches(plain(missing[0]), names, 3, 0.5)]
        raise DataError(
            f"the source knows no bird named {', '.join(map(repr, missing[:5]))}"
            + (f"; close to the first are {'; '.join(dict.fromkeys(close))}" if close else "")
            + ". --list PART shows the names that it knows"
        )
    return {name: names[plain(name)] for name in wanted}


def pair(data: Path) -> tuple[nn.Module, nn.Module, list[str]]:
    """Source, target and the names of the target's 941 classes."""
    weights, imagenet = data / "weights", ImageNetInfo("imagenet-1k")
    keep = [index for index in range(1000) if index not in IMAGENET_BIRDS]
    source = networks.mobilenetv2_q8(weights / "mobilenetv2_100_inat_bird_q8.npz")
    target = networks.mobilenetv2_q8(weights / "mobilenetv2_100_in1k_tf2_q8.npz", keep)
    return source, target, [imagenet.index_to_description(index).split(", ")[0] for index in keep]


def known_photos(data: Path, each: tuple[int, int]) -> tuple[TensorImages, TensorImages]:
    """Photos of 20 of the target's classes, ``each`` for learning and for the end, labelled by its classes."""
    wnids = ImageNetInfo("imagenet-1k").label_names()
    place = {wnid: kept for kept, wnid in enumerate(w for i, w in enumerate(wnids) if i not in IMAGENET_BIRDS)}
    parts = reading.photos(data)
    learn, test = (
        TensorImages.of(raw, HALF, HALF)
        .relabelled({label: place[wnid] for label, wnid in enumerate(raw.classes)})
        .few(most, seed=0)
        for raw, most in zip(parts, each, strict=True)
    )
    return learn, test


def own(
    folder: Path, classes: Sequence[str] | None, known: Sequence[Bird], target: nn.Module
) -> tuple[Photos, list[Bird]]:
    """The user's photos of birds, and which birds they are: ``classes``, or all that there are folders of.

    Raises:
        DataError: a folder or a class has a name that is no bird's, or a class no photos.
    """
    read = photos.read(folder, Preprocess.of(target))
    shown = list(find(read.classes, known).values())
    if len(set(shown)) < len(shown):
        raise DataError(f"two folders of {str(folder)!r} are of one bird: {', '.join(sorted(map(str, shown)))}")
    wanted = shown if classes is None else list(find(classes, known).values())
    missing = [str(bird) for bird in wanted if bird not in shown]
    if missing:
        raise DataError(f"{str(folder)!r} has no folder of {', '.join(missing)}")
    place = {shown.index(bird): position for position, bird in enumerate(wanted)}
    files = [path for path, label in zip(read.files, read.test.targets, strict=True) if label in place]
    names = [bird.common for bird in wanted]
    return Photos(read.learn.relabelled(place), read.test.relabelled(place), files, names), wanted


def rehearsal(data: Path, known: Sequence[Bird], source: nn.Module) -> tuple[Photos, list[Bird]]:
    """CIFAR-10's photos of birds, 32 pixels wide and enlarged, of the kinds that the source takes most of them for.

    What they really show is not known: they can tell how well the clone repeats the source, and nothing of birds.
    """
    by_index = {bird.index: bird for bird in known}
    tiny = [
        raw.images[raw.labels == raw.classes.index("bird")][:most]
        for raw, most in zip(reading.cifar10(data), LOOKED_AT, strict=True)
    ]
    said = [_answers(source, images) for images in tiny]
    common = [index for index, _ in Counter(said[0]).most_common() if index in by_index][:KINDS]
    parts = []
    for images, answers in zip(tiny, said, strict=True):
        chosen = [place for place, index in enumerate(answers) if index in common]
        labels = torch.tensor([common.index(answers[place]) for place in chosen])
        parts.append(TensorImages.of(Raw(_enlarged(images[chosen]), labels, []), HALF, HALF))
    names = [Path(f"the source takes it for {by_index[common[label]].common}") for label in parts[1].targets]
    wanted = [by_index[index] for index in common]
    return Photos(*parts, names, [bird.common for bird in wanted]), wanted


@torch.no_grad()
def agreement(source: nn.Module, target: nn.Module, clone: Clone, images: TensorImages) -> dict[str, float]:
    """How far the clone's logits are the source's, both among the cloned classes alone, on images of any kind.

    Returns:
        ``same``: share of images on which both name the same class; ``explained``: share of the variance of the source's
        logits (less their mean over the classes) that the clone's reproduce.
    """
    rows = [entry.source_index for entry in clone.config.classes]
    with pnc_hub.attach(target, clone) as attached:
        pairs = [
            (target(batch)[:, attached.logit_slice], photos.run_on(source, target, batch)[:, rows])
            for batch, _ in DataLoader(images, photos.BATCH)
        ]
    cloned, original = (torch.cat(side) for side in zip(*pairs, strict=True))
    cloned, original = (side - side.mean(1, keepdim=True) for side in (cloned, original))
    residual = (cloned - original).square().sum() / (original - original.mean(0)).square().sum()
    return {"same": float((cloned.argmax(1) == original.argmax(1)).float().mean()), "explained": 1 - float(residual)}


def run(arguments: argparse.Namespace) -> Clone:
    """Learn the clone (or find it learned), and show what it does."""
    known = birds(arguments.data)
    source, target, names = pair(arguments.data)
    if arguments.rehearse:
        print("A rehearsal: nobody has said which birds these photos show, so that no accuracy can come of them.")
        new, wanted = rehearsal(arguments.data, known, source)
    else:
        new, wanted = own(arguments.photos, arguments.classes, known, target)
    old, old_test = known_photos(arguments.data, FEW_KNOWN if arguments.rehearse else KNOWN)
    classes = {bird.common: bird.index for bird in wanted}
    print(f"{len(new.learn)} photos of {', '.join(classes)}; {len(old)} of 20 of the target's {len(names)} classes")
    clone = photos.learned_once(
        arguments.output,
        {
            "photos": [new.learn.digest(), old.digest()],
            "networks": [state_digest(source), state_digest(target)],
            "classes": classes,
            "thorough": arguments.thorough,
        },
        partial(
            pnc_hub.clone,
            source,
            target,
            classes,
            new.learn.relabelled(dict(enumerate(classes.values()))),
            target_data=old,
            source_args={"pad_type": "same"},
            license="apache-2.0",
            **({} if arguments.thorough else PLACE),
        ),
    )
    if not arguments.rehearse:
        print(photos.table(photos.before_and_after(source, target, clone, new.test, old_test)))
    for what, images in (("birds kept back", new.test), ("the target's own photos", old_test)):
        agreed = agreement(source, target, clone, images)
        print(
            f"Clone and source, among the cloned classes, on {len(images)} {what}: the same answer on"
            f" {100 * agreed['same']:.1f} %, {100 * agreed['explained']:.1f} % of the logits' variance reproduced."
        )
    photos.show(target, clone, names, new)
    print(
        f"\nThe clone is in {arguments.output / 'clone'}, its report is {arguments.output / 'report.html'}."
        f" {time.process_time():.0f} seconds of the processor."
    )
    return clone


def listed(part: str, known: Sequence[Bird]) -> str:
    """Index and names of the birds whose names contain ``part``."""
    return "\n".join(f"{bird.index:>4}  {bird}" for bird in known if plain(part) in plain(str(bird)))


def main(argv: Sequence[str] | None = None) -> Clone | None:
    """From the command line."""
    parser = argparse.ArgumentParser(description="Clone birds from iNaturalist's MobileNetV2 into ImageNet's.")
    parser.add_argument("--data", type=Path, required=True, help="folder with weights/ and photos20_224.zip")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--photos", type=Path, help="a folder of photos for each bird, named as --list shows it")
    what.add_argument(
        "--list", nargs="?", const="", metavar="PART", help="the birds (with PART in their name), no more"
    )
    what.add_argument("--rehearse", action="store_true", help="CIFAR-10's tiny birds instead: do all steps work?")
    parser.add_argument("--classes", nargs="+", metavar="BIRD", help="which birds; by default all that have a folder")
    parser.add_argument("--output", type=Path, default=Path("clone-birds"), help="where to write (clone-birds)")
    parser.add_argument(
        "--thorough", action="store_true", help="search the source for the cut too, and train (far slower)"
    )
    arguments = parser.parse_args(argv)
    try:
        if arguments.list is not None:
            print(listed(arguments.list, birds(arguments.data)) or f"no bird has {arguments.list!r} in its name")
            return None
        if not (arguments.photos or arguments.rehearse):
            raise DataError(
                "photos of birds are not part of the data: give --photos FOLDER with a folder of ten or more photos (better"
                " forty) for each bird, such as my-birds/indigo bunting/*.jpg. --list bunting shows how birds are named,"
                " --rehearse tries every step without such photos"
            )
        return run(arguments)
    except (PncHubError, MissingDataError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


def _enlarged(tiny: Tensor) -> Tensor:
    """uint8 [N, 3, 32, 32] -> uint8 [N, 3, 224, 224]."""
    large = nn.functional.interpolate(tiny.float(), size=(224, 224), mode="bicubic", antialias=True)
    return large.round().clamp(0, 255).to(torch.uint8)


@torch.no_grad()
def _answers(source: nn.Module, tiny: Tensor) -> list[int]:
    """The class that ``source`` sees in each of uint8 images [N, 3, 32, 32], enlarged."""
    bar = tqdm(tiny.split(photos.BATCH), "the source looks at birds", leave=False, disable=None)
    return [index for part in bar for index in source(_enlarged(part).float() / 127.5 - 1).argmax(1).tolist()]


if __name__ == "__main__":
    main()
