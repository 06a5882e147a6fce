"""Trainings that are resumed, remembered, and leave nothing behind."""

import pytest
import torch
from made_up import tensor_images
from torch import nn

from recipes.frame import networks, protocol, training


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "_cache", tmp_path / "cache")


class Interrupted(Exception):
    pass


class Counting:
    """Cross-entropy that counts its calls and fails at one of them."""

    __qualname__ = "Counting"

    def __init__(self, stop=None):
        self.calls, self.stop, self.dtypes = 0, stop, set()

    def __call__(self, model, images, labels):
        self.calls += 1
        if self.calls == self.stop:
            raise Interrupted
        logits = model(images)
        self.dtypes.add(logits.dtype)
        return nn.functional.cross_entropy(logits, labels)


def trained(loss, epochs=3, **options):
    model = networks.build("resnet14", 4, seed=3)
    return training.train(model, tensor_images(), epochs, 5, loss=loss, batch_size=16, device="cpu", **options)


def test_an_interrupted_run_ends_like_one_that_was_not(tmp_path):
    whole = trained(Counting(), name="net")
    training.use_cache(tmp_path / "second")
    with pytest.raises(Interrupted):
        trained(Counting(stop=8), name="net")  # three steps make an epoch: in the middle of the third
    rest = Counting()
    resumed = trained(rest, name="net")
    assert rest.calls == 3
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert sorted(path.suffix for path in (tmp_path / "second").iterdir()) == [".json", ".safetensors"]


def test_a_finished_run_is_not_repeated():
    first = trained(Counting(), name="net")
    second = Counting()
    again = trained(second, name="net")
    assert second.calls == 0
    assert training.seconds(again) == training.seconds(first) > 0
    assert not again.training
    images = torch.randn(4, 3, 32, 32)
    assert torch.equal(first(images), again(images))


@pytest.mark.parametrize("change", [{"epochs": 2}, {"learning_rate": 0.1}, {"name": "other"}])
def test_another_setting_is_another_run(change):
    trained(Counting(), epochs=1, name="net")
    again = Counting()
    trained(again, **{"epochs": 1, "name": "net", **change})
    assert again.calls > 0


def test_the_random_state_of_the_caller_stays_and_the_loss_is_in_single_precision():
    before = torch.random.get_rng_state()
    loss = Counting()
    trained(loss)
    assert torch.equal(before, torch.random.get_rng_state())
    assert loss.dtypes == {torch.float32}


def test_it_learns_and_leaves_no_hook():
    model = networks.build("resnet14", 4)
    images = tensor_images(each=32)
    training.train(model, images, 4, 0, learning_rate=0.05, batch_size=16, flip=False, device="cpu")
    logits, labels = protocol.logits_of(model, images)
    assert (logits.argmax(1) == labels).float().mean() > 0.9
    assert not model._forward_hooks


def test_any_dataset_of_pairs_will_do():
    images = tensor_images()
    pairs_of = [images[index] for index in range(len(images))]
    one = training.train(networks.build("resnet14", 4), images, 1, 0, device="cpu")
    other = training.train(networks.build("resnet14", 4), pairs_of, 1, 0, device="cpu")
    torch.testing.assert_close(one.fc.weight, other.fc.weight)


def test_augmentation_shifts_and_mirrors():
    images = torch.arange(1, 1 + 32 * 32.0).reshape(1, 1, 32, 32).expand(64, 2, -1, -1)
    found = training.augmented(images, torch.Generator().manual_seed(0), flip=True)
    assert found.shape == images.shape
    assert torch.equal(found[:, 0], found[:, 1])
    # neighbours in a row differ by one, upwards where the image is not mirrored
    steps = found[:, 0, 16, 16] - found[:, 0, 16, 15]
    assert set(steps.tolist()) == {1.0, -1.0}
    assert len(set(found[:, 0, 16, 16].tolist())) > 20
    unflipped = training.augmented(images, torch.Generator().manual_seed(0), flip=False)
    assert (unflipped[:, 0, 16, 16] - unflipped[:, 0, 16, 15] == 1).all()
