"""Refinement: what it aims at, and what it may change."""

import pytest
import torch
from accelerate import Accelerator
from common import images, tiny_model
from torch import nn
from torch.testing import assert_close

from pnc_hub.cloning.networks import Lesson, Networks
from pnc_hub.cloning.refine import Recipe, distillation_loss, refine
from pnc_hub.fingerprint import state_digest
from pnc_hub.module import Adapter, CloneModule

INF = float("inf")
PAIR = ("stages.1", "layer2.1")


def lesson(cloned, rejected, penultimate=None):
    penultimate = torch.zeros(len(cloned), 4) if penultimate is None else penultimate
    return Lesson(torch.tensor(cloned), torch.tensor(rejected), penultimate, {})


def loss_of(logits, taught, labels, near=None, penultimate=None):
    logits = torch.as_tensor(logits)
    penultimate = taught.penultimate if penultimate is None else penultimate
    near = torch.ones(len(labels)) if near is None else torch.tensor(near)
    return float(distillation_loss((logits[:, :-1], logits[:, -1], penultimate), taught, torch.tensor(labels), near))


def goal(taught, labels):
    """Logits that say exactly what they shall."""
    source = torch.cat([taught.cloned, taught.rejected[:, None]], 1).softmax(1)
    truth = torch.zeros_like(source)
    truth[torch.arange(len(labels)), labels] = 1.0  # label -1 is the last column, the reject logit
    mean = torch.where(torch.tensor(labels)[:, None] >= 0, (source + truth) / 2, truth)
    return mean.clamp_min(1e-30).log()


@pytest.mark.parametrize("labels", [[0, 2], [1, -1], [-1, -1]])
@pytest.mark.parametrize("rejected", [[0.3, 1.0], [-INF, -INF]], ids=["others known", "all classes cloned"])
def test_the_loss_is_least_at_the_goal(labels, rejected):
    taught = lesson([[1.0, 0.0, -1.0], [0.5, 2.0, 0.0]], rejected, torch.randn(2, 4))
    best = goal(taught, labels)
    assert loss_of(best, taught, labels) == pytest.approx(0.0, abs=1e-5)
    for other in torch.eye(4)[:3]:
        assert loss_of((0.95 * best.exp() + 0.05 * other).log(), taught, labels) > 1e-4
    assert loss_of(best, taught, labels, penultimate=taught.penultimate + 0.1) > 1e-4


def test_both_sides_weigh_the_same_whatever_their_numbers():
    """Nine images of one side count as much as one of the other."""
    taught = lesson([[0.0]] * 10, [0.0] * 10)
    labels = [0] * 9 + [-1]
    flat, yes, no = [0.0, 0.0], [9.0, 0.0], [0.0, 9.0]
    new, old = loss_of([flat] * 1, lesson([[0.0]], [0.0]), [0]), loss_of([flat], lesson([[0.0]], [0.0]), [-1])
    assert loss_of([flat] * 10, taught, labels) == pytest.approx((new + old) / 2, rel=1e-5)
    right_old = loss_of([flat] * 9 + [no], taught, labels)
    right_new = loss_of([yes] * 9 + [flat], taught, labels)
    assert right_old == pytest.approx(new / 2, rel=1e-2)
    assert right_new == pytest.approx((loss_of([yes], lesson([[0.0]], [0.0]), [0]) + old) / 2, rel=1e-5)


def test_far_neighbours_count_less():
    taught = lesson([[0.0, 0.0]] * 2, [0.0, 0.0])
    wrong_far = loss_of([[0.0, 9.0, 0.0], [0.0, 0.0, 0.0]], taught, [0, 0], near=[0.1, 1.0])
    wrong_near = loss_of([[0.0, 9.0, 0.0], [0.0, 0.0, 0.0]], taught, [0, 0], near=[1.0, 0.1])
    assert wrong_far < wrong_near / 2


@pytest.fixture(scope="module")
def networks():
    return Networks(tiny_model("resnet", seed=1), tiny_model("convnext"), [1, 2, 4], torch.device("cpu"))


@pytest.fixture
def module(networks):
    adapter = Adapter(networks.points()[PAIR[0]], networks.cuts()[PAIR[1]])
    return CloneModule(adapter, networks.tail(PAIR[1]), networks.head_rows(None))


def batches(seed, count=24):
    """Images, the first half of the cloned classes and the second of the target's."""
    labels = torch.where(torch.arange(count) % 2 > 0, torch.arange(count) % 3, -1)
    return list(zip(images(count, seed).split(8), labels.split(8), strict=True))


def held_out_loss(networks, module):
    losses = []
    for batch, labels in batches(7):
        _, read = networks.target(batch, [PAIR[0]])
        with torch.no_grad():
            losses.append(distillation_loss(module(read[PAIR[0]]), networks.teach(batch), labels, torch.ones(8)))
    return float(sum(losses))


def run(module, networks, score=None, epochs=3, tune=True, rate=2e-3, seed=0):
    score = score or (lambda found: -held_out_loss(networks, found))
    ticks = []
    best = refine(
        module,
        networks,
        Accelerator(cpu=True),
        PAIR,
        batches(3),
        score,
        Recipe(epochs, rate, tune),
        torch.Generator().manual_seed(seed),
        lambda: ticks.append(None),
    )
    assert len(ticks) == epochs
    return best


def test_training_lowers_the_held_out_loss_and_changes_neither_network(networks, module):
    before = held_out_loss(networks, module)
    digests = state_digest(networks.source.model), state_digest(networks.target.model)
    best = run(module, networks)
    assert -best == pytest.approx(held_out_loss(networks, module), rel=1e-5)
    assert -best < before - 0.1
    assert (state_digest(networks.source.model), state_digest(networks.target.model)) == digests
    assert not any(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize("best_pass", [0, 1, 3])
def test_it_ends_as_it_was_at_its_best(networks, module, best_pass):
    seen = []

    def score(found):
        seen.append(state_digest(found))
        return float(len(seen) - 1 == best_pass)

    assert run(module, networks, score) == 1.0
    assert len(seen) == len(set(seen)) == 4
    assert state_digest(module) == seen[best_pass]


def test_no_passes_change_nothing(networks, module):
    before = state_digest(module)
    assert run(module, networks, epochs=0) == pytest.approx(-held_out_loss(networks, module))
    assert state_digest(module) == before


@pytest.mark.parametrize("tune", [False, True])
def test_the_tail_is_trained_only_where_it_is_tuned(networks, module, tune):
    before = {name: state_digest(part) for name, part in module.named_children()}
    run(module, networks, tune=tune, epochs=1)
    changed = {name for name, part in module.named_children() if state_digest(part) != before[name]}
    assert changed == {"adapter", "head", *(["tail"] if tune else [])}


def test_batch_statistics_stay_the_sources(networks, module):
    norms = [layer for layer in module.tail.modules() if isinstance(layer, nn.BatchNorm2d)]
    before = [(layer.running_mean.clone(), layer.running_var.clone()) for layer in norms]
    run(module, networks)
    assert norms
    for layer, (mean, var) in zip(norms, before, strict=True):
        assert torch.equal(layer.running_mean, mean)
        assert torch.equal(layer.running_var, var)


def test_the_generator_decides(networks, module):
    start = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    ends = []
    for seed in (0, 0, 1):
        module.load_state_dict(start)
        run(module, networks, score=lambda _found: 0.0, epochs=1)
        module.load_state_dict(start)
        run(module, networks, epochs=1, seed=seed)
        ends.append(state_digest(module))
    assert ends[0] == ends[1] != ends[2]


def test_a_tail_tuned_for_one_adapter_still_serves_the_sources_own_feature(networks, module):
    run(module, networks, rate=1e-3)
    batch = images(8, 11)
    taught = networks.teach(batch, [PAIR[1]])
    with torch.no_grad():
        penultimate = module.tail(taught.features[PAIR[1]])
    error = ((penultimate - taught.penultimate) ** 2).mean() / taught.penultimate.var()
    assert error < 0.5
    assert_close(penultimate.shape, taught.penultimate.shape)
