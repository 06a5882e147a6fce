"""Tasks between two networks of one data set, and the clone as a method of them."""

import numpy as np
import pytest
import torch
from made_up import raw

from recipes.frame import pairs, reading, training
from recipes.method import ours


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "_cache", tmp_path / "cache")


@pytest.fixture(scope="module")
def pair():
    mean, std = reading.CIFAR_MEAN, reading.CIFAR_STD
    return pairs.Pair("TINY", raw(6, 30), raw(6, 4, 1), 3, mean, std, unrelated=raw(2, 5, 2), epochs=1)


def test_classes_and_images_of_each_regime(pair):
    order = np.random.RandomState(1993).permutation(6).tolist()
    tasks = {regime: pair.task(1993, regime, 2, "cpu") for regime in ("R1", "R2", "R3", "R4")}
    for task in tasks.values():
        assert task.labels == [f"class {label}" for label in order[3:5]]
        assert task.rows == [0, 1]
        assert (len(task.new), len(task.new_test), len(task.old_test)) == (60, 8, 12)
    assert tasks["R1"].old is None
    assert tasks["R2"].old.targets == [-1] * 10
    assert [tasks["R3"].old.targets.count(label) for label in range(3)] == [20] * 3
    assert len(tasks["R4"].old) == 90
    known = pair.images(pair.train)
    image = tasks["R4"].old[0]
    original = next(index for index in range(180) if torch.equal(known[index][0], image[0]))
    assert known.targets[original] == order[image[1]]
    assert tasks["R4"].untrained(5)(image[0][None]).shape == (1, 5)
    with pytest.raises(ValueError, match="no unrelated images"):
        pairs.Pair("NONE", pair.train, pair.test, 3, pair.mean, pair.std, epochs=0).task(1, "R2", 1, "cpu")


def test_source_and_target_are_different_networks(pair):
    source, target = pair.trained(1993, "cpu")
    assert not torch.equal(source.conv1.weight, target.conv1.weight)
    assert not source.training
    assert not target.training


def test_images_that_a_source_is_shown(pair):
    task = pair.task(1993, "R2", 2, "cpu")
    task.rows = [2, 0]
    shown = ours.Shown(task)
    assert set(shown.targets[:60]) == {0, 2}
    assert set(shown.targets[60:]) == {3}
    assert (len(shown), shown[61][1]) == (70, 3)
    assert torch.equal(shown[61][0], task.old[1][0])
    position = task.new.targets.index(1)
    assert shown[position][1] == 0


def test_a_clone_adds_columns_and_leaves_the_target(pair):
    task = pair.task(1993, "R4", 2, "cpu")
    images = task.old_test.batch(range(4))[0]
    before = task.target(images)
    result = ours.clone(task, epochs=0, insertion="layer1.1", cut="layer2.0")
    joint = result.predict(images)
    assert joint.shape == (4, 5)
    assert torch.equal(joint[:, :3], before)
    assert torch.equal(task.target(images), before)
    assert (result.extra["insertion"], result.extra["cut"]) == ("layer1.1", "layer2.0")
    assert 0.5 < result.extra["auroc_stitched"] <= 1
    assert 0.5 < result.extra["auroc_pruned"] <= 1
    assert result.macs > 0
    assert 0 < result.params < 174_933
