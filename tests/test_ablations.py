"""Every ablation changes the part that it is named after, for one clone, and nothing after it."""

import ablations
import ours
import pairs
import pytest
import torch
import training
from task import Task
from test_recipes import raw

import pnc_hub
from pnc_hub.cloning import gate, learn, localize, refine, select, stitch

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
    modules = (gate, learn, localize, refine, select, stitch)
    return [value for module in modules for name, value in vars(module).items() if not name.startswith("__")]


def weights(clone):
    return {name: tensor for file in clone.all_tensors().values() for name, tensor in file.items()}


@pytest.mark.parametrize("name", [name for name in ablations.METHODS if name.startswith("closed_")])
def test_runs_and_leaves_the_package_alone(task, made, name):
    before = pieces()
    options = {} if "place" in name else PLACE
    method = ablations.METHODS[name][0]
    result = method(task, **options)
    assert result.predict(task.old_test.batch(range(3))[0]).shape == (3, 5)
    assert all(one is other for one, other in zip(pieces(), before, strict=True))


def gate_of(task, made, name):
    ablations.METHODS[name][0](task, **PLACE)
    tensors = weights(made[-1])
    return {name.rsplit(".", 1)[-1]: tensor for name, tensor in tensors.items() if "gate" in name}


def test_a_gate_may_be_blind_or_missing(task, made):
    full = gate_of(task, made, "closed_unpruned")
    assert full["offset"] != 0
    raw_logits = gate_of(task, made, "closed_no_gate")
    assert raw_logits["scalars"].abs().sum() == 2
    assert raw_logits["offset"] == 0
    assert gate_of(task, made, "closed_no_offset")["offset"] == 0
    assert gate_of(task, made, "closed_no_features")["features"].abs().max() == 0


def test_places_are_admissible_and_the_last_is_the_cheapest(task):
    last, somewhere = ablations.last_place(task), ablations.random_place(task)
    assert last["insertion"].startswith("layer3")
    assert somewhere == ablations.random_place(task)
    for place in (last, somewhere):
        assert place["insertion"] in {point.name for point in pnc_hub.insertion_points(task.target)}


@pytest.mark.parametrize("name", ["clone_random_adapter", "clone_no_trials", "clone_no_shifts", "clone_anchored"])
def test_training_without_a_part_ends_elsewhere(task, made, name):
    ours.clone(task, epochs=0.5, **PLACE)
    before = pieces()
    ablations.METHODS[name][0](task, epochs=0.5, **PLACE)
    assert all(one is other for one, other in zip(pieces(), before, strict=True))
    one, other = map(weights, made)
    same = all(torch.equal(one[key], other[key]) for key in one)
    assert same == (name == "clone_no_trials")  # one place alone needs no trials
