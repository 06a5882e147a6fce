"""Least squares after pruning brings the network back towards what it was, also on images that were not looked at."""

import copy

import pytest
import torch
from common import images
from torch import nn
from torch.testing import assert_close

from cloning.test_localize import parts
from pnc_hub.cloning.pruning import repair
from pnc_hub.cloning.pruning.localize import prune
from pnc_hub.cloning.pruning.units import masked, units_of
from pnc_hub.models.cost import parameters


def batches(*features):
    return [(feature, torch.zeros(len(feature), dtype=torch.long), torch.ones(len(feature))) for feature in features]


def small(kernel=1, bias=True):
    """(network, units): three layers, in the middle a map of 12 channels of which the last 6 are combinations of the others."""
    torch.manual_seed(0)
    whole = nn.Sequential(
        nn.Conv2d(4, 4, 1),
        nn.Sequential(
            nn.Conv2d(4, 12, 1, bias=bias),
            nn.Conv2d(12, 8, kernel, padding=kernel // 2, bias=bias),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        ),
        nn.Linear(8, 3),
    )
    with torch.no_grad():
        first = whole[1][0]
        mix = torch.randn(6, 6)
        first.weight[6:] = (mix @ first.weight[:6].flatten(1)).view(6, 4, 1, 1)
        if bias:
            first.bias[6:] = mix @ first.bias[:6]
    whole.requires_grad_(True)
    return whole, units_of(whole, torch.zeros(2, 4, 5, 5))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kernel", [1, 3])
def test_what_the_others_tell_is_not_lost(kernel, bias):
    whole, units = small(kernel, bias)
    feature = torch.randn(64, 4, 5, 5)
    expected = whole(feature).detach()
    kept = [
        torch.arange(group.count) < 6 if group.count == 12 else torch.ones(group.count) > 0 for group in units.groups
    ]
    with masked(units.groups, [stays.float() for stays in kept]):
        lost = (whole(feature) - expected).abs().max()
    repair.fold(whole, units.groups, kept, batches(feature[:32]))
    with masked(units.groups, [stays.float() for stays in kept]):
        found = (whole(feature) - expected).abs().max()
    assert lost > 0.05
    assert found < (0.05 if kernel == 1 else 0.1) * lost  # a constant cannot be right at the zeros beyond the border


def test_nothing_is_folded_where_nothing_goes():
    whole, units = small()
    before = copy.deepcopy(whole.state_dict())
    repair.before(
        whole, units.groups, [torch.ones(group.count) > 0 for group in units.groups], batches(torch.randn(8, 4, 5, 5))
    )
    assert_close(whole.state_dict(), before)


def test_statistics_come_back_whatever_the_running_ones_are():
    torch.manual_seed(0)
    whole = nn.Sequential(
        nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 1), nn.BatchNorm2d(4)
    ).eval()
    for layer in (whole[1], whole[4]):  # as where BatchNorm was folded: not the statistics of anything
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.5, 2)
    feature = 3 * torch.randn(32, 3, 4, 4) + 1
    expected, was = repair.statistics(whole, feature), whole(feature).detach()
    whole[0].weight.data *= 2.5
    whole[0].bias.data += 1
    repair.match_statistics(whole, feature, expected)
    assert_close(whole(feature), was, rtol=1e-3, atol=1e-3)


def test_the_head_is_fitted_to_the_original_on_images_it_has_not_seen():
    torch.manual_seed(0)
    original = nn.Sequential(nn.Linear(10, 12), nn.ReLU(), nn.Linear(12, 3))
    tail, head = nn.Sequential(original[0], original[1], nn.Linear(12, 6)), nn.Linear(6, 3)
    seen, unseen = torch.randn(300, 10), torch.randn(100, 10)
    goal = original(unseen)
    before = (head(tail(unseen)) - goal).square().mean()
    repair.refit_head(tail, head, original, batches(*seen.split(50)))
    after = (head(tail(unseen)) - goal).square().mean()
    assert after < 0.5 * before
    assert after < goal.var()


def test_a_head_that_fits_is_left_alone():
    torch.manual_seed(0)
    tail, head = nn.Linear(10, 6), nn.Linear(6, 3)
    before = copy.deepcopy(head.state_dict())
    repair.refit_head(tail, head, copy.deepcopy(nn.Sequential(tail, head)), batches(torch.randn(40, 10)))
    assert_close(head.state_dict(), before)


@pytest.mark.parametrize(
    "family", ["vit", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mobilenet", "convnext"))]
)
def test_a_pruned_tail_is_nearer_to_the_original_after_repair(family):
    _, networks, cut, tail, head, _ = parts(family)
    feature = networks.teach(images(96, seed=3), [cut.name]).features[cut.name]
    labels = torch.arange(64) % 4
    local_set = list(zip(feature[:64].split(16), labels.split(16), torch.ones(64).split(16), strict=True))
    largest = int(0.6 * (parameters(tail) + parameters(head)))
    goal = head(tail(feature[64:]))
    errors = []
    for steps in ((), repair.STEPS):
        pruned, rows = prune(tail, head, cut, local_set, largest, repairs=steps)
        errors.append((rows(pruned(feature[64:])) - goal).square().mean().item())
    assert errors[1] < 0.8 * errors[0], errors
