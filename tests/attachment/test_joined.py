"""The clone at work in one model: it follows the features, or learns when asked to."""

import copy
import io
import pickle

import battery
import pytest
import torch
from common import images, tiny_clone, tiny_model
from torch import nn
from torch.testing import assert_close

import pnc_hub
from pnc_hub.errors import TargetError
from pnc_hub.models.fingerprint import state_digest
from pnc_hub.models.insertion import INPUT

pytestmark = pytest.mark.filterwarnings("ignore:.*attached at the input")


@pytest.fixture(scope="module", params=["interior", "input"])
def pair(request):
    """A target and a clone for it, or one that only attaches at the input."""
    model = tiny_model("resnet")
    made_for = model if request.param == "interior" else tiny_model("resnet", seed=8)
    return model, tiny_clone(tiny_model("convnext", seed=1), made_for, family="convnext")


@pytest.fixture
def joined(pair):
    model, clone = copy.deepcopy(pair[0]), pair[1]
    return model, pnc_hub.attach(model, clone, trainable=True)


def train(model, attachment, steps=5):
    labels = torch.arange(4) % len(attachment.labels) + attachment.logit_slice.start
    optimizer = torch.optim.SGD(attachment.parameters(), lr=0.05)
    losses = []
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model(images()), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_only_the_clone_learns(pair, joined):
    model, attachment = joined
    artifact = {file: {k: v.clone() for k, v in of.items()} for file, of in attachment.clone.all_tensors().items()}
    target, before = state_digest(model), model(images()).detach()
    losses = train(model.requires_grad_(False), attachment)
    assert losses[-1] < losses[0]
    after = model(images()).detach()
    columns = attachment.logit_slice
    assert torch.equal(after[:, : columns.start], before[:, : columns.start])
    assert not torch.allclose(after[:, columns], before[:, columns], atol=1e-2)
    assert state_digest(model) == target
    for file, tensors in pair[1].all_tensors().items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, artifact[file][name])
    attachment.detach()
    with pnc_hub.attach(model, pair[1]):
        assert torch.equal(model(images()), before)


def test_what_was_learned_is_a_clone_of_its_own(joined, tmp_path):
    model, attachment = joined
    adapter = attachment.clone.config.adapters[0]
    adapter.metrics, adapter.series = {"tar": 0.5}, {"curve": {"name": ["layer1"]}}
    train(model, attachment)
    after, learned = model(images()).detach(), attachment.learned()
    attachment.detach()
    for clone in (learned, learned.save_pretrained(tmp_path / "learned")):
        with pnc_hub.attach(model, clone) as again:
            assert torch.equal(model(images()).detach(), after)
            assert again.verify() == 0
            assert not any(entry.metrics or entry.series for entry in again.clone.config.adapters)


def test_copies_and_pickles_hold_what_was_learned(joined):
    model, attachment = joined
    train(model, attachment)
    expected = model(images()).detach()
    file = io.BytesIO()
    torch.save(model, file)
    twins = [
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(io.BytesIO(file.getvalue()), weights_only=False),
    ]
    train(model, attachment, steps=1)
    for twin in twins:
        assert torch.equal(twin(images()).detach(), expected)
        (own,) = pnc_hub.attachments(twin)
        assert train(twin, own, steps=3)
    assert not torch.equal(model(images()).detach(), expected)


def test_the_parameters_stay_the_same_objects(joined):
    model, attachment = joined
    before = [id(parameter) for parameter in attachment.parameters()]
    expected = model(images()).detach()
    for dtype in (torch.float64, torch.bfloat16, torch.float32):
        output = model.to(dtype)(images().to(dtype))
        assert output.dtype == dtype
        assert_close(output.float(), expected, rtol=0.1, atol=0.1 * float(expected.abs().max()))
    with torch.autocast("cpu", torch.bfloat16):
        model(images()).sum().backward()
    assert [id(parameter) for parameter in attachment.parameters()] == before
    assert all(parameter.dtype == torch.float32 and parameter.requires_grad for parameter in attachment.parameters())
    own = {id(parameter) for parameter in model.parameters()}
    assert own.isdisjoint(before)


def test_it_stays_in_eval_mode(joined):
    model, attachment = joined
    model.train()
    model(images())
    assert not any(part.training for part in attachment._joined._parts[:2])


def test_a_frozen_clone_has_nothing_to_train(pair):
    model, clone = copy.deepcopy(pair[0]), pair[1]
    attachment = pnc_hub.attach(model, clone)
    for ask in (attachment.parameters, attachment.learned):
        with pytest.raises(TargetError, match=r"it is frozen; attach it with trainable=True"):
            ask()
    attachment.detach()
    with pytest.raises(TargetError, match="it is detached"):
        attachment.parameters()


def test_frozen_tensors_take_no_gradient(pair):
    model, clone = copy.deepcopy(pair[0]), pair[1]
    attachment = pnc_hub.attach(model, clone)
    model.train()(images()).logsumexp(1).sum().backward()
    module, gate = attachment._joined._parts[:2]
    assert all(not parameter.requires_grad and parameter.grad is None for parameter in module.parameters())
    assert all(parameter.grad is None for parameter in gate.parameters())
    assert attachment.insertion in (INPUT, "layer2.0")
    pnc_hub.detach(model)
    assert not any(battery.snapshot(model)["hooks"].values())
