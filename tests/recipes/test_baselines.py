"""The methods that a clone is compared with, on small digits and networks of a few thousand parameters."""

import copy
import dataclasses
from functools import cache

import numpy as np
import pytest
import timm
import torch
from sklearn.datasets import load_digits
from torch import nn

from pnc_hub.models.cost import macs, parameters
from pnc_hub.models.fingerprint import state_digest
from recipes.compare import baselines, incremental, pnc_ref, side_network, study
from recipes.compare.probes import Features
from recipes.compare.study import Joined, Study, held_out
from recipes.frame import networks  # noqa: F401 - registers the architecture
from recipes.frame.reading import TensorImages
from recipes.frame.task import Task
from recipes.frame.training import train

KNOWN, CLONED = 5, 3
CHEAP = ("ensemble_raw", "ensemble_softmax", "ensemble_energy", "ensemble_gate", "prototype", "ridge", "probe")
UNTRAINED = (*CHEAP, "target_alone", "oracle_gate", "ensemble_bic")  # no network is trained
# (method, regime): accuracy on old and on new images that is to be had at least
EXPECTED = {
    ("target_alone", "R1"): (0.9, 0.0),
    ("oracle_gate", "R1"): (0.9, 0.9),
    ("joint", "R4"): (0.8, 0.8),
    ("ensemble_raw", "R1"): (0.7, 0.7),
    ("ensemble_softmax", "R1"): (0.7, 0.7),
    ("ensemble_energy", "R2"): (0.7, 0.7),
    ("ensemble_energy", "R3"): (0.7, 0.7),
    ("ensemble_bic", "R3"): (0.8, 0.8),
    ("ensemble_gate", "R2"): (0.5, 0.5),
    ("ensemble_gate", "R3"): (0.8, 0.8),
    ("prototype", "R4"): (0.6, 0.6),
    ("ridge", "R4"): (0.6, 0.6),
    ("probe", "R1"): (0.0, 0.6),
    ("probe", "R4"): (0.7, 0.7),
    ("finetune", "R1"): (0.0, 0.9),
    ("finetune", "R3"): (0.7, 0.7),
    ("lwf", "R1"): (0.4, 0.0),
    ("ewc", "R1"): (0.4, 0.0),
    ("icarl", "R3"): (0.7, 0.7),
    ("side_network", "R1"): (0.5, 0.5),
    ("side_network", "R4"): (0.8, 0.8),
    ("pnc_ref", "R1"): (0.5, 0.0),
    ("pnc_ref", "R3"): (0.5, 0.25),
}


def small_digits(wanted, train):
    """Digits [1, 16, 16], labelled by their position in ``wanted``."""
    bunch, rng = load_digits(), np.random.RandomState(0)
    members = [rng.permutation(np.flatnonzero(bunch.target == digit)) for digit in wanted]
    parts = [m[: int(0.7 * len(m))] if train else m[int(0.7 * len(m)) :] for m in members]
    images = torch.from_numpy(bunch.images[np.concatenate(parts)]).float()[:, None] * 15.9
    images = nn.functional.interpolate(images, size=(16, 16), mode="bilinear").round().to(torch.uint8)
    labels = [position for position, part in enumerate(parts) for _ in part]
    return TensorImages(images, labels, (0.5,), (0.5,))


def untrained(num_classes, seed=0, channels=(8, 16, 24)):
    overlay = {"input_size": (1, 16, 16), "mean": (0.5,), "std": (0.5,)}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return timm.create_model(
            "cifar_resnet14",
            num_classes=num_classes,
            in_chans=1,
            layers=(1, 1, 1),
            channels=channels,
            pretrained_cfg_overlay=overlay,
        )


@cache
def trained():
    """(source, target)."""
    options = {"flip": False, "half": False, "device": "cpu"}
    source = train(untrained(5, 1, (8, 16, 32)), small_digits(range(5, 10), True), 12, 0, **options)
    return source, train(untrained(KNOWN), small_digits(range(KNOWN), True), 12, 0, **options)


def make(regime, **changes):
    source, target = trained()
    known = small_digits(range(KNOWN), True)
    old = {"R1": None, "R2": small_digits((8, 9), True).relabelled(-1), "R3": known.few(20, 0), "R4": known}
    task = Task(
        benchmark="digits",
        seed=0,
        regime=regime,
        source=source,
        target=target,
        labels=["5", "6", "7"],
        rows=[0, 1, 2],
        new=small_digits((5, 6, 7), True),
        old=old[regime],
        new_test=small_digits((5, 6, 7), False),
        old_test=small_digits(range(KNOWN), False),
        untrained=lambda num_classes: untrained(num_classes, 3),
        epochs=12,
        device="cpu",
    )
    return dataclasses.replace(task, **changes)


@cache
def outcome(name, regime):
    """(result, task, whether the networks of the task are what they were)."""
    task = make(regime)
    digests = [state_digest(model) for model in trained()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "LEAST_STEPS", 60)
        result = baselines.METHODS[name][0](task)
    same = digests == [state_digest(model) for model in trained()]
    return result, task, same


def accuracies(result, task):
    """Of old and new classes, by joint argmax."""
    (old, known), (new, cloned) = (part.batch(range(len(part))) for part in (task.old_test, task.new_test))
    old, new = result.predict(old), result.predict(new)
    assert old.shape == (len(known), KNOWN + CLONED)
    if result.extra.get("oracle"):
        old, new = old[:, :KNOWN], torch.cat([torch.full((len(new), KNOWN), -torch.inf), new[:, KNOWN:]], 1)
    return float((old.argmax(1) == known).float().mean()), float((new.argmax(1) == cloned + KNOWN).float().mean())


@pytest.mark.parametrize(
    ("name", "regime"),
    [pytest.param(*one, marks=() if one[0] in UNTRAINED else pytest.mark.slow) for one in EXPECTED],
)
def test_a_method_does_what_it_should_and_leaves_both_networks_alone(name, regime):
    result, task, untouched = outcome(name, regime)
    assert untouched
    found = accuracies(result, task)
    assert all(a >= b for a, b in zip(found, EXPECTED[name, regime], strict=True)), found


def test_every_method_is_tried():
    assert {name for name, _ in EXPECTED} == set(baselines.METHODS)
    assert all(regime in baselines.METHODS[name][1] for name, regime in EXPECTED)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "regime"), [(name, regime) for name in CHEAP for regime in baselines.METHODS[name][1]]
)
def test_regimes_in_which_a_method_is_said_to_run(name, regime):
    result, task, _ = outcome(name, regime)
    assert sum(accuracies(result, task)) > 0.6


def test_the_target_alone_never_answers_with_a_new_class():
    result, task, _ = outcome("target_alone", "R1")
    images = task.new_test.batch(range(8))[0]
    assert torch.equal(result.predict(images)[:, :KNOWN], task.target(images))
    assert (result.predict(images)[:, KNOWN:] == -torch.inf).all()
    assert (result.params, result.macs, result.bytes, result.images) == (0, 0, 0, 0)


@pytest.mark.slow
def test_fine_tuning_forgets_more_than_what_was_made_not_to():
    plain, distilled, stiff = (accuracies(*outcome(name, "R1")[:2])[0] for name in ("finetune", "lwf", "ewc"))
    assert distilled > plain + 0.2
    assert stiff > plain + 0.2


def test_bias_correction_mends_a_source_that_shouts():
    source = copy.deepcopy(trained()[0])
    source.fc.weight.data *= 5
    source.fc.bias.data *= 5
    task = make("R3", source=source)
    raw, corrected = (baselines.METHODS[name][0](task) for name in ("ensemble_raw", "ensemble_bic"))
    assert sum(accuracies(corrected, task)) > sum(accuracies(raw, task)) + 0.02
    assert corrected.extra["scale"] < 0.7


def test_ensembles_cost_the_whole_source_and_probes_a_few_rows():
    source = trained()[0]
    whole, _, _ = outcome("ensemble_raw", "R1")
    rows, _, _ = outcome("probe", "R1")
    assert whole.params == parameters(source)
    assert whole.macs == macs(source, torch.zeros(1, 1, 16, 16))
    assert whole.bytes >= 4 * whole.params
    assert 24 * CLONED < rows.params < 24 * CLONED + 50


@pytest.mark.slow
def test_the_reference_keeps_what_was_asked_for():
    result, task, _ = outcome("pnc_ref", "R3")
    images = torch.zeros(1, 1, 16, 16)
    assert 0 < result.params <= pnc_ref.KEEP * parameters(task.source)
    assert 0 < result.macs < macs(task.source, images)
    assert torch.equal(result.predict(images)[:, :KNOWN], task.target(images))
    new, labels = task.new_test.batch(range(len(task.new_test)))
    assert (result.predict(new)[:, KNOWN:].argmax(1) == labels).float().mean() > 0.5  # among three
    this = Study(task)
    cut = this.networks.cuts()["layer1.0"]
    whole = parameters(this.networks.tail("layer1.0"))
    tail, rows = pnc_ref._localised(this, cut, whole // 2)
    assert whole // 4 < parameters(tail) + parameters(rows) <= whole // 2
    kept = tail.get_submodule("layer3.0.conv1").weight
    original = task.source.get_submodule("layer3.0.conv1").weight
    assert kept.numel() < original.numel()
    assert set(kept.flatten().tolist()) <= set(original.flatten().tolist())  # masked, not trained
    assert rows.out_features == CLONED


def test_the_side_network_is_small_and_knows_nothing_of_the_source():
    study = Study(make("R4"))
    model = side_network.narrow_network(study)
    assert parameters(study.task.source) / 4 < parameters(model) <= side_network.KEEP * parameters(study.task.source)
    known = {round(value, 6) for p in study.task.source.parameters() if p.dim() > 1 for value in p.flatten().tolist()}
    drawn = [round(value, 6) for p in model.parameters() if p.dim() > 1 for value in p.flatten().tolist()]
    assert sum(value in known for value in drawn) < 0.05 * len(drawn)
    assert model(torch.zeros(2, 1, 16, 16)).shape == (2, CLONED + 1)


def test_a_wider_head_still_says_what_the_target_said():
    study = Study(make("R1"))
    images = study.task.new_test.batch(range(8))[0]
    logits = incremental.widened(study).eval()(images)
    assert logits.shape == (8, KNOWN + CLONED)
    assert torch.allclose(logits[:, :KNOWN], study.task.target(images), atol=1e-5)


def test_features_are_what_the_classifier_reads():
    target = trained()[1]
    logits, features = Features(target)(torch.rand(4, 1, 16, 16))
    assert torch.allclose(target.get_classifier()(features), logits)


def test_a_tenth_of_every_class_is_held_out():
    data = small_digits((5, 6, 7), True)
    fit, held = held_out(data, 0)
    assert sorted([*fit.indices, *held.indices]) == list(range(len(data)))
    counts = np.bincount([data.targets[index] for index in held.indices])
    assert counts.tolist() == [round(0.1 * data.targets.count(label)) for label in range(3)]
    assert held.indices != held_out(data, 1)[1].indices


def test_joined_parts_keep_images_and_labels_together():
    first, second = small_digits((5, 6), False), small_digits((7,), False)
    joint = Joined((first, 3), (second, 0), (second, 0))
    positions = torch.tensor([len(first), 0, len(first) - 1, len(joint) - 1])
    images, labels = joint.batch(positions)
    pairs = {(tuple(image.flatten().tolist()), int(label)) for image, label in zip(images, labels, strict=True)}
    singles = [joint[int(position)] for position in positions]
    assert pairs == {(tuple(image.flatten().tolist()), label) for image, label in singles}
    assert sorted(labels.tolist()) == [0, 0, 3, 4]
