"""The benchmark of learning a clone: what is timed is there, time is counted once, and the floor reads every image once."""

from collections import Counter

import pytest
from cloning.learning import CLASSES, NEW, OLD, PLACE
from common import source_args, tiny_model

import pnc_hub
from pnc_hub.cloning.images.data import Images
from recipes.speed import clone


@pytest.mark.parametrize("place", [*clone.STAGES.values(), clone.GIVEN, clone.READ, clone.ANSWER])
def test_what_is_timed_is_there(place):
    owner, name = clone.resolved(place)
    assert callable(getattr(owner, name))


def test_time_in_a_stage_within_a_stage_is_counted_once():
    ticks = iter(range(0, 100, 10))
    stopwatch = clone.Stopwatch(lambda: next(ticks))
    inner = stopwatch.timed("prune", lambda: None)
    stopwatch.timed("train", lambda: [inner(), inner()])()
    assert stopwatch.seconds == {**dict.fromkeys(clone.STAGES, 0), "prune": 20, "train": 30}


def test_a_generator_is_timed_as_it_is_used():
    ticks = iter(range(0, 100, 10))
    stopwatch = clone.Stopwatch(lambda: next(ticks))
    assert stopwatch.timed("read images", lambda: (next(ticks) for _ in range(3)))() == [10, 20, 30]
    assert stopwatch.seconds["read images"] == 40


def test_every_stage_is_timed_and_the_floor_reads_each_image_once(monkeypatch):
    ticks, decoded, stored = iter(range(10**6)), Counter(), Images.stored

    def counted(images, position):
        decoded[images.key(position)] += 1
        return stored(images, position)

    monkeypatch.setattr(Images, "stored", counted)
    stopwatch, observed = clone.Stopwatch(lambda: next(ticks)), clone.Observed()
    models, options = (tiny_model("resnet", seed=1), tiny_model("convnext")), {"device": "cpu", "progress": False}
    arguments = {**PLACE, **options, "target_data": OLD, "source_args": source_args("resnet"), "epochs": 0}
    with clone.watched(stopwatch, observed):
        pnc_hub.clone(*models, CLASSES, NEW, **arguments)
    assert Images.stored is counted
    assert observed.answered
    assert all(seconds > 0 for seconds in stopwatch.seconds.values())
    assert len(decoded) == len(observed.entries) == len(NEW) + len(OLD)
    before = decoded.copy()
    assert observed.floor(lambda: next(ticks)).keys() == {"decode", "target", "source"}
    assert decoded - before == dict.fromkeys(before, 1)


def test_the_tables_show_ratios_to_the_floor():
    row = {
        "case": "digits",
        "stages": dict.fromkeys(clone.STAGES, 2.0),
        "floor": {"decode": 1.0, "target": 1.0, "source": 2.0},
        **{"cpu": 20.0, "wall": 12.0, "first_answer": 3.0, "images": 7, "peak": 5e8, "faults": 2e6},
    }
    lines = clone.stages_table([row]).splitlines()
    assert "| digits | train | 2.0 | 0.50 |" in lines
    assert f"| digits | rest | {20 - 2 * len(clone.STAGES):.1f} | {5 - len(clone.STAGES) / 2:.2f} |" in lines
    assert lines[-1] == "| digits | **floor** | 4.0 | 1.00 |"
    assert clone.cases_table([row]).splitlines()[-1] == "| digits | 7 | 12.0 | 3.0 | 500 | 2000 |"
