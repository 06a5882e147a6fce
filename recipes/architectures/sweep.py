"""Every architecture registered in timm as a target: where can a clone be inserted, and is the model what it was afterwards?

python recipes/architectures/sweep.py --json sweep.json
python recipes/architectures/sweep.py --json resnets.json --filter "resnet*" --no-real

Each is built on the meta device, where two clones are attached at once: one at the input, one in the middle. Those that are
small enough are run in real numbers too. What stands in the JSON file already is not measured again.
"""

import argparse
import dataclasses
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import timm
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2]))

import pnc_hub
from pnc_hub.artifact import files
from pnc_hub.artifact.config import AdapterConfig, TargetConfig
from pnc_hub.errors import PncHubError
from pnc_hub.hub.clone import Clone
from pnc_hub.models.fingerprint import fingerprint, state_digest
from pnc_hub.models.insertion import INPUT, InsertionPoint
from pnc_hub.models.skeleton import Skeleton
from pnc_hub.models.tensors import tensors_of
from pnc_hub.module import Adapter, Gate
from recipes.frame.rows import Rows, markdown
from recipes.frame.untrained import untrained_clone

SOURCE, CUT, LABELS = "test_resnet", "layer3.0", ("ant", "bee", "wasp")
SIDES = (64, 96, 128, 160, 192)
HEADLESS_CLASSES = 10  # for architectures that come without a classifier


class Failed(Exception):
    """An architecture does not do what it should; the message says what."""


class Clones:
    """Clones of one small source with nothing learned, for any target, at its input or at an interior point."""

    def __init__(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.source = timm.create_model(SOURCE, num_classes=5).eval()
        self.skeleton = Skeleton(self.source)
        self.base = untrained_clone(self.source, self.source, LABELS, CUT, CUT)
        self.tensors = self.base.all_tensors()

    def at_input(self) -> Clone:
        """The universal one."""
        trunk = nn.ModuleDict({"trunk": self.skeleton.trunk(self.source, CUT)})
        return self._clone("input", None, self.skeleton.point(INPUT), nn.ModuleDict(), {files.TRUNK: tensors_of(trunk)})

    def at(self, point: InsertionPoint, trunk: list[str], model: nn.Module) -> Clone:
        """One for ``model`` at ``point``; weights on the meta device have no fingerprint and get none."""
        meta = next(model.parameters()).is_meta
        digest = {"float32": "0" * 32} if meta else fingerprint(model, trunk)
        target = TargetConfig(None, None, model.pretrained_cfg["architecture"], digest, int(model.num_classes), trunk)
        adapter = Adapter(point, self.skeleton.point(CUT))
        return self._clone("interior", target, point, nn.ModuleDict({"adapter": adapter}), {})

    def _clone(
        self, name: str, target: TargetConfig | None, insertion: InsertionPoint, own: nn.ModuleDict, more: dict
    ) -> Clone:
        own["gate"] = Gate(self.tensors[files.WEIGHTS]["head.weight"].shape[1])
        entry = AdapterConfig(name=name, target=target, insertion=insertion)
        classes = [dataclasses.replace(entry, label=f"{entry.label} at {name}") for entry in self.base.config.classes]
        config = dataclasses.replace(self.base.config, adapters=[entry], classes=classes)
        return Clone(config, {files.WEIGHTS: self.tensors[files.WEIGHTS], entry.file: tensors_of(own), **more})


def main(argv: Sequence[str] | None = None) -> None:
    """Sweep, and print what does not work and why."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="keep rows in this file, and take from it those that it has")
    parser.add_argument("--filter", nargs="*", default="", help="names or patterns, as timm.list_models takes them")
    parser.add_argument("--real", action=argparse.BooleanOptionalAction, default=True, help="run small ones in numbers")
    parser.add_argument("--millions", type=float, default=30, help="parameters up to which a model is small")
    parser.add_argument("--seconds", type=float, default=3, help="forward passes that take longer are not repeated")
    arguments = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    largest = arguments.millions * 1e6 if arguments.real else 0
    rows, clones = Rows(arguments.json), Clones()
    print_summary(
        [
            rows.of(
                {"architecture": name, "largest": largest}, partial(measure, name, clones, largest, arguments.seconds)
            )
            for name in timm.list_models(arguments.filter)
        ]
    )


def measure(name: str, clones: Clones, largest: float, limit: float) -> dict:
    """The row of one architecture; ``reason`` is that of the first thing that failed."""
    start = time.perf_counter()
    row = dict.fromkeys(("parameters", "points", "insertion", "meta", "real", "seconds", "reason"))
    try:
        model, given = build(name)
        row["parameters"] = sum(parameter.numel() for parameter in model.parameters())
        skeleton = Skeleton(model)
        points = list(skeleton.points.values())[1:]
        row["points"] = len(points)
        point = points[len(points) // 2] if points else None
        row["insertion"] = point.name if point else None
        trunk = skeleton.trunk_names(point.name) if point else []
        if model.num_classes <= 0:
            row["meta"] = row["real"] = "no classifier"
        else:
            images = torch.empty(2, *skeleton.input_size, device="meta")
            row["meta"] = "failed"
            check_attached(model, images, clones, point, trunk)
            row["meta"] = "ok"
            if row["parameters"] < largest:
                row["real"] = "failed"
                row["real"] = measure_real(name, given, skeleton.input_size, clones, point, trunk, limit)
    except Exception as error:  # a sweep goes on; an error of another type than the package's own is a finding
        row["reason"] = (
            f"{'' if isinstance(error, (PncHubError, Failed)) else 'UNTYPED '}{type(error).__name__}: {error}"[:400]
        )
    row["seconds"] = round(time.perf_counter() - start, 2)
    return row


def build(name: str, device: str = "meta", **arguments: object) -> tuple[nn.Module, dict]:
    """The architecture with a classifier, if it takes one, and the arguments that gave it one."""
    with torch.device(device):
        model = timm.create_model(name, **arguments).eval()
        if model.num_classes <= 0 and not arguments:
            try:
                return timm.create_model(name, num_classes=HEADLESS_CLASSES).eval(), {"num_classes": HEADLESS_CLASSES}
            except Exception:  # each refuses in its own way
                return model, {}
    return model, arguments


def check_attached(
    model: nn.Module, images: torch.Tensor, clones: Clones, point: InsertionPoint | None, trunk: list[str]
) -> torch.Tensor:
    """Logits with a clone at the input and one at ``point``, both of which must have been heard; then they are detached."""
    made = [clones.at_input(), *([clones.at(point, trunk, model)] if point else [])]
    own = int(model.num_classes)
    with torch.no_grad():
        attached = [pnc_hub.attach(model, clone, on_mismatch="warn") for clone in made]
        try:
            logits = model(images)
        finally:
            fired = [attachment.fired for attachment in attached]
            pnc_hub.detach(model)
    expected = (len(images), own + len(LABELS) * len(made))
    if tuple(logits.shape) != expected or not all(fired):
        raise Failed(f"logits {list(logits.shape)} instead of {list(expected)}, clones heard: {fired}")
    return logits


def measure_real(
    name: str,
    given: dict,
    size: tuple[int, int, int],
    clones: Clones,
    point: InsertionPoint | None,
    trunk: list[str],
    limit: float,
) -> str:
    """The same in numbers, at the smallest size of image that the architecture takes."""
    model, side = smallest(name, given, size)
    for layer in layers_of(model.get_classifier()):
        nn.init.normal_(layer.weight, std=0.1)  # many start at zero, and all logits would be the same
    images = torch.randn(2, size[0], *((side, side) if side else size[1:]))
    start = time.perf_counter()
    with torch.no_grad():
        alone = model(images)
    if time.perf_counter() - start > limit:
        return f"skipped, a pass takes {time.perf_counter() - start:.1f} s"
    before = state(model)
    logits = check_attached(model, images, clones, point, trunk)
    if not torch.equal(logits[:, : alone.shape[1]], alone):
        raise Failed("the model's own logits changed")
    if alone.isfinite().all() and not logits.isfinite().all():
        raise Failed("the clone's logits are not finite")
    with torch.no_grad():
        if state(model) != before or not torch.equal(model(images), alone):
            raise Failed("the model is not what it was before")
    return "ok"


def smallest(name: str, given: dict, size: tuple[int, int, int]) -> tuple[nn.Module, int | None]:
    """A real model and the side of the smallest images that it takes (None: its own size)."""
    for side, arguments in candidates(size):
        try:
            build(name, **given, **arguments)[0](torch.empty(2, size[0], side, side, device="meta"))
            model = build(name, "cpu", **given, **arguments)[0]
            with torch.no_grad():
                model(torch.zeros(1, size[0], side, side))
        except Exception:  # sizes that do not fit fail in as many ways as there are architectures
            continue
        return model, side
    return build(name, "cpu", **given)[0], None


def candidates(size: tuple[int, int, int]) -> Iterator[tuple[int, dict]]:
    """(side of the images, constructor arguments), in the order in which they are tried."""
    for side in SIDES[:2]:
        if side < size[1]:
            yield side, {}
    for side in SIDES:
        if side < size[1]:
            yield side, {"img_size": side}


def layers_of(classifier: object) -> list[nn.Module]:
    """The linear layers of a classifier, which may be a layer, several, or none."""
    parts = classifier if isinstance(classifier, (tuple, list)) else [classifier]
    modules = [module for part in parts if isinstance(part, nn.Module) for module in part.modules()]
    return [module for module in modules if isinstance(module, (nn.Linear, nn.Conv2d))]


def state(model: nn.Module) -> tuple:
    """What attaching and detaching must leave alone."""
    tables = [
        (
            list(vars(module)),
            module.training,
            {key: list(value) for key, value in vars(module).items() if "_hooks" in key},
        )
        for module in model.modules()
    ]
    return state_digest(model), tables, model.num_classes


def print_summary(rows: list[dict]) -> None:
    """Counts, then the rows that failed."""
    points = [row["points"] or 0 for row in rows]
    print(f"{len(rows)} architectures, {sum(count > 0 for count in points)} with an interior insertion point", end="")
    print(f" ({sum(count >= 4 for count in points)} with four or more)")
    for kind in ("meta", "real"):
        counts = Counter(str(row[kind]).partition(",")[0] for row in rows)
        print(f"{kind}: {', '.join(f'{count} {what}' for what, count in counts.most_common())}")
    failed = [row for row in rows if row["reason"] or not row["points"]]
    titles = "architecture | points | meta | real | reason"
    print(f"\n{markdown(titles, ([row[title] for title in titles.split(' | ')] for row in failed))}")


if __name__ == "__main__":
    main()
