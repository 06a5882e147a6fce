"""From two folders of photos to an attached clone.

The new classes (a folder of photos each) come from a source network into a target network, which knows the old ones. A
network keeps its own classes where the folders are named after them; otherwise its last layer is trained on the photos, on
frozen features.

python recipes/people/own_photos.py --new my-photos/ --old target-photos/ --output my-clone
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from timm.models._hub import save_for_hf
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2]))

import pnc_hub
from pnc_hub import Clone
from pnc_hub.cloning.images.data import UNLABELLED
from pnc_hub.errors import DataError, PncHubError
from pnc_hub.models.fingerprint import state_digest
from pnc_hub.models.labels import class_names, spoken
from pnc_hub.models.preprocess import Preprocess
from recipes.frame import rehearsal
from recipes.frame.reading import TensorImages, joined
from recipes.people import photos
from recipes.people.photos import Photos, plain
from recipes.people.taught import Network, named, small

SOURCE, TARGET = "mobilenetv3_large_100.ra_in1k", "resnet18.a1_in1k"
OTHER = "something else"


def as_source(
    network: Network, target: nn.Module, new: Photos, old: Photos, seed: int
) -> tuple[nn.Module, dict[str, int]]:
    """The source, and its class for each of the new ones.

    Where its last layer is trained, one more class stands for the target's photos: a source that knows a single class could
    not say no.
    """
    rows = None if network.untrained else network.rows(new.classes)
    if rows is not None:
        return network.model, rows
    names = [*new.classes, OTHER]
    data = joined(new.learn, old.learn.relabelled(len(new.classes)))
    return network.taught(target, data, names, seed), {name: index for index, name in enumerate(new.classes)}


def as_target(network: Network, new: Photos, old: Photos, seed: int) -> tuple[nn.Module, dict[str, int] | None]:
    """The target, and its class for each of the old ones (None: the photos show anything that is not new).

    Raises:
        DataError: it knows a new class already, and its classes must stay.
    """
    known = {
        plain(name) for names in class_names(network.model, int(network.model.num_classes)) or () for name in names
    }
    twice = [] if network.untrained else [name for name in new.classes if plain(name) in known]
    if twice and network.fixed:
        raise DataError(
            f"the target knows {', '.join(twice)} already; take the folder out of --new, or give another target"
        )
    rows = None if twice or network.untrained else network.rows(old.classes)
    if rows is not None or (len(old.classes) == 1 and not twice and not network.untrained):
        return network.model, rows
    if len(old.classes) < 2:
        raise DataError(
            "the target's last layer has to be trained, and --old shows one class; give a folder for each of two"
        )
    if twice:
        print(f"The target knows {', '.join(twice[:5])} already.")
    return network.taught(network.model, old.learn, old.classes, seed), {name: i for i, name in enumerate(old.classes)}


def run(arguments: argparse.Namespace) -> Clone:
    """Read the photos, make source and target ready, clone, and show what came of it."""
    seed, output = arguments.seed, arguments.output
    source, target = networks(arguments)
    wanted = Preprocess.of(target.model)
    new, old = (photos.read(folder, wanted, seed) for folder in (arguments.new, arguments.old))
    for what, read in (("new", new), ("old", old)):
        print(
            f"{what}: {len(read.learn)} photos of {len(read.classes)} classes to learn from, {len(read.test)} kept back"
        )
    receives, old_rows = as_target(target, new, old, seed)
    gives, new_rows = as_source(source, receives, new, old, seed)
    shown, tested = labelled(old, old_rows)
    place = dict(enumerate(new_rows.values()))
    clone = photos.learned_once(
        output,
        {
            "photos": [new.learn.digest(), old.learn.digest()],
            "networks": [state_digest(gives), state_digest(receives)],
            "classes": new_rows,
            "thorough": arguments.thorough,
            "seed": seed,
        },
        partial(
            pnc_hub.clone,
            gives,
            receives,
            new_rows,
            new.learn.relabelled(place),
            target_data=shown,
            **({} if arguments.thorough else quick(gives)),
            source_args=source.arguments,
            source_id=source.hub_id if gives is source.model else None,
            target_id=target.hub_id if receives is target.model else None,
            license=(gives.pretrained_cfg or {}).get("license"),
            seed=seed,
        ),
    )
    print(clone.report)
    print("\nThat was on photos which the learning kept back itself. On those that it was never shown:\n")
    print(photos.table(photos.before_and_after(gives, receives, clone, new.test, tested)))
    names = names_of(receives, old, old_rows)
    photos.show(receives, clone, names, new, old)
    if receives is not target.model:
        config = {"label_names": names}
        folder = str(output / "target")
        save_for_hf(receives, folder, model_config=config, model_args=target.arguments, safe_serialization=True)
        use = f"'local-dir:{folder}', pretrained=True"
    elif arguments.target_checkpoint is not None:
        use = f"{arguments.target!r}, num_classes={len(names)}, checkpoint_path={str(arguments.target_checkpoint)!r}"
    else:
        use = f"{arguments.target!r}, pretrained=True"
    print(f"\nThe clone is in {output / 'clone'}, its report is {output / 'report.html'}. To use it:\n")
    print(f"  model = timm.create_model({use}).eval()")
    print(f"  with pnc_hub.attach(model, '{output / 'clone'}'):\n      logits = model(images)")
    return clone


def names_of(target: nn.Module, old: Photos, rows: dict[str, int] | None) -> list[str]:
    """What the target's classes are called: as it records them, else as their folders, else by number."""
    count = int(target.num_classes)
    known = class_names(target, count)
    if known is None:
        return list(old.classes) if rows is not None else [str(index) for index in range(count)]
    return [spoken(names) for names in known]


def quick(source: nn.Module) -> dict[str, Any]:
    """Options for a clone within a minute: cut at the source's last feature map, where little is left to compute; no training.

    The target is searched as always. With few photos and good networks late cuts in closed form do well.
    """
    maps = [point.name for point in pnc_hub.insertion_points(source) if point.layout != "NC"]
    return {"cut": maps[-1], "epochs": 0}


def networks(arguments: argparse.Namespace) -> tuple[Network, Network]:
    """Source and target that were asked for."""
    if arguments.scratch:
        print("Two small networks are trained from nothing on your photos: without pretrained weights, expect little.")
        return small(arguments.seed), small(arguments.seed + 1)
    return (
        named(arguments.source, arguments.source_checkpoint, arguments.source_classes),
        named(arguments.target, arguments.target_checkpoint, arguments.target_classes),
    )


def labelled(old: Photos, rows: dict[str, int] | None) -> tuple[TensorImages, TensorImages]:
    """Photos of the old classes to learn from and to test on, with the target's labels."""
    if rows is not None:
        place = dict(enumerate(rows.values()))
        return old.learn.relabelled(place), old.test.relabelled(place)
    old.learn.classes = old.classes  # a name that the target does not know: examples of whatever is not new
    return old.learn, old.test.relabelled(UNLABELLED)


def main(argv: Sequence[str] | None = None) -> Clone:
    """From the command line."""
    parser = argparse.ArgumentParser(description="From two folders of photos to an attached clone.")
    parser.add_argument(
        "--new", type=Path, required=True, help="a folder of photos for each class that should be added"
    )
    parser.add_argument(
        "--old", type=Path, required=True, help="the same for classes that the target knows or should know"
    )
    parser.add_argument("--output", type=Path, default=Path("my-clone"), help="where to write (my-clone)")
    for role, name in (("source", SOURCE), ("target", TARGET)):
        parser.add_argument(f"--{role}", default=name, help=f"timm name, hf-hub:user/name or local-dir:folder ({name})")
        parser.add_argument(f"--{role}-checkpoint", type=Path, help=f"weights of the {role}, if not timm's own")
        parser.add_argument(
            f"--{role}-classes", type=Path, help=f"text file: names of the {role}'s classes, one a line"
        )
    parser.add_argument("--scratch", action="store_true", help="no pretrained weights: train two small networks")
    parser.add_argument(
        "--thorough", action="store_true", help="search the source for the cut too, and train (far slower)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rehearse", action="store_true", help=rehearsal.OPTION)
    arguments, started = parser.parse_args(argv), time.perf_counter()
    if arguments.rehearse:
        rehearsal.begin()
    try:
        clone = run(arguments)
    except PncHubError as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from None
    print(f"\n{time.perf_counter() - started:.0f} seconds, {time.process_time():.0f} of the processor.")
    return clone


if __name__ == "__main__":
    main()
