"""The identities that the gated fusion promises, in float64."""

import pytest
import torch
from torch.testing import assert_close

from pnc_hub import fusion


@pytest.fixture(params=[(7, 3), (1, 1), (4, 1), (1000, 10)], ids="T{0[0]}-K{0[1]}".format)
def case(request):
    targets, cloned = request.param
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return 5 * torch.randn(*shape, dtype=torch.float64, generator=generator)

    return draw(16, targets), draw(16, cloned), draw(16)


def close(found, expected):
    assert_close(found, expected, rtol=0, atol=1e-12)


def attached(target, clone, gate):
    return torch.cat([target, fusion.new_logits(target, clone, gate)], 1)


def test_the_gate_is_the_probability_of_the_cloned_classes(case):
    target, _, gate = case
    new = attached(*case).softmax(1)[:, target.shape[1] :]
    close(new.sum(1), gate.sigmoid())


def test_both_conditional_distributions_are_kept(case):
    target, clone, _ = case
    together = attached(*case)
    close(together[:, : target.shape[1]].softmax(1), target.softmax(1))
    close(together[:, target.shape[1] :].softmax(1), clone.softmax(1))


def test_the_divergence_from_the_target_alone(case):
    target, _, gate = case
    alone, together = target.log_softmax(1), attached(*case).log_softmax(1)[:, : target.shape[1]]
    divergence = (alone.exp() * (alone - together)).sum(1)
    close(divergence, -torch.log1p(-gate.sigmoid()))
    close(fusion.divergence(gate), divergence)


def test_the_diversion_margin_is_positive_where_the_prediction_leaves_the_target(case):
    target, clone, gate = case
    margin = fusion.diversion_margin(*case)
    leaves = attached(*case).argmax(1) >= target.shape[1]
    assert torch.equal(margin > 0, leaves)
    close(margin, gate + clone.log_softmax(1).amax(1) - target.log_softmax(1).amax(1))
    close(fusion.diversion_margin(target, clone, gate - 2), margin - 2)


def test_each_of_several_clones_is_seen_against_the_target_alone(case):
    target, clone, gate = case
    both = torch.cat([attached(*case), fusion.new_logits(target, clone.flip(1), gate - 1)], 1).exp()
    odds = both[:, target.shape[1] :].unflatten(1, (2, -1)).sum(2) / both[:, : target.shape[1]].sum(1, keepdim=True)
    assert_close(odds, torch.stack([gate, gate - 1], 1).exp(), rtol=1e-12, atol=0)


def test_what_the_gate_reads(case):
    target, clone, reject = case
    found = fusion.scalars(target, clone, reject)
    assert found.shape == (16, len(fusion.SCALARS))
    expected = {
        "target_energy": target.exp().sum(1).log(),
        "target_max": target.max(1).values,
        "clone_energy": clone.exp().sum(1).log(),
        "clone_max": clone.max(1).values,
        "reject": reject,
    }
    for column, name in enumerate(fusion.SCALARS):
        close(found[:, column], expected[name])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    target = torch.full((1, 1000), 10.0, dtype=dtype)
    clone, gate = torch.tensor([[300.0, 299.0]], dtype=dtype), torch.tensor([0.5], dtype=dtype)
    found = fusion.new_logits(target, clone, gate)
    assert found.dtype == dtype
    expected = fusion.new_logits(target.double(), clone.double(), gate.double())
    assert torch.equal(found, expected.to(dtype))
    assert fusion.scalars(target, clone, gate).dtype == fusion.divergence(gate).dtype == torch.float32


def test_gradients_are_finite_at_the_extremes():
    target = torch.tensor([[1e4, -1e4]], requires_grad=True)
    gate = torch.tensor([-1e4], requires_grad=True)
    torch.cat([target, fusion.new_logits(target, torch.zeros(1, 2), gate)], 1).log_softmax(1).sum().backward()
    assert target.grad.isfinite().all()
    assert gate.grad.isfinite().all()
