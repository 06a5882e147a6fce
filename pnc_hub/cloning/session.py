"""What learning and porting have in common: options, processes, seeds, images in parts, progress, and the report."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list
from tqdm.auto import tqdm

from pnc_hub.artifact import checks, files
from pnc_hub.artifact.config import AdapterConfig
from pnc_hub.cloning.fitting import gate as gates
from pnc_hub.cloning.images.allocator import memory_kept
from pnc_hub.cloning.images.batches import Batches, Pixels, Split
from pnc_hub.cloning.images.data import Images
from pnc_hub.cloning.images.kept import Kept
from pnc_hub.cloning.measuring.album import Album
from pnc_hub.cloning.measuring.evaluate import Observed, observe
from pnc_hub.cloning.networks import SourceAndTarget
from pnc_hub.cloning.search.curve import Judged
from pnc_hub.cloning.search.learned import Learned
from pnc_hub.errors import DataError
from pnc_hub.hub.clone import Clone
from pnc_hub.report.series import curve_table

MAX_REPORT_IMAGES = 20_000  # of each side: shares are then known to a third of a point


@dataclass
class Session:
    """One run of learning or porting, in one process or in several, with the options of ``pnc_hub.clone``.

    Raises:
        ValueError: an option is out of range, or one of ``hub_ids`` is none: what no artifact can record shows now, not after
            all the learning.
    """

    locality_budget: float | None
    held_out: float
    batch_size: int
    workers: int
    seed: int
    device: str | None
    progress: bool
    hub_ids: tuple[str | None, ...]

    def __post_init__(self) -> None:
        self.started = time.perf_counter()
        in_range = self.locality_budget is None or 0 < self.locality_budget < 1
        if not in_range or not 0 < self.held_out < 0.33 or self.batch_size < 1 or self.workers < 0 or self.seed < 0:
            names = ("locality_budget", "held_out", "batch_size", "workers", "seed")
            raise ValueError(
                "locality_budget is in (0, 1); held_out, the share that is kept back three times, above 0 and below 0.33;"
                " batch_size at least 1; workers and seed at least 0; found"
                f" {' '.join(f'{name}={getattr(self, name)!r}' for name in names)}"
            )
        for hub_id in self.hub_ids:
            checks.hub_id(hub_id)
        self.accelerator = Accelerator(
            cpu=self.device == "cpu",
            dataloader_config=DataLoaderConfiguration(even_batches=False),  # no image counts twice
            # a tail may have parameters without use
            kwargs_handlers=[DistributedDataParallelKwargs(static_graph=True)],
        )

    @contextmanager
    def running(self, what: str, **bar: Any) -> Iterator[tqdm[Any]]:
        """All that is random follows the seed, the caller's random state is not touched; a progress bar."""
        shown = self.progress and self.accelerator.is_main_process
        with (
            memory_kept(),
            torch.random.fork_rng(),
            torch.inference_mode(False),
            torch.enable_grad(),
            tqdm(desc=what, disable=not shown, leave=False, **bar) as progress,
        ):
            torch.manual_seed(self.seed)
            yield progress

    def batches(
        self, cloned: Images, others: Images | None, *, of_target: bool, covered: bool, kept: Kept | None = None
    ) -> Batches:
        """Images of the cloned classes, and of others if there are any, in parts.

        A budget can be calibrated on the others where they are ``of_target``; ``covered``: they show most of its classes;
        ``kept`` is what was read before.

        Raises:
            DataError: there are too few for the parts, or for the locality budget.
        """
        own = Split.of(cloned, self.seed, self.held_out)
        rest = None if others is None else Split.of(others, self.seed, self.held_out)
        if self.locality_budget is not None:
            _check_budget(self.locality_budget, rest if of_target else None)
        return Batches(own, rest, self.accelerator, self.batch_size, self.workers, self.seed, covered, kept or Kept())

    def report(
        self,
        clone: Clone,
        adapter: AdapterConfig,
        learned: Learned,
        networks: SourceAndTarget,
        batches: Batches,
        curve: list[Judged],
        album: Album | None = None,
    ) -> tuple[Observed, dict[str, Any]]:
        """What is seen of a finished clone on the images that no choice was made on, and what every report says of it."""
        clone.curve = tuple(judged.row() for judged in curve)
        cloned, others = batches.sides("report", MAX_REPORT_IMAGES)
        shown = Pixels(cloned), None if others is None else Pixels(others)
        observed = observe(networks.target.model, clone, *shown, album)
        adapter.series = {"curve": curve_table(clone.curve, learned.insertion.name)}
        return observed, {
            "insertion": learned.insertion.name,
            "cut": learned.cut.name,
            "match": learned.match,
            "kept_parameters": learned.parameters(),
            "bytes": clone.nbytes(files.WEIGHTS, adapter.file),
            "images": batches.used,
            "locality_budget": self.locality_budget,
            **observed.held_out(),
        }

    def ended(self, clone: Clone, adapter: AdapterConfig) -> Clone:
        """``clone`` with the time that it took, the same in every process."""
        adapter.metrics["seconds"] = round(time.perf_counter() - self.started, 2)
        everywhere: list[Clone] = broadcast_object_list([clone])
        return everywhere[0]


def _check_budget(budget: float, target: Split | None) -> None:
    """Raise ``DataError`` where ``target`` has too few images to calibrate the budget on."""
    if target is None:
        raise DataError("a locality_budget is calibrated on images of the target; give them as target_data")
    needed, count = gates.images_needed(budget), len(target.calibrate)
    if count < needed:
        raise DataError(
            f"a locality_budget of {budget:g} is calibrated on at least {needed} images of the target, and target_data has"
            f" {count} to spare for it (a tenth); give more, or a budget of at least {math.ceil(1000 / (count + 1)) / 1000:g}"
        )
