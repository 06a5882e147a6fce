"""The choice of insertion point and cut, and what localisation and gate are given."""

import pytest
import torch
from accelerate import Accelerator
from common import images, tiny_model
from torch.utils.data import TensorDataset
from tqdm.auto import tqdm

from pnc_hub.cloning.batches import Batches, Split
from pnc_hub.cloning.data import Images
from pnc_hub.cloning.evaluate import gather
from pnc_hub.cloning.networks import Networks
from pnc_hub.cloning.refine import Recipe
from pnc_hub.cloning.select import _local_set, _reject_row, _worth_a_trial, best_clone
from pnc_hub.cloning.stitch import Candidate
from pnc_hub.errors import InsertionPointError, SourceError
from pnc_hub.points import InsertionPoint

CPU = torch.device("cpu")


def split(networks, classes, seed, each=10):
    labels = torch.arange(classes).repeat_interleave(each)
    dataset = TensorDataset(images(len(labels), seed), labels)
    return Split.of(Images(dataset, networks.target.preprocess, {index: index for index in range(classes)}), 0)


@pytest.fixture(scope="module")
def networks():
    return Networks(tiny_model("resnet", seed=1), tiny_model("convnext"), [1, 2, 4], CPU)


@pytest.fixture(scope="module")
def prepared(networks):
    return Batches(split(networks, 3, 1), split(networks, 7, 2, 4), Accelerator(cpu=True), 16, 0, 0)


def choose(networks, prepared, fixed=("stages.1", "layer3.1"), keep=1.0, epochs=0, budget=None):
    bar = tqdm(disable=True)
    return best_clone(networks, prepared, fixed, keep, Recipe(epochs, 2e-3, True), budget, bar)


def candidate(target, source, match):
    points = [InsertionPoint(name, 0, channels, 8, "NCHW", (grid, grid)) for name, channels, grid in (target, source)]
    return Candidate(*points, None, match)


def test_each_stage_tries_its_best_match_and_its_best_of_the_same_size():
    best_late = candidate(("b1", 8, 4), ("c3", 8, 1), 0.9)
    best_same = candidate(("b2", 8, 4), ("c2", 8, 4), 0.8)
    worse = candidate(("b1", 8, 4), ("c1", 8, 4), 0.7)
    other_stage = candidate(("d1", 16, 2), ("c4", 8, 2), 0.6)
    assert _worth_a_trial([best_late, best_same, worse, other_stage]) == [best_late, best_same, other_stage]


def test_the_reject_row_stands_for_the_sources_other_classes(networks, prepared):
    weight, bias = _reject_row(networks, prepared)
    lesson = networks.teach(images(200, 5))
    found = lesson.penultimate @ weight + bias
    residual = ((found - lesson.rejected) ** 2).mean() / lesson.rejected.var()
    assert residual < 0.3


def test_where_every_class_is_cloned_there_is_no_reject_row(prepared):
    networks = Networks(tiny_model("resnet"), tiny_model("convnext"), list(range(7)), CPU)
    assert _reject_row(networks, prepared) is None


@pytest.mark.parametrize("with_target", [True, False])
def test_the_local_set_holds_images_neighbours_and_the_targets_images(networks, prepared, with_target):
    given = prepared if with_target else Batches(prepared.cloned, None, prepared.accelerator, 16, 0, 0)
    found = list(_local_set(networks, given, "layer2.1"))
    labels = torch.cat([label for _, label, _ in found])
    weights = torch.cat([weight for _, _, weight in found])
    features = torch.cat([feature for feature, _, _ in found])
    cloned, target = len(prepared.cloned.fit), len(prepared.target.fit) if with_target else 0
    assert len(features) == len(labels) == len(weights) == 2 * cloned + target
    assert labels.bincount(minlength=4).tolist() == [2 * cloned // 3] * 3 + [target]
    assert (weights == 1).sum() >= cloned + target
    assert (weights < 1).any()


@pytest.mark.parametrize("fixed", [("stages.1", "layer3.1"), ("stages.2", None), (None, "global_pool")])
def test_what_the_caller_fixed_stays(networks, prepared, fixed):
    learned = choose(networks, prepared, fixed)
    found = learned.target.name, learned.source.name
    assert all(wanted in (None, name) for wanted, name in zip(fixed, found, strict=True))
    assert learned.match <= 1


@pytest.mark.parametrize(
    ("fixed", "found"),
    [
        (("stages.9", None), "'stages.9' is no insertion point of the target.*stages.1"),
        ((None, "layer9"), "'layer9' is no cut of the source.*layer3.1"),
        ((None, "input"), "'input' is no cut"),
        (("input", None), "interior"),
        (("stages.3", "layer1.0"), "no pair .*stages.3.*layer1.0.* fits"),
    ],
)
def test_places_that_do_not_exist_or_do_not_fit_are_refused(networks, prepared, fixed, found):
    with pytest.raises(InsertionPointError, match=found):
        choose(networks, prepared, fixed)


@pytest.mark.parametrize("keep", [0.9, 0.6, 0.3])
def test_the_clone_keeps_to_its_size(networks, prepared, keep):
    cut = {0.9: "layer3.0", 0.6: "layer4.0", 0.3: "layer4.1"}[keep]
    learned = choose(networks, prepared, ("stages.1", cut), keep=keep)
    assert learned.parameters() <= keep * networks.parameters


def test_a_size_that_can_not_be_met_is_refused(networks, prepared):
    with pytest.raises(SourceError, match=r"no candidate fits into 401 parameters.*keep="):
        choose(networks, prepared, keep=0.005)


@pytest.mark.parametrize("budget", [0.3, 0.5])
def test_a_budget_holds_on_the_images_it_was_calibrated_on(networks, prepared, budget):
    learned = choose(networks, prepared, budget=budget)

    def read(images):
        logits, features = networks.target(images, ["stages.1"])
        return (logits, *learned.module(features["stages.1"]))

    old = gather(read, prepared.loader([prepared.target.calibrate]))
    assert (old.margin(learned.gate) > 0).float().mean() <= budget
