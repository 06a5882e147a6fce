"""Identity of a model's weights: which target was an adapter made for?

A fingerprint holds one sha256 per floating dtype, so that a half or bfloat16 copy of the same weights is recognised without
any tolerance: the digest for ``float16`` is that of the weights rounded to float16. It covers the parameters and buffers
that are used up to the insertion point, so a fine-tuned head still matches.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from pnc_hub.module import tensors_of

DTYPES = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

# Changed by a forward pass in training mode and by nothing else, and never read in eval mode.
_COUNTERS = ("num_batches_tracked",)


def fingerprint(model: nn.Module, trunk: Iterable[str] | None = None) -> dict[str, str]:
    """Digest of the weights of ``model`` in every dtype in which it may be met.

    Args:
        model: the model; it is only read.
        trunk: names of modules and parameters, as ``Skeleton.trunk`` lists them; the whole model if None.

    Returns:
        dtype name -> hex sha256.
    """
    tensors = _tensors(model, trunk)
    return {name: _digest(tensors, dtype) for name, dtype in DTYPES.items()}


def matches(model: nn.Module, trunk: Iterable[str], expected: dict[str, str]) -> bool:
    """Whether the trunk of ``model`` holds the weights that ``expected`` was taken of.

    Only the digest of the model's own dtype is computed; a model with mixed or other floating dtypes does not match.
    """
    tensors = _tensors(model, trunk)
    dtypes = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    name = next((name for name, dtype in DTYPES.items() if dtypes == {dtype}), None)
    if name is None or any(tensor.is_meta for tensor in tensors.values()):
        return False
    return _digest(tensors, DTYPES[name]) == expected.get(name)


def state_digest(model: nn.Module) -> str:
    """sha256 over every parameter and buffer of ``model`` as it is: before attach and after detach it is the same."""
    return _digest(dict(sorted((name, tensor.detach()) for name, tensor in tensors_of(model).items())), None)


def _tensors(model: nn.Module, trunk: Iterable[str] | None) -> dict[str, Tensor]:
    state = model.state_dict(keep_vars=True)
    if trunk is not None:
        wanted = set(trunk)
        state = {name: value for name, value in state.items() if _within(name, wanted)}
    return {
        name: value.detach()
        for name, value in sorted(state.items())
        if isinstance(value, Tensor) and name.rpartition(".")[2] not in _COUNTERS
    }


def _within(name: str, wanted: set[str]) -> bool:
    parts = name.split(".")
    return any(".".join(parts[:length]) in wanted for length in range(1, len(parts) + 1))


def _digest(tensors: dict[str, Tensor], dtype: torch.dtype | None) -> str:
    def of(item: tuple[str, Tensor]) -> bytes:
        name, tensor = item
        if dtype is not None and tensor.is_floating_point():
            tensor = tensor.to(dtype)
        tensor = tensor.cpu().contiguous()
        digest = hashlib.sha256(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy())
        return digest.digest()

    # hashlib releases the GIL, so two threads hash at nearly twice the speed of one
    with ThreadPoolExecutor(2) as pool:
        return hashlib.sha256(b"".join(pool.map(of, tensors.items()))).hexdigest()
