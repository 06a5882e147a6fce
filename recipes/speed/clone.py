"""What learning a clone costs beside its floor: each image decoded once, and one forward pass of each network over it.

python recipes/speed/clone.py --data DIR --json clone.json
python recipes/speed/clone.py --cases digits

Every case runs in a process of its own, with one thread unless OMP_NUM_THREADS is set (several wait for one another where other
work is running, which counts as time of the processor). The floor is measured in the same process when the clone is there: the
images that were decoded for it, all once more, in the batches that the library makes.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[2]))

from recipes.frame.rows import markdown

# stage: where the library looks its function up. What is read and computed for the first time counts for the stage that asks.
STAGES = {
    "read images": "pnc_hub.cloning.fitting.stitch:Stitches.read",
    "judge places": "pnc_hub.cloning.search.select:insertion_curve",
    "prune": "pnc_hub.cloning.search.select:promising",
    "train": "pnc_hub.cloning.search.select:refined",
    "gates": "pnc_hub.cloning.search.select:with_gates",
    "package": "pnc_hub.cloning.learn:package",
    "report": "pnc_hub.cloning.session:Session.report",
}
# says what the best place promises; the first one is the first answer
ANSWER = "pnc_hub.cloning.search.select:_promise"
GIVEN = "pnc_hub.cloning.learn:best_clone"  # its first two arguments are the networks and the batches
READ = "pnc_hub.cloning.images.data:Images.stored"  # decodes one image

PHOTOS, CLASSES, SIDE = 40, 10, 256  # of each class; on either side; pixels
NETWORKS = {"resnet50 -> vit_small": ("resnet50", "vit_small_patch16_224"), "command line": ("mobilenetv2_100",) * 2}
CASES = ("digits", "REAL", *NETWORKS)  # what each is: clone.md


def main(argv: Sequence[str] | None = None) -> list[dict]:
    """Print a table of the stages, and one of each case's time and memory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, help="all by default; REAL only with --data")
    parser.add_argument("--data", help="folder of the photos and networks of REAL")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--rehearse", action="store_true", help="tiny networks, few images: do all steps work?")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)  # folder, time at which it was started
    arguments = parser.parse_args(argv)
    cases = arguments.cases or [case for case in CASES if case != "REAL" or arguments.data]
    if "REAL" in cases and not arguments.data:
        parser.error("REAL needs --data")
    if arguments.worker:
        folder, started = arguments.worker
        print(json.dumps(_work(cases[0], Path(folder), arguments.data, float(started), arguments.rehearse)))
        return []
    rows = []
    for case in cases:
        with tempfile.TemporaryDirectory() as folder:
            if case in NETWORKS:
                _prepare(Path(folder), case, arguments.rehearse)
            rows.append({"benchmark": "clone", "case": case, **_worker(case, folder, arguments)})
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")
    print(f"{stages_table(rows)}\n\n{cases_table(rows)}")
    return rows


def stages_table(rows: Sequence[dict]) -> str:
    """Seconds of the processor and their ratio to the floor, stage by stage."""
    cells = []
    for row in rows:
        floor = sum(row["floor"].values())
        lines = {**row["stages"], "rest": row["cpu"] - sum(row["stages"].values()), "**all**": row["cpu"]}
        lines |= {f"floor: {part}": seconds for part, seconds in row["floor"].items()} | {"**floor**": floor}
        cells += [[row["case"], part, f"{seconds:.1f}", f"{seconds / floor:.2f}"] for part, seconds in lines.items()]
    return markdown("case | stage | s of the processor | ratio to floor", cells)


def cases_table(rows: Sequence[dict]) -> str:
    """Images, time by the clock on the wall, memory and page faults."""
    titles = "case | images | s by the wall clock | first answer after, s | peak memory, MB | page faults, thousands"
    shown = {"wall": (1, ".1f"), "first_answer": (1, ".1f"), "peak": (1e6, ".0f"), "faults": (1e3, ".0f")}
    cells = ([f"{row[key] / unit:{digits}}" for key, (unit, digits) in shown.items()] for row in rows)
    return markdown(titles, [[row["case"], row["images"], *more] for row, more in zip(rows, cells, strict=True)])


class Stopwatch:
    """Seconds of the processor in each of several functions, without those that it spends in another of them."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """``clock`` tells seconds."""
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self._clock, self._inside = clock, []

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, its time counted for ``stage``."""

        def act(*arguments: Any, **options: Any) -> Any:
            started = self._clock()
            self._inside.append(0.0)
            try:
                result = function(*arguments, **options)
                return list(result) if inspect.isgenerator(result) else result
            finally:
                taken = self._clock() - started
                self.seconds[stage] += taken - self._inside.pop()
                if self._inside:
                    self._inside[-1] += taken

        return act


class Observed:
    """What a clone was learned from: networks, batches, and every image that was decoded."""

    def __init__(self) -> None:
        self.networks = self.batches = self.answered = None
        self.entries: dict[Any, tuple[Any, int]] = {}

    def given(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, whose first arguments are the networks and the batches."""

        def act(networks: Any, batches: Any, *arguments: Any, **options: Any) -> Any:
            self.networks, self.batches = networks, batches
            return function(networks, batches, *arguments, **options)

        return act

    def answer(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, which says what can be expected."""

        def act(*arguments: Any) -> Any:
            self.answered = self.answered or time.time()
            return function(*arguments)

        return act

    def read(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, which decodes an image of a set."""

        def act(images: Any, position: int) -> Any:
            self.entries.setdefault(images.key(position), (images, position))
            return function(images, position)

        return act

    def floor(self, clock: Callable[[], float]) -> dict[str, float]:
        """Seconds of the processor for each image once."""
        from pnc_hub.cloning.images.batches import Loader
        from pnc_hub.cloning.images.kept import Kept

        seconds = {"decode": 0.0, "target": 0.0, "source": 0.0}
        given = self.batches
        for batch, _ in Loader(list(self.entries.values()), given.accelerator, given.batch_size, 0, Kept()):
            for part, act in zip(seconds, (batch.pixels, self.networks.target, self.networks.teach), strict=True):
                started = clock()
                act(*() if part == "decode" else (batch,))
                seconds[part] += clock() - started
        return seconds


@contextmanager
def watched(stopwatch: Stopwatch, observed: Observed) -> Iterator[None]:
    """The library with its stages timed, for as long as this lasts."""
    wrapped = {place: lambda function, stage=stage: stopwatch.timed(stage, function) for stage, place in STAGES.items()}
    with ExitStack() as patches:
        for place, wrap in (wrapped | {GIVEN: observed.given, READ: observed.read, ANSWER: observed.answer}).items():
            owner, name = resolved(place)
            patches.enter_context(patch.object(owner, name, wrap(getattr(owner, name))))
        yield


def resolved(place: str) -> tuple[Any, str]:
    """``"package.module:Class.name"`` -> what holds the name, and the name."""
    from pkgutil import resolve_name

    module, _, path = place.partition(":")
    *owners, name = path.split(".")
    return resolve_name(f"{module}:{'.'.join(owners)}" if owners else module), name


def _worker(case: str, folder: str, arguments: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, "--cases", case, *(["--rehearse"] if arguments.rehearse else [])]
    command += ["--data", arguments.data] if arguments.data else []
    command += ["--worker", folder, str(time.time())]
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def _work(case: str, folder: Path, data: str | None, started: float, rehearse: bool) -> dict[str, Any]:
    """Learn one clone in this process, then measure the floor."""
    from recipes.frame import rehearsal
    from recipes.frame.task import clock

    if rehearse:
        rehearsal.begin()
    stopwatch, observed = Stopwatch(clock), Observed()
    if case == "command line":  # the whole process counts, as a user waits for it
        act, faults, cpu = partial(_command_line, folder, rehearse), 0, 0.0
    else:
        act = {"digits": _digits, "REAL": _real}.get(case, _pair)(data if case == "REAL" else folder)
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts here (Linux)
        faults, started, cpu = _faults(), time.time(), clock()
    with watched(stopwatch, observed):
        act()
    taken = {"cpu": clock() - cpu, "wall": time.time() - started, "faults": _faults() - faults, "peak": _peak()}
    described = {"images": len(observed.entries), "threads": int(os.environ["OMP_NUM_THREADS"])}
    taken["first_answer"] = observed.answered - started
    return {**described, **taken, "stages": stopwatch.seconds, "floor": observed.floor(clock)}


def _faults() -> int:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_minflt + used.ru_majflt


def _peak() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def _digits(_folder: Path) -> Callable[[], Any]:
    from recipes.frame import rehearsal
    from recipes.method import digits

    source, target = digits.pair(0)
    return lambda: digits.cloned(source, target, 0, **({"epochs": 0} if rehearsal.on() else {}))


def _real(data: str) -> Callable[[], Any]:
    from recipes.method import ours, real

    task = real.make(argparse.Namespace(data=data, device=None), 1993, "R4")
    options = next(options for name, _, options in ours.VARIANTS if name == "closed_small")
    return lambda: ours.clone(task, **options)


def _pair(folder: Path) -> Callable[[], Any]:
    import pnc_hub
    from recipes.frame.untrained import random_model

    source, target = map(random_model, json.loads((folder / "networks.json").read_text()), (0, 1))
    classes = {name.name: index for index, name in enumerate(sorted((folder / "new").iterdir()))}
    options = {"target_data": folder / "old", "epochs": 0, "progress": False, "device": "cpu"}
    return lambda: pnc_hub.clone(source, target, classes, folder / "new", **options)


def _command_line(folder: Path, rehearse: bool) -> None:
    from pnc_hub.cli import main as command

    options: dict[str, Any] = {"data": folder / "new", "target-data": folder / "old", "classes": folder / "classes.txt"}
    options["output"] = folder / "output"
    for role, name in zip(("source", "target"), json.loads((folder / "networks.json").read_text()), strict=True):
        options |= {role: name, f"{role}-checkpoint": folder / f"{role}.pth"}
    arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    command(["clone", *arguments, *(["--epochs", "0"] if rehearse else [])], standalone_mode=False)


def _prepare(folder: Path, case: str, rehearse: bool) -> None:
    """Photos of squares in each class's colours, and networks' names and random weights."""
    import numpy as np
    import torch
    from PIL import Image

    from recipes.frame.untrained import random_model

    names = ("test_resnet",) * 2 if rehearse else NETWORKS[case]
    (folder / "networks.json").write_text(json.dumps(names))
    (folder / "classes.txt").write_text("".join(f"new {label}, {label}\n" for label in range(CLASSES)))
    for seed, (role, name) in enumerate(zip(("source", "target"), names, strict=True)):
        torch.save(random_model(name, seed).state_dict(), folder / f"{role}.pth")
    rng = np.random.default_rng(0)
    for side in ("new", "old"):
        for label in range(CLASSES):
            (folder / side / f"{side} {label}").mkdir(parents=True)
            colours = rng.integers(0, 256, (4, 4, 3)).repeat(SIDE // 4, 0).repeat(SIDE // 4, 1)
            for number in range(8 if rehearse else PHOTOS):
                pixels = (colours + rng.integers(-60, 61, (SIDE, SIDE, 3))).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / side / f"{side} {label}" / f"{number}.jpg")


if __name__ == "__main__":
    main()
