"""The gate: what it separates, what it is allowed to look at, and what a locality budget promises."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from pnc_hub import fusion
from pnc_hub.cloning.fitting.gate import Evidence, auroc, best_offset, conformal_offset, fit, images_needed
from pnc_hub.module import Gate

POSITION = {name: index for index, name in enumerate(fusion.SCALARS)}


def evidence(count=60, shift=0.0, seed=0, reject=0.0, confident=0.0, features=4):
    """Random logits; ``shift`` moves the features, ``confident`` one logit of the target's, ``reject`` the reject logit."""
    g = torch.Generator().manual_seed(seed)
    target, clone = torch.randn(count, 5, generator=g), torch.randn(count, 3, generator=g)
    target[:, 0] += confident
    labels = torch.zeros(count, dtype=torch.long)
    read = torch.randn(count, features, generator=g) + shift
    return Evidence(target, clone, reject + 0.3 * torch.randn(count, generator=g), read, labels)


def separation(gate, new, old):
    return auroc(new.gate_logit(gate), old.gate_logit(gate))


@pytest.mark.parametrize(
    "sides",
    [({"shift": 1.5}, {"shift": -1.5}), ({"reject": -2.0}, {"reject": 2.0}), ({"confident": 0.0}, {"confident": 6.0})],
    ids=["features", "reject", "target"],
)
def test_evidence_that_can_be_separated_is(sides):
    (new, old), held_out, unseen = (
        [evidence(**side, seed=seed + k) for k, side in enumerate(sides)] for seed in (0, 2, 4)
    )
    gate = fit(new, old, held_out, universal=False)
    assert separation(gate, *unseen) > 0.95
    right = (unseen[0].gate_logit(gate) > 0).float().mean() + (unseen[1].gate_logit(gate) <= 0).float().mean()
    assert right / 2 > 0.85
    assert float(gate.offset) == 0.0


def test_the_sides_weigh_the_same_whatever_their_numbers():
    new, old = evidence(20, shift=0.5), evidence(400, shift=-0.5, seed=1)
    gate = fit(new, old, (evidence(20, shift=0.5, seed=2), evidence(400, shift=-0.5, seed=3)), universal=False)
    let_through = (evidence(400, shift=0.5, seed=4).gate_logit(gate) > 0).float().mean()
    held_back = (evidence(400, shift=-0.5, seed=5).gate_logit(gate) <= 0).float().mean()
    assert let_through == pytest.approx(float(held_back), abs=0.12)


@pytest.mark.parametrize("with_target", [True, False])
@pytest.mark.parametrize("reject", [0.0, -1.0])
def test_a_universal_gate_does_not_see_the_targets_logits(with_target, reject):
    new, old = evidence(shift=1.0, reject=reject), evidence(shift=-1.0, seed=1)
    if reject == 0.0:
        new.reject = torch.zeros(len(new))
    gate = fit(new, old if with_target else None, (new, old if with_target else None), universal=True)
    before = new.gate_logit(gate)
    new.target_logits = 10 * torch.randn(60, 5)
    assert torch.equal(new.gate_logit(gate), before)
    assert before.std() > 0


@pytest.mark.parametrize(("with_target", "covered"), [(False, True), (False, False), (True, False)])
def test_without_images_of_most_target_classes_the_logits_stand_side_by_side(with_target, covered):
    new, old = evidence(shift=1.5), evidence(shift=-1.5, seed=1) if with_target else None
    gate = fit(new, old, (new, old), False, covered)
    fused = fusion.new_logits(new.target_logits, new.clone_logits, new.gate_logit(gate))
    assert_close(fused, new.clone_logits)


@pytest.mark.parametrize(("other", "asked"), [(4.0, True), (0.0, True), (-4.0, False)])
def test_the_sources_own_opinion_counts_unless_held_out_images_speak_against_it(other, asked):
    new, old = evidence(), evidence(seed=1)
    new.reject, old.reject = torch.zeros(60), torch.full((60,), other)
    seen = replace(new, reject=torch.full((60,), other)), replace(old, reject=torch.zeros(60))  # the contrary
    gate = fit(*seen, (new, old), False, covered=False, odds=9.0)
    energies = new.scalars(*fusion.SCALARS)
    expected = energies[:, POSITION["clone_energy"]] - energies[:, POSITION["target_energy"]]
    if asked:
        expected = expected + energies[:, POSITION["clone_energy"]] + math.log(9)
    assert_close(new.gate_logit(gate), expected)
    alone = fit(new, old, (new, old), False, covered=False)
    assert alone.scalars[POSITION["reject"]] == 0.0
    old.labels = torch.full((60,), -1)  # of the source's other classes: they say nothing of the target
    assert fit(new, old, (new, old), False, covered=False, odds=9.0).scalars[POSITION["reject"]] == 0.0


def test_a_universal_gate_without_other_images_lets_nearly_every_cloned_image_through():
    new = evidence(400)
    gate = fit(new, None, (new, None), universal=True)
    assert (new.gate_logit(gate) > 0).float().mean() > 0.85
    assert not gate.scalars[[POSITION[name] for name in ("target_max", "target_energy")]].any()


def test_a_few_of_the_targets_classes_raise_the_offset_and_never_lower_it():
    gate, cloned, target = margins([-5.0, -4.0], [-9.0, -8.0])
    assert best_offset(gate, cloned, target, None) < 0
    assert best_offset(gate, cloned, target, None, covered=False) == 0.0
    gate, cloned, target = margins([4.0, 5.0], [1.0, 2.0])
    assert best_offset(gate, cloned, target, None, covered=False) == best_offset(gate, cloned, target, None) > 2


def test_the_joint_accuracy_counts_right_answers_on_the_right_side():
    gate, cloned, target = margins([-1.0, 1.0, 2.0, 3.0], [-1.0, 1.0])
    cloned.labels = torch.tensor([0, 0, 1, 0])  # the third is diverted and wrong: its class is not 0
    assert cloned.accuracy(gate, True) == 0.5
    assert target.accuracy(gate, False) == 0.5
    target.labels = torch.tensor([-1, -1])  # unknown classes need only stay
    assert target.accuracy(gate, False) == 0.5


def margins(new, old):
    """Evidence whose margin under an empty gate is exactly as given, with the clone and the target always right."""

    def of(values):
        values = torch.tensor(values)
        count = len(values)
        target = torch.zeros(count, 1)  # one class: its log probability is 0
        clone = torch.zeros(count, 1)
        return Evidence(target, clone, values, torch.zeros(count, 0), torch.zeros(count, dtype=torch.long))

    gate = Gate(0).requires_grad_(False)
    gate.scalars[POSITION["reject"]] = 1.0
    return gate, of(new), of(old)


@pytest.mark.parametrize(
    ("new", "old", "low", "high"),
    [
        ([2.0, 3.0, 4.0], [-3.0, -2.0, 0.0], 0.0, 2.0),
        ([-5.0, -4.0], [-9.0, -8.0], -8.0, -5.0),
        ([0.0, 4.0, 5.0, 6.0], [-1.0, 1.0, 2.0, 3.0], 3.0, 4.0),
    ],
    ids=["around zero", "far below", "overlapping"],
)
def test_the_best_offset_lies_between_the_sides(new, old, low, high):
    gate, cloned, target = margins(new, old)
    assert torch.allclose(cloned.margin(gate), torch.tensor(new))
    assert low <= best_offset(gate, cloned, target, None) <= high


def test_an_offset_does_not_reward_wrong_answers():
    """All the cloned images are classified wrongly, so nothing is won by letting them through."""
    gate, cloned, target = margins([0.0, 1.0, 2.0], [0.5, 1.5, 2.5])
    cloned.labels += 1
    assert best_offset(gate, cloned, target, None) >= 2.5


def test_without_target_images_the_offset_stays_zero():
    gate, cloned, _ = margins([1.0], [0.0])
    assert best_offset(gate, cloned, None, None) == 0.0


def test_a_budget_raises_the_offset_and_never_lowers_it():
    gate, cloned, target = margins([5.0, 6.0], list(np.arange(19.0)))
    assert best_offset(gate, cloned, target, None) < 6
    assert best_offset(gate, cloned, target, 0.1) == 17.0
    assert best_offset(gate, cloned, target, 0.05) == 18.0
    assert best_offset(gate, cloned, target, 0.9) == best_offset(gate, cloned, target, None)


@pytest.mark.parametrize(("count", "budget"), [(20, 0.1), (50, 0.1), (99, 0.01), (30, 0.05), (7, 0.3)])
def test_the_budget_holds_on_average_over_draws(count, budget):
    rng = np.random.RandomState(0)
    diverted = np.mean(
        [(rng.standard_t(3, 200) > conformal_offset(rng.standard_t(3, count), budget)).mean() for _ in range(3000)]
    )
    assert diverted <= budget + 0.003
    assert diverted >= budget - 1 / (count + 1) - 0.003  # and is not wasted


@pytest.mark.parametrize("budget", [0.01, 0.02, 0.05, 0.07, 0.1, 0.29, 0.3, 0.5, 0.9])
def test_images_needed_are_as_few_as_give_a_finite_offset(budget):
    needed = images_needed(budget)
    assert math.isfinite(conformal_offset(np.zeros(needed), budget))
    assert conformal_offset(np.zeros(needed - 1), budget) == float("inf")
    assert needed == pytest.approx(1 / budget - 1, abs=1)


def test_rounding_does_not_cost_an_image():
    assert conformal_offset(np.arange(99.0), 0.29) == 99 - 29
    assert conformal_offset(np.arange(99.0), 0.07) == 99 - 7


def test_auroc_of_known_scores():
    assert auroc(torch.tensor([2.0, 3.0]), torch.tensor([0.0, 1.0])) == 1.0
    assert auroc(torch.tensor([1.0, 1.0]), torch.tensor([1.0])) == 0.5
    assert auroc(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 3.0])) == 0.25
