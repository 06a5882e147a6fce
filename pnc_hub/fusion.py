"""Gated fusion of the target's logits with those of a clone: pure functions.

With target logits ``z_T`` [B, T], clone logits ``z_K`` [B, K] and a gate logit ``s`` [B]::

    z_new = log_softmax(z_K) + s + logsumexp(z_T)

so that, under a softmax over ``concat(z_T, z_new)``, P(a cloned class) = sigmoid(s), both conditional distributions are
kept, and KL(target alone || attached) = -log(1 - sigmoid(s)).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

SCALARS = ("target_energy", "target_max", "clone_energy", "clone_max", "reject")


def new_logits(target_logits: Tensor, clone_logits: Tensor, gate_logit: Tensor) -> Tensor:
    """Logits of the cloned classes, on the scale of the target's own.

    Args:
        target_logits: [B, T], untouched by the call.
        clone_logits: [B, K], over the cloned classes alone.
        gate_logit: [B], the log odds that the image shows a cloned class.

    Returns:
        [B, K] in the dtype of ``target_logits``; computed in float32 at least. Where the clone has no answer (its half
        precision overflowed), minus infinity: the target's answer stands.

    Example:
        >>> import torch
        >>> z = torch.cat([torch.zeros(1, 3), new_logits(torch.zeros(1, 3), torch.zeros(1, 2), torch.zeros(1))], 1)
        >>> round(z.softmax(1)[0, 3:].sum().item(), 6)  # sigmoid(0)
        0.5
    """
    target = _at_least_float32(target_logits)
    conditional = _at_least_float32(clone_logits).log_softmax(1)
    shift = _at_least_float32(gate_logit) + target.logsumexp(1)
    new = conditional + shift[:, None]
    return torch.where(new.isnan(), float("-inf"), new).to(target_logits.dtype)


def scalars(target_logits: Tensor, clone_logits: Tensor, reject: Tensor) -> Tensor:
    """What a gate can read off both heads, in the order of ``SCALARS``: [B, 5], float32 at least.

    Energies are ``logsumexp`` of the logits; ``reject`` [B] is the module's logit for
    everything that is none of the cloned classes.
    """
    target, clone = _at_least_float32(target_logits), _at_least_float32(clone_logits)
    columns = [target.logsumexp(1), target.amax(1), clone.logsumexp(1), clone.amax(1), _at_least_float32(reject)]
    return torch.stack(torch.broadcast_tensors(*columns), 1)


def diversion_margin(target_logits: Tensor, clone_logits: Tensor, gate_logit: Tensor) -> Tensor:
    """By how much the best cloned class beats the best target class: [B].

    Positive exactly where the prediction leaves the target: ``s + max log p_K > max log p_T``. Subtracting an offset from
    the gate logit lowers it by that offset, which is what a locality budget chooses.
    """
    new = new_logits(target_logits, clone_logits, gate_logit)
    return _at_least_float32(new).amax(1) - _at_least_float32(target_logits).amax(1)


def divergence(gate_logit: Tensor) -> Tensor:
    """KL(target alone || attached) = -log(1 - sigmoid(s)), in nats: [B]."""
    return F.softplus(_at_least_float32(gate_logit))


def _at_least_float32(value: Tensor) -> Tensor:
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
