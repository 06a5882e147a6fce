"""The choice of insertion point and cut, and what localisation and gate are given."""

import pytest
import torch
from accelerate import Accelerator
from common import images, tiny_model
from torch.utils.data import TensorDataset
from tqdm.auto import tqdm

from pnc_hub.cloning.fitting.gate import Evidence
from pnc_hub.cloning.fitting.refine import Recipe
from pnc_hub.cloning.fitting.stitch import Candidate
from pnc_hub.cloning.images.batches import Batches, Pixels, Split
from pnc_hub.cloning.images.data import Images
from pnc_hub.cloning.measuring.evaluate import gather
from pnc_hub.cloning.networks import Networks
from pnc_hub.cloning.pruning.local_set import local_set
from pnc_hub.cloning.search import trials
from pnc_hub.cloning.search.curve import Judged
from pnc_hub.cloning.search.select import best_clone, reject_rows
from pnc_hub.cloning.search.trials import Size, promising
from pnc_hub.errors import InsertionPointError, SourceError
from pnc_hub.models.cost import macs
from pnc_hub.models.insertion import empty
from pnc_hub.module import Adapter, CloneModule

CPU = torch.device("cpu")
EVIDENCE = ("target_logits", "clone_logits", "reject", "features")


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


def choose(
    networks,
    prepared,
    fixed=("stages.1", "layer3.1"),
    keep=1.0,
    epochs=0,
    budget=None,
    macs=float("inf"),
    universal=True,
):
    size = Size(int(keep * networks.parameters), macs)
    recipe = Recipe(epochs, 2e-3, True, universal)
    return best_clone(networks, prepared, fixed, size, recipe, budget, tqdm(disable=True))


def test_the_best_and_the_best_that_hardly_needs_pruning_are_tried_then_others(networks, prepared, monkeypatch):
    points, cuts = networks.target.skeleton.points, networks.cuts()

    def place(target, source):
        candidate = Candidate(points[target], cuts[source], Adapter(points[target], cuts[source]))
        return Judged(candidate, 0.5, 0.5, scores.get(source, 0.5), 0.5, sizes[source], 0)

    def tried(names, room, closed=False):
        places = [place(*pair) for pair in names]
        found = promising(networks, prepared, places, head, Size(room), closed, tqdm(disable=True))
        return {(one.candidate.insertion.name, one.candidate.cut.name) for one in found}

    scores = {}
    sizes = {"layer2.0": 10, "layer2.1": 9, "layer4.1": 8, "global_pool": 7}
    names = [("stages.1", "global_pool"), ("stages.2", "layer4.1"), ("stages.1", "layer2.1"), ("stages.1", "layer2.0")]
    head = networks.head_rows(reject_rows(networks, prepared))
    assert tried(names, networks.parameters * 2) == set(names)
    assert tried(names, networks.parameters * 2, closed=True) == {names[0]}
    monkeypatch.setattr(trials, "TRIALS", 3)
    assert tried(names, networks.parameters * 2) == set(names[:3])
    sizes |= {"layer2.1": 10 * networks.parameters, "layer4.1": networks.parameters}  # before pruning
    sizes["layer2.0"] = sizes["layer2.1"]
    names = [("stages.1", "layer2.1"), ("stages.1", "layer2.0"), ("stages.1", "layer4.1")]
    assert tried(names, networks.parameters, closed=True) == {names[2]}
    scores |= {"layer2.1": 0.57, "layer2.0": 0.55}
    assert tried(names, networks.parameters, closed=True) == {names[0], names[2]}
    monkeypatch.setattr(trials, "TRIALS", 2)
    assert tried(names, networks.parameters) == {names[0], names[2]}


def test_the_reject_row_stands_for_the_sources_other_classes(networks, prepared):
    weight, bias = reject_rows(networks, prepared)
    lesson = networks.teach(images(200, 5))
    found = lesson.penultimate @ weight[0] + bias[0]
    residual = ((found - lesson.rejected) ** 2).mean() / lesson.rejected.var()
    assert residual < 0.3


def test_where_every_class_is_cloned_the_reject_row_says_nothing(prepared):
    networks = Networks(tiny_model("resnet"), tiny_model("convnext"), list(range(7)), CPU)
    weight, bias = reject_rows(networks, prepared)
    assert weight.shape == (1, networks.width)
    assert not weight.any()
    assert not bias.any()


@pytest.mark.parametrize("with_target", [True, False])
def test_the_local_set_holds_images_of_both_sides_once(networks, prepared, with_target):
    given = prepared if with_target else Batches(prepared.cloned, None, prepared.accelerator, 16, 0, 0)
    found = list(local_set(networks, given, "layer2.1"))
    labels = torch.cat([label for _, label, _ in found])
    weights = torch.cat([weight for _, _, weight in found])
    features = torch.cat([feature for feature, _, _ in found])
    cloned, target = len(prepared.cloned.fit), len(prepared.target.fit) if with_target else 0
    assert len(features) == len(labels) == len(weights) == cloned + target
    assert labels.bincount(minlength=4).tolist() == [cloned // 3] * 3 + [target]
    assert (weights == 1).all()


@pytest.mark.parametrize("fixed", [(None, "global_pool"), pytest.param(("stages.2", None), marks=pytest.mark.slow)])
def test_what_the_caller_fixed_stays(networks, prepared, fixed):
    learned, _ = choose(networks, prepared, fixed)
    found = learned.insertion.name, learned.cut.name
    assert all(wanted in (None, name) for wanted, name in zip(fixed, found, strict=True))
    assert learned.match <= 1


def test_the_curve_has_every_pair_that_was_tried(networks, prepared):
    learned, places = choose(networks, prepared, ("stages.1", None))
    pairs = {(place.candidate.insertion.name, place.candidate.cut.name) for place in places}
    assert len(pairs) == len(places) > 2
    assert (learned.insertion.name, learned.cut.name) in pairs


def test_a_clone_for_one_target_has_no_gate_for_others(networks, prepared):
    assert choose(networks, prepared, universal=False)[0].universal_gate is None


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


@pytest.mark.parametrize("keep", [0.3, *(pytest.param(keep, marks=pytest.mark.slow) for keep in (0.6, 0.9))])
def test_the_clone_keeps_to_its_size(networks, prepared, keep):
    cut = {0.9: "layer3.0", 0.6: "layer4.0", 0.3: "layer4.1"}[keep]
    learned, _ = choose(networks, prepared, ("stages.1", cut), keep=keep)
    assert learned.parameters() <= keep * networks.parameters


@pytest.mark.parametrize("share", [pytest.param(share, marks=pytest.mark.slow) for share in (0.7, 0.4)])
def test_the_clone_keeps_to_its_macs(networks, prepared, share):
    pair = ("stages.1", "layer2.1")
    whole = CloneModule(
        Adapter(networks.target.skeleton.points[pair[0]], networks.cuts()[pair[1]]),
        networks.tail(pair[1]),
        networks.head_rows(reject_rows(networks, prepared)),
    )
    allowed = share * macs(whole, empty(networks.target.skeleton.points[pair[0]]))
    learned, _ = choose(networks, prepared, pair, macs=allowed)
    assert macs(learned.module, empty(learned.insertion)) <= allowed


def test_a_size_that_can_not_be_met_is_refused(networks, prepared):
    with pytest.raises(SourceError, match=r"no candidate fits into 401 parameters.*keep="):
        choose(networks, prepared, keep=0.005)


@pytest.mark.parametrize("budget", [0.5, pytest.param(0.3, marks=pytest.mark.slow)])
def test_a_budget_holds_on_the_images_it_was_calibrated_on(networks, prepared, budget):
    # nothing is kept yet: what was kept of features in half precision would be as near as that
    fresh = Batches(prepared.cloned, prepared.target, prepared.accelerator, 16, 0, 0)
    learned, _ = choose(networks, fresh, budget=budget)

    def read(images):
        logits, features = networks.target(images, ["stages.1"])
        return dict(zip(EVIDENCE, (logits, *learned.module(features["stages.1"])), strict=True))

    old = Evidence(**gather(read, Pixels(fresh.loader([fresh.target.calibrate]))))
    assert (old.margin(learned.gate) > 1e-5).float().mean() <= budget
