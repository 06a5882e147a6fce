"""torch.func and whole-model checkpointing: the attached model called as a function of its weights or its images."""

import copy

import pytest
import torch
from common import images
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import pnc_hub
from attachment.conditions.cases import assert_answers, everywhere, join, once_each


def state_of(model):
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def gradient(model, batch, columns):
    """Of the probability of the first cloned class among the clone's own: what the clone alone says."""
    batch = batch.clone().requires_grad_()
    model(batch)[:, columns].softmax(1)[:, 0].sum().backward()
    return batch.grad


@everywhere
def test_functional_call(family, at):
    joined = join(family, at)
    with torch.no_grad():
        found = functional_call(joined.model, state_of(joined.model), (images(),))
        assert_answers(found, joined.alone, joined.together)
        assert torch.equal(joined.model(images()), joined.together)


@everywhere
def test_functional_call_with_other_weights(family, at):
    """What is computed is what a model of those weights would compute with the same clone."""
    joined = join(family, at)
    other = {
        name: value * 1.1 if value.is_floating_point() else value for name, value in state_of(joined.model).items()
    }
    with torch.no_grad():
        found = functional_call(joined.model, other, (images(),))
        assert torch.equal(joined.model(images()), joined.together)
        own = functional_call(joined.plain, other, (images(),))
        joined.model.load_state_dict({name: other[name] for name in joined.model.state_dict()}, strict=True)
        assert_answers(found, own, joined.model(images()))
    assert not torch.equal(found, joined.together)


@everywhere
def test_vmap_over_images(family, at):
    joined = join(family, at)
    with torch.no_grad():
        found = vmap(lambda image: joined.model(image[None])[0])(images())
    assert_close(found, joined.together, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        assert torch.equal(joined.model(images()), joined.together)


@everywhere
def test_an_ensemble_over_weights(family, at):
    """The recipe of torch.func: weights of several models stacked, called through one that has none."""
    joined = join(family, at)
    other = copy.deepcopy(joined.model)
    for parameter in other.parameters():
        parameter.data *= 1.1
    weights, buffers = stack_module_state([joined.model, other])
    skeleton = copy.deepcopy(joined.model).to("meta")
    with torch.no_grad():
        batch = images()
        expected = torch.stack([joined.model(batch), other(batch)])
        found = vmap(lambda w, b: functional_call(skeleton, (w, b), (batch,)))(weights, buffers)
    assert_close(found, expected, rtol=1e-4, atol=1e-4)


@everywhere
def test_gradients_of_functions(family, at):
    joined = join(family, at)
    columns = joined.attachment.logit_slice
    expected = gradient(joined.model, images(), columns)

    def score(batch):
        return joined.model(batch)[:, columns].softmax(1)[:, 0].sum()

    assert expected.abs().sum() > 0
    assert_close(torch.func.grad(score)(images()), expected)
    tangent = torch.ones_like(expected)
    with sdpa_kernel(SDPBackend.MATH):  # the others have no forward derivative
        _, slope = torch.func.jvp(score, (images(),), (tangent,))
    assert_close(slope, (expected * tangent).sum(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("reentrant", [True, False])
@everywhere
def test_a_whole_model_in_one_checkpoint(family, at, reentrant):
    """The backward pass runs the attached model once more."""
    joined = join(family, at)
    columns = joined.attachment.logit_slice
    expected = gradient(joined.model, images(), columns)
    found = gradient(lambda batch: checkpoint(joined.model, batch, use_reentrant=reentrant), images(), columns)
    assert_close(found, expected)
    pnc_hub.detach(joined.model)
    assert torch.equal(joined.model(images()), joined.alone)


@once_each
def test_second_derivatives(family, at):
    joined = join(family, at)
    batch = images(1).double().requires_grad_()
    model, columns = joined.model.double(), joined.attachment.logit_slice
    with sdpa_kernel(SDPBackend.MATH):
        score = model(batch)[:, columns].softmax(1)[:, 0].sum()
        (first,) = torch.autograd.grad(score, batch, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), batch)
    assert second.isfinite().all()
    assert second.abs().sum() > 0


TRANSFORMS = {
    "grad": lambda model, batch: torch.func.grad(lambda x: model(x).sum())(batch),
    "vmap": lambda model, batch: vmap(lambda x: model(x[None])[0])(batch),
    "export": lambda model, batch: torch.export.export(model, (batch,)),
    "trace": lambda model, batch: torch.jit.trace(model, (batch,)),
    "inference": lambda model, batch: torch.inference_mode()(model)(batch),
}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("transform", TRANSFORMS)
@once_each
def test_the_first_call_in_a_dtype_may_be_within_a_transformation(family, at, transform):
    """What the clone builds for it is left to ordinary calls that follow, which must find ordinary tensors."""
    joined = join(family, at)
    model, batch = joined.model.double(), images().double()
    TRANSFORMS[transform](model, batch)
    found = model(batch)
    found.sum().backward()
    assert_close(found.detach().float(), joined.together, rtol=1e-4, atol=1e-4)
