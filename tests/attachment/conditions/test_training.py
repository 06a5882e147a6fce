"""Training the target while a clone is attached: gradients are right, the clone stays frozen, checkpointing changes nothing."""

import copy

import battery
import pytest
import timm.layers
import timm.utils
import torch
from common import images
from torch import nn
from torch.testing import assert_close

import pnc_hub
from attachment.conditions.cases import everywhere, join, once_each

LABELS = torch.tensor([0, 3, 8, 9])  # of the target and of the clone


def tensors_of(clone):
    return {(file, name): value for file, tensors in clone.tensors.items() for name, value in tensors.items()}


def gradients(model):
    model.zero_grad()
    nn.functional.cross_entropy(model(images()), LABELS).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_same_gradients(found, expected):
    assert found.keys() == expected.keys()
    assert any(value.abs().sum() > 0 for value in expected.values())
    for name, value in expected.items():
        assert_close(found[name], value, msg=lambda message, name=name: f"{name}: {message}")


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(
    ("family", "at"), [("resnet", "interior"), ("vit", "interior"), ("resnet", "input"), ("convnext", "interior")]
)
def test_gradient_checkpointing(family, at, training):
    joined = join(family, at)
    expected_model, model = copy.deepcopy(joined.model).train(training), joined.model.train(training)
    expected = gradients(expected_model)
    model.set_grad_checkpointing()
    with torch.random.fork_rng():
        assert_same_gradients(gradients(model), expected)
    model.set_grad_checkpointing(False)
    model.eval()
    with torch.no_grad():
        assert model(images()).shape == joined.together.shape


@everywhere
def test_a_training_run_changes_the_target_and_not_the_clone(family, at):
    joined = join(family, at)
    clone = joined.attachment.clone
    before = {name: value.clone() for name, value in tensors_of(clone).items()}
    model = joined.model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(5):
        loss = nn.functional.cross_entropy(model(images()), LABELS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for name, value in tensors_of(clone).items():
        assert torch.equal(value, before[name])
        assert not value.requires_grad
        assert value.grad is None
    model.eval()
    with torch.no_grad():
        trained = model(images())
        pnc_hub.detach(model)
        assert torch.equal(model(images()), trained[:, : model.num_classes])
        insertion, plain = joined.attachment.insertion, model
        assert_close(trained[:, model.num_classes :], battery.direct(plain, clone, images(), insertion))
    assert all(parameter.requires_grad for parameter in model.parameters())


@everywhere
def test_the_optimizer_sees_the_targets_parameters_alone(family, at):
    joined = join(family, at)
    names = [name for name, _ in joined.plain.named_parameters()]
    assert [name for name, _ in joined.model.named_parameters()] == names
    assert [name for name, _ in joined.model.named_buffers()] == [name for name, _ in joined.plain.named_buffers()]


@once_each
def test_a_frozen_target_has_no_gradients(family, at):
    joined = join(family, at)
    joined.model.requires_grad_(False)
    output = joined.model(images())
    assert not output.requires_grad
    joined.model.get_classifier().requires_grad_(True)
    assert set(gradients(joined.model)) == {
        f"{'fc' if family == 'resnet' else 'head'}.{name}" for name in ("weight", "bias")
    }


@once_each
def test_gradient_accumulation(family, at):
    """Two halves of a batch make the gradients of the whole."""
    joined = join(family, at)
    expected = gradients(joined.model)
    joined.model.zero_grad()
    for half in (slice(0, 2), slice(2, 4)):
        (nn.functional.cross_entropy(joined.model(images()[half]), LABELS[half]) / 2).backward()
    found = {name: value.grad for name, value in joined.model.named_parameters() if value.grad is not None}
    assert_same_gradients(found, expected)


@once_each
def test_averages_of_weights_are_attached_too(family, at):
    joined = join(family, at)
    average = torch.optim.swa_utils.AveragedModel(joined.model)
    ema = timm.utils.ModelEmaV3(joined.model, decay=0.5)
    for parameter in joined.model.parameters():
        parameter.data *= 1.01
    average.update_parameters(joined.model)
    ema.update(joined.model)
    pnc_hub.detach(joined.model)
    for copied in (average.module, ema.module):
        (attachment,) = pnc_hub.attachments(copied)
        with torch.no_grad():
            found = copied(images())
        plain = copy.deepcopy(copied)
        pnc_hub.detach(plain)
        assert torch.equal(found[:, : plain.num_classes], plain(images()))
        expected = battery.direct(plain, attachment.clone, images(), attachment.insertion)
        assert_close(found[:, plain.num_classes :], expected)


@pytest.mark.parametrize("at", ["interior", "input"])
def test_modules_exchanged_by_timm_and_torch_while_attached(at):
    """Frozen and synchronised batch norm are put in place of batch norm; the model answers as before."""
    for exchange in (nn.SyncBatchNorm.convert_sync_batchnorm, timm.layers.freeze_batch_norm_2d):
        joined = join("resnet", at)
        model = joined.model
        for name, child in list(model.named_children()):
            exchanged = exchange(child)
            if exchanged is not child:
                setattr(model, name, exchanged)
        assert not any(type(module) is nn.BatchNorm2d for module in model.modules())
        with torch.no_grad():
            assert_close(model(images()), joined.together)
            pnc_hub.detach(model)
            assert_close(model(images()), joined.alone)
