"""The whole search, its curve, clones within a budget, and clones of several sources in one target."""

import pytest
import torch
from common import images, source_args, tiny_model
from conftest import what_it_is
from torch.utils.flop_counter import FlopCounterMode

import pnc_hub
from cloning.learning import CLASSES, learn, squares
from pnc_hub.cloning.search.curve import SHORTLIST
from pnc_hub.hub.clone import Clone

T = 7


@pytest.fixture(scope="module")
def source(models):
    return models[0]


@pytest.fixture(scope="module")
def target(models):
    return models[1]


@pytest.fixture(scope="module")
def two(target, closed):
    """Of a ResNet and of a ViT, read from different points of the target."""
    birds = {"crane": 3, "owl": 5}
    return (
        closed,
        learn(
            tiny_model("vit", seed=2),
            target,
            birds,
            squares(birds.values()),
            epochs=0,
            insertion="stages.2",
            cut="blocks.1",
            source_args=source_args("vit"),
        ),
    )


@pytest.fixture(scope="module", params=[0, pytest.param(1, marks=pytest.mark.slow)], ids=["closed form", "refined"])
def searched(source, target, request):
    """Looked for everywhere, pruned, and refined."""
    return learn(source, target, insertion=None, cut=None, keep=0.5, epochs=request.param)


def alone(target, clone):
    with pnc_hub.attach(target, clone):
        return answers(target)


@torch.inference_mode()
def answers(model):
    return model(images(6))


def added_macs(target, clone):
    def counted():
        with FlopCounterMode(display=False) as counter:
            target(images(1))
        return counter.get_total_flops() // 2

    with torch.no_grad(), pnc_hub.attach(target, clone):
        attached = counted()
    with torch.no_grad():
        return attached - counted()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["first attached first", "last attached first"])
@pytest.mark.parametrize("removed", [0, 1], ids=["remove the ResNet's", "remove the ViT's"])
def test_clones_of_two_sources_share_a_target_and_go_in_any_order(target, two, order, removed):
    before, expected = what_it_is(target), answers(target)
    each = [alone(target, clone) for clone in two]
    attached = {number: pnc_hub.attach(target, two[number]) for number in order}
    joint = answers(target)
    assert joint.shape == (6, T + 3 + 2)
    assert torch.equal(joint[:, :T], expected)
    for number, attachment in attached.items():
        assert attachment.labels == two[number].labels
        assert joint[:, attachment.logit_slice].shape == each[number][:, T:].shape
    attached[removed].detach()
    assert torch.equal(answers(target), each[1 - removed])
    attached[1 - removed].detach()
    assert torch.equal(answers(target), expected)
    assert what_it_is(target) == before


def test_each_of_two_clones_orders_its_classes_as_it_does_alone(target, two):
    with pnc_hub.attach(target, two[0]) as first, pnc_hub.attach(target, two[1]) as second:
        joint = answers(target)
        parts = [joint[:, attachment.logit_slice] for attachment in (first, second)]
    for clone, part in zip(two, parts, strict=True):
        assert torch.equal(part.argmax(1), alone(target, clone)[:, T:].argmax(1))


def test_a_clone_that_was_removed_can_come_back(target, two):
    with pnc_hub.attach(target, two[0]), pnc_hub.attach(target, two[1]):
        expected = answers(target)
    with pnc_hub.attach(target, two[0]):
        second = pnc_hub.attach(target, two[1])
        second.detach()
        with pnc_hub.attach(target, two[1]):
            assert torch.equal(answers(target), expected)


def test_the_whole_search_gives_a_clone_that_saves_loads_and_attaches(source, target, searched, tmp_path):
    report = searched.report
    assert report["kept_parameters"] <= 0.5 * report["source_parameters"]
    assert report["insertion"] in {point.name for point in pnc_hub.insertion_points(target)}
    before, expected = what_it_is(target), target(images())
    loaded = Clone.from_pretrained(searched.save_pretrained(tmp_path / "clone"))
    assert loaded.labels == tuple(CLASSES)
    with torch.inference_mode(), pnc_hub.attach(target, loaded) as joined:
        assert target(images()).shape == (4, 10)
        assert torch.equal(target(images())[:, :7], expected)
        joined.verify()
    assert what_it_is(target) == before


@pytest.mark.slow
def test_a_budget_of_parameters_is_kept_by_the_place_that_is_chosen(source, target, searched):
    most = 0.5 * searched.report["kept_parameters"]
    learned = learn(source, target, insertion="stages.2", cut=None, epochs=0, budget={"parameters": most})
    assert learned.report["kept_parameters"] <= most


@pytest.mark.slow
def test_a_budget_of_macs_is_kept_by_the_place_that_is_chosen(source, target, closed):
    most = 0.5 * added_macs(target, closed)
    learned = learn(source, target, insertion="stages.1", cut=None, epochs=0, budget={"macs": most})
    assert added_macs(target, learned) <= most


@pytest.mark.parametrize("which", ["keep", pytest.param("budget", marks=pytest.mark.slow)])
def test_the_smaller_of_keep_and_budget_holds(source, target, closed, which):
    small, largest = 0.5 * closed.report["kept_parameters"], closed.report["source_parameters"]
    options = {
        "keep": {"keep": small / largest, "budget": {"parameters": 10**9}},
        "budget": {"keep": 1.0, "budget": {"parameters": small}},
    }[which]
    assert learn(source, target, epochs=0, **options).report["kept_parameters"] <= small


def test_a_budget_of_both_is_kept(source, target, closed):
    parameters = 0.8 * closed.report["kept_parameters"]
    operations = 0.6 * added_macs(target, closed)
    learned = learn(source, target, epochs=0, budget={"parameters": parameters, "macs": operations})
    assert learned.report["kept_parameters"] <= parameters
    assert added_macs(target, learned) <= operations


@pytest.mark.parametrize("budget", [{"params": 10**5}, {"parameters": 10**5, "flops": 1e9}])
def test_a_budget_of_anything_else_is_refused(source, target, budget):
    unknown = next(name for name in budget if name != "parameters")
    with pytest.raises(ValueError, match=rf"'parameters' and 'macs'.*{unknown}"):
        learn(source, target, budget=budget)


@pytest.mark.parametrize("budget", [{"parameters": 0}, {"macs": 0}, {"parameters": -5}])
def test_a_budget_of_nothing_is_refused(source, target, budget):
    with pytest.raises(ValueError, match="above 0"):
        learn(source, target, budget=budget)


def test_a_budget_that_nothing_fits_is_refused_and_says_what_to_do(source, target):
    with pytest.raises(pnc_hub.errors.SourceError, match="allow more with keep="):
        learn(source, target, budget={"macs": 10})


def test_the_curve_is_of_all_places_best_first(source, target, searched):
    curve = searched.curve
    assert {place["insertion"] for place in curve} <= {point.name for point in pnc_hub.insertion_points(target)}
    assert len({(place["insertion"], place["cut"]) for place in curve}) == len(curve) > SHORTLIST
    looked_at_again = curve[:SHORTLIST]
    by_gate = [(-round(place["auroc"], 3), -round(place["match"], 1), place["macs"]) for place in looked_at_again]
    by_accuracy = [(-place["avg_u"], -place["auroc"]) for place in looked_at_again]
    assert any(  # the first few are as good as the best, and in the order of their gates
        by_gate[:alike] == sorted(by_gate[:alike])
        and by_accuracy[alike:] == sorted(by_accuracy[alike:])
        and max(by_accuracy[:alike])[0] <= min(by_accuracy[alike:], default=(0.0,))[0]
        for alike in range(1, SHORTLIST + 1)
    )
    assert searched.report["insertion"] in {place["insertion"] for place in curve}
    for place in curve:
        assert 0 <= place["avg_u"] <= 1
        assert place["parameters"] > 0
        assert place["macs"] > 0


def test_the_curve_of_a_fixed_place_is_one_point(two):
    for clone in two:
        (place,) = clone.curve
        assert (place["insertion"], place["cut"]) == (clone.report["insertion"], clone.report["cut"])


def test_a_loaded_clone_has_no_curve(two, tmp_path):
    assert Clone.from_pretrained(two[0].save_pretrained(tmp_path)).curve == ()
