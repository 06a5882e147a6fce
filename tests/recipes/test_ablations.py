"""Every ablation changes the part that it is named after, for one clone, and nothing after it."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from made_up import raw

import pnc_hub
from pnc_hub import fusion
from pnc_hub.cloning import learn
from pnc_hub.cloning.fitting import gate, refine, stitch
from pnc_hub.cloning.pruning import local_set, localize
from pnc_hub.cloning.search import select, trials
from recipes.frame import pairs, training
from recipes.frame.task import Task
from recipes.method import ablations, ours

MEAN, STD = (0.5,) * 3, (0.25,) * 3
PLACE = {"insertion": "layer1.1", "cut": "layer2.0"}


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> Task:
    training.use_cache(tmp_path_factory.mktemp("cache"))
    return pairs.Pair("TINY", raw(6, 30), raw(6, 4, 1), 3, MEAN, STD, epochs=1).task(1993, "R4", 2, "cpu")


@pytest.fixture
def made(monkeypatch):
    """Clones that a recipe has made."""
    found, learned = [], pnc_hub.clone

    def clone(*arguments, **options):
        found.append(learned(*arguments, **options))
        return found[-1]

    monkeypatch.setattr(pnc_hub, "clone", clone)
    return found


def pieces():
    """Everything that an ablation may exchange."""
    modules = (gate, learn, local_set, localize, refine, select, stitch, trials)
    return [value for module in modules for name, value in vars(module).items() if not name.startswith("__")]


def weights(clone):
    return {name: tensor for file in clone.all_tensors().values() for name, tensor in file.items()}


def same(one, other):
    return one.keys() == other.keys() and all(
        one[name].shape == other[name].shape and torch.equal(one[name], other[name]) for name in one
    )


def ablated(task, made, name, **options):
    """The weights of the clone, once everything that was exchanged is back in its place."""
    before = pieces()
    result = ablations.METHODS[name][0](task, **options)
    assert result.predict(task.old_test.batch(range(3))[0]).shape == (3, 5)
    assert all(one is other for one, other in zip(pieces(), before, strict=True))
    return weights(made[-1])


@pytest.fixture(scope="module")
def default(task):
    """The weights of the default at one place: in closed form without passes, trained with some."""

    @cache
    def weights_of(epochs):
        found, learned = [], pnc_hub.clone
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(pnc_hub, "clone", lambda *a, **o: found.append(learned(*a, **o)) or found[-1])
            ours.clone(task, epochs=epochs, **PLACE)
        return weights(found[-1])

    return weights_of


@pytest.mark.slow
@pytest.mark.parametrize("name", [f"closed_{name}" for name, part in ablations.CLOSED.items() if "place" not in part])
def test_a_part_that_is_left_out_was_there(task, made, default, name):
    assert not same(ablated(task, made, name, **PLACE), default(0))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "epochs"), [("clone_random_adapter", 0.5), ("clone_no_augmentation", 6), ("clone_anchored", 0.5)]
)
def test_training_without_a_part_ends_elsewhere(task, made, default, name, epochs):
    assert not same(ablated(task, made, name, epochs=epochs, **PLACE), default(epochs))


@pytest.mark.slow
def test_where_there_is_one_place_nothing_is_tried(task, made, default):
    assert same(ablated(task, made, "clone_no_trials", epochs=0.5, **PLACE), default(0.5))


@pytest.mark.slow
def test_without_trials_one_place_is_refined(task, monkeypatch):
    refined, learned = [], trials.refine
    monkeypatch.setattr(trials, "refine", lambda *a, **o: (refined.append(a[3]), learned(*a, **o))[1])
    ablations.METHODS["clone_no_trials"][0](task, epochs=0.1)
    assert len(refined) == 1
    ours.clone(task, epochs=0.1)
    assert len(set(refined)) > 3


def gate_of(task, made, name):
    tensors = ablated(task, made, name, **PLACE)
    return {name.rsplit(".", 1)[-1]: tensor for name, tensor in tensors.items() if "gate" in name}


@pytest.mark.slow
def test_a_gate_may_be_blind_or_missing(task, made):
    full = gate_of(task, made, "closed_unpruned")
    reject = fusion.SCALARS.index("reject")
    assert full["offset"] != 0
    assert full["scalars"][reject] != 0
    assert gate_of(task, made, "closed_no_reject")["scalars"][reject] == 0
    raw_logits = gate_of(task, made, "closed_no_gate")
    assert raw_logits["scalars"].abs().sum() == 2
    assert raw_logits["offset"] == 0
    assert gate_of(task, made, "closed_no_offset")["offset"] == 0
    assert gate_of(task, made, "closed_no_features")["features"].abs().max() == 0


@pytest.mark.slow
def test_a_gate_that_is_not_learned_may_be_blind_too(task, made):
    few = replace(task, old=task.old.of_classes([0]))
    assert gate_of(few, made, "closed_no_reject")["scalars"][fusion.SCALARS.index("reject")] == 0


def test_places_are_admissible_and_the_last_is_the_cheapest(task):
    last, somewhere = ablations.last_place(task), ablations.random_place(task)
    assert somewhere == ablations.random_place(task)
    places = [(point.name, point.grid) for point in pnc_hub.insertion_points(task.target)]
    assert last["insertion"] == [name for name, grid in places if grid != (1, 1)][-1]
    assert last["cut"] == places[-1][0]
    assert {somewhere["insertion"], somewhere["cut"]} <= {name for name, _ in places}


def test_parts_that_need_images_of_the_target_are_left_out_without():
    for name, (_, regimes) in ablations.METHODS.items():
        assert ("R1" in regimes) == (name.split("_", 1)[1] not in ablations.WITH_TARGET)
