"""Refinement: what it aims at, and what it may change."""

import copy
import itertools
from collections import Counter
from contextlib import nullcontext

import pytest
import torch
from accelerate import Accelerator
from common import images, tiny_model
from torch import nn
from torch.testing import assert_close
from torch.utils.data import TensorDataset

from pnc_hub.cloning.fitting import refine as refinement
from pnc_hub.cloning.fitting.goal import Goal
from pnc_hub.cloning.fitting.refine import Recipe, refine
from pnc_hub.cloning.images.batches import Batches, Split
from pnc_hub.cloning.images.data import Images
from pnc_hub.cloning.images.kept import Kept
from pnc_hub.cloning.networks import Lesson, Networks
from pnc_hub.models.fingerprint import state_digest
from pnc_hub.module import Adapter, CloneModule

INF = float("inf")
PAIR = ("stages.1", "layer2.1")


def lesson(cloned, rejected):
    return Lesson(torch.tensor(cloned), torch.tensor(rejected), torch.zeros(len(cloned), 4), {})


def loss_of(logits, taught, labels, anchored=False):
    logits = torch.as_tensor(logits)
    return float(Goal.of(taught, torch.tensor(labels), anchored).distance((logits[:, :-1], logits[:, -1])))


def goal(taught, labels):
    """Logits that say exactly what they should."""
    source = torch.cat([taught.cloned, taught.rejected[:, None]], 1).softmax(1)
    truth = torch.zeros_like(source)
    truth[torch.arange(len(labels)), labels] = 1.0  # label -1 is the last column, the reject logit
    mean = torch.where(torch.tensor(labels)[:, None] >= 0, (source + truth) / 2, truth)
    return mean.clamp_min(1e-30).log()


@pytest.mark.parametrize("labels", [[0, 2], [1, -1], [-1, -1]])
@pytest.mark.parametrize("rejected", [[0.3, 1.0], [-INF, -INF]], ids=["others known", "all classes cloned"])
def test_the_loss_is_least_at_the_goal(labels, rejected):
    taught = lesson([[1.0, 0.0, -1.0], [0.5, 2.0, 0.0]], rejected)
    best = goal(taught, labels)
    assert loss_of(best, taught, labels) == pytest.approx(0.0, abs=1e-5)
    for other in torch.eye(4)[:3]:
        assert loss_of((0.95 * best.exp() + 0.05 * other).log(), taught, labels) > 1e-4


def test_an_anchor_sees_the_level_of_the_logits():
    taught = lesson([[1.0, 0.0, -1.0], [0.5, 2.0, 0.0]], [0.3, 1.0])
    said = torch.cat([taught.cloned, taught.rejected[:, None]], 1)
    assert loss_of(said + 5, taught, [0, 1]) == pytest.approx(loss_of(said, taught, [0, 1]), abs=1e-5)
    assert loss_of(said, taught, [0, 1], True) == pytest.approx(loss_of(said, taught, [0, 1]), abs=1e-5)
    assert loss_of(said + 5, taught, [0, 1], True) > loss_of(said, taught, [0, 1]) + 1


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


@pytest.fixture(scope="module")
def networks():
    return Networks(tiny_model("resnet", seed=1), tiny_model("convnext"), [1, 2, 4], torch.device("cpu"))


@pytest.fixture
def module(networks):
    adapter = Adapter(networks.target.skeleton.points[PAIR[0]], networks.cuts()[PAIR[1]])
    return CloneModule(
        adapter, networks.tail(PAIR[1]), networks.head_rows((torch.zeros(1, networks.width), torch.zeros(1)))
    )


def batches(seed, count=24):
    """Images, every second of the cloned classes and the others of the target's."""
    labels = torch.where(torch.arange(count) % 2 > 0, torch.arange(count) % 3, -1)
    return list(zip(images(count, seed).split(8), labels.split(8), strict=True))


def prepared(networks, seed):
    """Twelve images of either side to learn from, in three batches."""
    labels = torch.arange(21) % 3
    sides = (
        Images(TensorDataset(images(len(labels), first), labels), networks.target.preprocess, dict(enumerate(range(3))))
        for first in (3, 4)
    )
    return Batches(*(Split.of(side, 0) for side in sides), Accelerator(cpu=True), 8, 0, seed)


def held_out_loss(networks, module):
    losses = []
    for batch, labels in batches(7):
        _, read = networks.target(batch, [PAIR[0]])
        with torch.no_grad():
            losses.append(Goal.of(networks.teach(batch), labels, False).distance(module(read[PAIR[0]])))
    return float(sum(losses))


def steps_up():
    """A score that likes the last best."""
    count = itertools.count()
    return lambda _found: next(count)


def flat(state):
    return torch.cat([tensor.flatten().float() for tensor in state.values()])


def run(
    module, networks, score=None, epochs=3, tune=True, rate=2e-3, seed=0, universal=True, anchored=False, kept=None
):
    score = score or (lambda found: -held_out_loss(networks, found))
    ticks = []
    shown = prepared(networks, seed)
    shown.kept = kept or shown.kept
    recipe = Recipe(epochs, rate, tune, universal, anchored=anchored)
    best = refine(module, networks, shown, PAIR, recipe, score, lambda: ticks.append(None))
    assert len(ticks) == round(epochs * len(shown.mixed("fit")))
    return best


def test_training_lowers_the_held_out_loss_and_changes_neither_network(networks, module):
    before = held_out_loss(networks, module)
    digests = state_digest(networks.source.model), state_digest(networks.target.model)
    best = run(module, networks)
    assert -best == pytest.approx(held_out_loss(networks, module), rel=1e-5)
    assert -best < before - 0.1
    assert (state_digest(networks.source.model), state_digest(networks.target.model)) == digests
    assert not any(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize("best_pass", [1, *(pytest.param(one, marks=pytest.mark.slow) for one in (0, 3))])
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


@pytest.mark.parametrize("tune", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_tail_is_trained_only_where_it_is_tuned(networks, module, tune):
    before = {name: state_digest(part) for name, part in module.named_children()}
    run(module, networks, tune=tune, epochs=1)
    changed = {name for name, part in module.named_children() if state_digest(part) != before[name]}
    assert changed == {"adapter", "head", *(["tail"] if tune else [])}


@pytest.mark.parametrize("universal", [True, False])
def test_batch_statistics_stay_the_sources_where_its_own_features_come_in(networks, module, universal):
    norms = [layer for layer in module.tail.modules() if isinstance(layer, nn.BatchNorm2d)]
    before = [(layer.running_mean.clone(), layer.running_var.clone()) for layer in norms]
    run(module, networks, universal=universal, epochs=1)
    assert norms
    for layer, (mean, var) in zip(norms, before, strict=True):
        assert not layer.training
        assert torch.equal(layer.running_mean, mean) == universal
        assert torch.equal(layer.running_var, var) == universal


def test_parts_of_a_pass_count(networks, module):
    before = state_digest(module)
    run(module, networks, score=lambda _found: 0.0, epochs=1.5)
    run(module, networks, epochs=0.1)  # less than a step
    assert state_digest(module) == before


@pytest.mark.slow
def test_the_generator_decides(networks, module):
    start = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    ends = []
    for seed in (0, 0, 1):
        module.load_state_dict(start)
        run(module, networks, epochs=0.4, seed=seed)  # one step
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


def counted(networks, monkeypatch):
    """How many images each network was run on, by name."""
    counts = Counter()
    for name in ("source", "target"):
        reader = getattr(networks, name)
        read = reader._remembered._compute
        monkeypatch.setattr(
            reader._remembered,
            "_compute",
            lambda pixels, names, name=name, read=read: (counts.update({name: len(pixels)}), read(pixels, names))[1],
        )
    return counts


@pytest.mark.parametrize("universal", [True, False])
def test_each_network_is_run_once_on_an_image_and_each_of_its_copies(networks, module, monkeypatch, universal):
    counts = counted(networks, monkeypatch)
    run(module, networks, score=lambda _found: 0.0, epochs=6, universal=universal)
    # two copies of 24 images, 12 of them of the cloned classes: of the others the source is asked only for its features
    assert counts == {"target": 2 * 24, "source": 2 * (24 if universal else 12)}


@pytest.mark.parametrize("universal", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_it_makes_no_difference_whether_anything_is_kept(networks, module, universal):
    start = copy.deepcopy(module.state_dict())
    ends = []
    for kept in (Kept(), Kept(0, 0)):
        module.load_state_dict(start)
        run(module, networks, score=steps_up(), epochs=2, universal=universal, kept=kept)
        ends.append(flat(module.state_dict()))
    assert (ends[0] - ends[1]).norm() < 0.05 * (ends[0] - flat(start)).norm()  # features are kept in half precision


def test_a_step_in_parts_is_the_same_step(networks, module, monkeypatch):
    start = copy.deepcopy(module.state_dict())
    monkeypatch.setattr(refinement, "_precision", lambda _device: nullcontext())
    ends = []
    for pixels in (refinement.PIXELS, 3 * 32 * 32):  # the second gives parts of three images of a batch of eight
        monkeypatch.setattr(refinement, "PIXELS", pixels)
        module.load_state_dict(start)
        run(module, networks, score=steps_up(), epochs=1, anchored=True)
        ends.append(flat(module.state_dict()))
    assert (ends[0] - flat(start)).norm() > 0.01
    assert_close(ends[0], ends[1], rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("anchored", [False, True])
def test_the_distance_of_parts_adds_up(anchored):
    torch.manual_seed(0)
    labels = torch.tensor([0, 1, -1, 2, -1, 0])
    taught = lesson(torch.randn(6, 3).tolist(), torch.randn(6).tolist())
    said = torch.randn(6, 3), torch.randn(6)
    whole = Goal.of(taught, labels, anchored)
    parts = [whole.distance([one[rows] for one in said], rows) for rows in torch.arange(6).split(4)]
    assert_close(sum(parts), whole.distance(said))


def test_what_was_trained_in_another_layout_comes_back_as_it_was(networks, module):
    run(module, networks, score=steps_up(), epochs=1)
    assert all(tensor.is_contiguous() and tensor.dtype != torch.bfloat16 for tensor in module.state_dict().values())


def test_half_precision_is_left_to_processors_that_have_it(networks, module, monkeypatch):
    seen = []
    for able in (True, False):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: {"avx512_bf16": able})
        hook = module.head.register_forward_pre_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
        run(module, networks, score=lambda _found: 0.0, epochs=0.4)
        hook.remove()
    assert (seen[0], seen[-1]) == (True, False)
    assert not torch.is_autocast_enabled("cpu")
