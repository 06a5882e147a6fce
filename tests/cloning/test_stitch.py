"""Closed-form adapters, and the pairs that are tried."""

import pytest
import torch
from accelerate import Accelerator
from common import images, tiny_model
from torch import nn
from torch.testing import assert_close
from torch.utils.data import TensorDataset

from pnc_hub.cloning.fitting import stitch
from pnc_hub.cloning.fitting.ridge import RIDGES, Moments, fit_rows, ridge
from pnc_hub.cloning.fitting.stitch import Stitches, admissible_pairs
from pnc_hub.cloning.images.batches import Batches, Split
from pnc_hub.cloning.images.data import Images
from pnc_hub.cloning.networks import Networks
from pnc_hub.models.insertion import INPUT, InsertionPoint, to_maps

CPU = torch.device("cpu")


def rows(count=200, inputs=6, outputs=4, seed=0):
    """x, and y that is linear in x with a bias, and noise."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(count, inputs, generator=g, dtype=torch.float64)
    truth = torch.randn(inputs + 1, outputs, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    noise = 0.1 * torch.randn(count, outputs, generator=g, dtype=torch.float64)
    return x, x @ truth[:-1] + truth[-1] + noise


def moments(x, y, batch=64):
    found = Moments()
    for part in zip(x.split(batch), y.split(batch), strict=True):
        found.add(*part)
    return found


def with_constant(x):
    return torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)


def test_a_vanishing_penalty_gives_least_squares():
    x, y = rows()
    expected = torch.linalg.lstsq(with_constant(x), y).solution
    assert_close(moments(x, y).solve(1e-12), expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("strength", [1e-3, 1.0])
def test_a_penalty_gives_the_ridge_solution_with_a_free_bias(strength):
    x, y = rows()
    penalty = torch.full((7,), strength * float((x * x).sum(0).mean()), dtype=torch.float64)
    penalty[-1] = 1e-9 * len(x)
    whole = with_constant(x)
    expected = torch.linalg.inv(whole.T @ whole + penalty.diag()) @ whole.T @ y
    assert_close(moments(x, y).solve(strength), expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("batch", [1, 7, 200])
def test_moments_do_not_depend_on_batches(batch):
    x, y = rows()
    assert_close(moments(x, y, batch).solve(0.1), moments(x, y).solve(0.1), rtol=0, atol=1e-10)


def test_the_error_is_the_summed_square_of_the_residuals():
    x, y = rows()
    weights = torch.randn(7, 4, dtype=torch.float64)
    expected = float(((with_constant(x) @ weights - y) ** 2).sum())
    assert moments(x, y).error(weights) == pytest.approx(expected, rel=1e-10)


def test_the_penalty_is_the_best_on_held_out_rows():
    few, held_out = moments(*rows(8, seed=1)), moments(*rows(500, seed=2))
    errors = [held_out.error(few.solve(strength)) for strength in RIDGES]
    assert held_out.error(ridge(few, held_out)) == min(errors)
    assert min(errors) < max(errors)


def test_rows_are_fitted_over_all_batches():
    x, _ = rows()
    found = fit_rows(Accelerator(cpu=True), [(x[:50], None), (x[50:], None)], lambda part: (part, 2 * part))
    expected = torch.cat([2 * torch.eye(6, dtype=torch.float64), torch.zeros(1, 6, dtype=torch.float64)])
    assert_close(found.solve(1e-12), expected, rtol=0, atol=1e-6)


def point(name, channels=8, grid=(4, 4), layout="NCHW"):
    return InsertionPoint(name, channels, 8, layout, grid)


def named(*points):
    return {one.name: one for one in points}


TARGET = named(point(INPUT, 3, (32, 32)), point("early", grid=(8, 8)), point("late"), point("last", 8, (1, 1), "NC"))
SOURCE = named(point("wide", grid=(16, 16)), point("half", grid=(8, 8)), point("whole"), point("end", 8, (1, 1), "NC"))


def names(pairs):
    return {(target.name, source.name) for target, source in pairs}


def test_pairs_grow_a_map_at_most_twofold_and_make_no_map_of_a_vector():
    assert names(admissible_pairs(TARGET, SOURCE, None, None)) == {
        *(("early", cut) for cut in SOURCE),
        *(("late", cut) for cut in ("half", "whole", "end")),
        ("last", "end"),
    }


@pytest.mark.parametrize(
    ("insertion", "cut", "expected"),
    [
        ("late", None, {("late", "half"), ("late", "whole"), ("late", "end")}),
        (None, "wide", {("early", "wide")}),
        ("early", "end", {("early", "end")}),
        ("last", "wide", set()),
    ],
)
def test_pairs_can_be_restricted(insertion, cut, expected):
    assert names(admissible_pairs(TARGET, SOURCE, insertion, cut)) == expected


def test_a_long_stage_gives_a_few_points_evenly_spread_with_its_last():
    stage = named(*(point(f"block{number}") for number in range(1, 13)))
    found = admissible_pairs(stage, {"whole": SOURCE["whole"]}, None, None)
    step = 12 // stitch.PER_STAGE
    assert 1 < step < 12
    assert [target.name for target, _ in found] == [f"block{number}" for number in range(step, 13, step)]


def candidates(networks, pairs, seed=0):
    """Every pair with its adapter, fitted on 40 images."""
    shown = Images(TensorDataset(images(50, 1), torch.zeros(50)), networks.target.preprocess, {0: 0})
    batches = Batches(Split.of(shown, 0), None, Accelerator(cpu=True), 16, 0, seed)
    stitches = Stitches(networks, batches, pairs, 40)
    return [stitches.candidate(*pair) for pair in pairs]


@torch.no_grad()
def match(networks, candidate):
    """Share of the variance of the source's feature at the cut that the adapter explains, on new images."""
    name = candidate.cut.name
    read = networks.target(images(24, 7), [candidate.insertion.name])[1][candidate.insertion.name]
    goal = networks.teach(images(24, 7), [name]).features[name]
    return 1 - float(((candidate.adapter(read) - goal) ** 2).mean() / (goal - goal.mean(0)).pow(2).mean())


@pytest.mark.parametrize("family", ["convnext", "vit"])
def test_the_same_place_of_the_same_network_matches_perfectly(family):
    model = tiny_model(family)
    networks = Networks(model, model, [0, 1], CPU)
    pairs = admissible_pairs(networks.target.skeleton.points, networks.cuts(), None, None)
    found = candidates(networks, pairs)
    assert {(candidate.insertion, candidate.cut) for candidate in found} == set(pairs)
    fits = {(one.insertion.name, one.cut.name): match(networks, one) for one in found}
    same = [fit for (target, source), fit in fits.items() if target == source]
    assert len(same) >= 3
    assert min(same) > 0.999
    assert min(fits.values()) < 0.95


def test_an_exactly_linear_relation_between_two_networks_is_recovered():
    """The source is the target, but for channels of one layer that are mixed before and unmixed behind the cut."""
    target, source = tiny_model("resnet"), tiny_model("resnet")
    mix = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(3)))[0]
    source.layer1[1].act2 = nn.Sequential(target.layer1[1].act2, _Mix(mix))
    networks = Networks(source, target, [0], CPU)
    pair = networks.target.skeleton.points["layer1.1"], networks.cuts()["layer1.1"]
    (found,) = candidates(networks, [pair])
    _, read = networks.target(images(2, 5), ["layer1.1"])
    expected = networks.teach(images(2, 5), ["layer1.1"]).features["layer1.1"]
    assert_close(to_maps(found.adapter(read["layer1.1"]), pair[1]), expected, rtol=0, atol=0.01)
    assert_close(found.adapter.map.weight, mix, rtol=0, atol=0.01)
    assert match(networks, found) > 0.999


class _Mix(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, maps):
        return torch.einsum("oc,bchw->bohw", self.weight, maps)


def test_both_networks_look_at_each_image_once_however_many_adapters_are_asked_for():
    networks = Networks(tiny_model("resnet"), tiny_model("convnext"), [0], CPU)
    seen = []
    for reader in (networks.target, networks.source):
        reader.model.register_forward_pre_hook(lambda _module, given: seen.append(len(given[0])))
    pairs = admissible_pairs(networks.target.skeleton.points, networks.cuts(), "stages.2", None)
    shown = Images(TensorDataset(images(50, 1), torch.zeros(50)), networks.target.preprocess, {0: 0})
    stitches = Stitches(networks, Batches(Split.of(shown, 0), None, Accelerator(cpu=True), 16, 0, 0), pairs, 40)
    assert list(stitches.read()) == [4] * 4  # 35 images to fit, 5 to choose
    assert sum(seen) == 2 * 40
    assert [stitches.candidate(*pair) for pair in pairs]
    assert sum(seen) == 2 * 40


def test_the_search_is_reproducible():
    networks = Networks(tiny_model("resnet"), tiny_model("convnext"), [0], CPU)
    pairs = [(networks.target.skeleton.points["stages.0"], networks.cuts()["layer1.1"])]
    first, again, other = (candidates(networks, pairs, seed)[0] for seed in (0, 0, 1))
    assert torch.equal(first.adapter.map.weight, again.adapter.map.weight)
    assert match(networks, other) == pytest.approx(match(networks, first), abs=0.2)
