"""Identity of a model's weights: which target was an adapter made for?

A fingerprint holds one digest per floating dtype, so that a half or bfloat16 copy of the same weights is recognised without
any tolerance: the digest for ``float16`` is that of the weights rounded to float16. It covers the parameters and buffers
that are used up to the insertion point, so a fine-tuned head still matches.

The digest is XXH3 with 128 bits. It is taken at every attach, and is ten times as fast as sha256. It tells apart weights that
differ by training or by accident; it is no protection against somebody who makes weights to have a given fingerprint, and
need not be: whoever hands over a model can make it answer anything. The files of an artifact keep sha256.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import xxhash
from torch import Tensor, nn

from pnc_hub.errors import TargetError
from pnc_hub.models.tensors import tensors_of

DTYPES = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

# Changed by a forward pass in training mode and by nothing else, and never read in eval mode.
_COUNTERS = ("num_batches_tracked",)


@dataclass(frozen=True)
class _Weight:
    """A parameter or buffer by name; ``held`` is where accelerate keeps it while the model's own is on the meta device."""

    name: str
    tensor: Tensor
    held: tuple[Mapping[str, Tensor], str] | None = None

    @property
    def is_readable(self) -> bool:
        """Whether its numbers are there, and what they are does not depend on a subclass (quantised, sharded)."""
        plain = type(self.tensor) in (Tensor, nn.Parameter) and self.tensor.layout is torch.strided
        return plain and not self.tensor.is_quantized and (self.held is not None or not self.tensor.is_meta)

    def digest(self, new: Callable[[bytes], Any], dtype: torch.dtype | None = None) -> bytes:
        """By the hash function ``new``, of name, dtype, shape and numbers; in another floating ``dtype`` if one is given."""
        tensor = self.tensor.detach()
        if self.held is not None:
            tensor = self.held[0][self.held[1]].to(tensor.dtype)
        if dtype is not None and tensor.is_floating_point():
            tensor = tensor.to(dtype)
        tensor = tensor.cpu().contiguous()
        digest = new(f"{self.name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
        result: bytes = digest.digest()
        return result


def fingerprint(model: nn.Module, trunk: Iterable[str] | None = None) -> dict[str, str]:
    """Digest of the weights of ``model`` in every dtype in which it may be met.

    Args:
        model: the model; it is only read.
        trunk: names of modules and parameters, as ``Skeleton.trunk_names`` lists them; the whole model if None.

    Returns:
        dtype name -> hex digest.

    Raises:
        TargetError: a weight is quantised, sharded, or on the meta device.
    """
    weights = _weights(model, trunk)
    for weight in weights:
        if not weight.is_readable:
            raise TargetError(
                f"weight {weight.name!r} is a {type(weight.tensor).__name__} on {weight.tensor.device}, and only plain tensors"
                " have a fingerprint; load the plain weights"
            )
    return {name: _whole(weight.digest(xxhash.xxh3_128, dtype) for weight in weights) for name, dtype in DTYPES.items()}


def matches(
    model: nn.Module, trunk: Iterable[str], expected: dict[str, str], hashed: dict[str, bytes] | None = None
) -> bool:
    """Whether the trunk of ``model`` holds the weights that ``expected`` was taken of.

    Only the digest of the model's own dtype is computed; a model with mixed or other floating dtypes does not match, nor one
    whose weights cannot be read as they are (quantised, sharded). Weights that accelerate has offloaded are read where
    it keeps them.

    Args:
        model: the model; it is only read.
        trunk: as for ``fingerprint``.
        expected: what ``fingerprint`` returned.
        hashed: digests of the weights of ``model`` by name, which are added to: compared with many, each is hashed once.
    """
    weights = _weights(model, trunk)
    dtypes = {weight.tensor.dtype for weight in weights if weight.tensor.is_floating_point()}
    name = next((name for name, dtype in DTYPES.items() if dtypes == {dtype}), None)
    if name is None or not all(weight.is_readable for weight in weights):
        return False
    hashed = {} if hashed is None else hashed
    for weight in weights:
        if weight.name not in hashed:
            hashed[weight.name] = weight.digest(xxhash.xxh3_128)
    return _whole(hashed[weight.name] for weight in weights) == expected.get(name)


def state_digest(model: nn.Module) -> str:
    """sha256 over every parameter and buffer of ``model`` as it is: before attach and after detach it is the same."""
    weights = (_Weight(name, tensor) for name, tensor in sorted(tensors_of(model).items()))
    return hashlib.sha256(b"".join(weight.digest(hashlib.sha256) for weight in weights)).hexdigest()


def _weights(model: nn.Module, trunk: Iterable[str] | None) -> list[_Weight]:
    """What ``state_dict`` lists of the trunk, in the order of names, but for counters."""
    weights = _below(model, "", None if trunk is None else set(trunk), ())
    return sorted(weights, key=lambda weight: weight.name)


def _below(module: nn.Module, path: str, wanted: set[str] | None, maps: tuple[Any, ...]) -> Iterator[_Weight]:
    """Weights of ``module`` and its submodules; all if ``wanted`` is None, else those that it names or whose module it does.

    ``maps`` holds (weights by name, path that the names begin at), from where accelerate has offloaded weights of
    modules further up.
    """
    if path.removesuffix(".") in (wanted or ()):
        wanted = None
    hook: Any = getattr(module, "_hf_hook", None)
    for single in getattr(hook, "hooks", (hook,)):
        if getattr(single, "weights_map", None) is not None:
            maps = (*maps, (single.weights_map, path))
    persistent = {
        name: buffer for name, buffer in module._buffers.items() if name not in module._non_persistent_buffers_set
    }
    for attribute, tensor in (*module._parameters.items(), *persistent.items()):
        name = path + attribute
        if tensor is not None and attribute not in _COUNTERS and (wanted is None or name in wanted):
            held = ((kept, name.removeprefix(start)) for kept, start in maps if tensor.is_meta)
            yield _Weight(name, tensor, next((entry for entry in held if entry[1] in entry[0]), None))
    for name, child in module._modules.items():
        if child is not None:
            yield from _below(child, f"{path}{name}.", wanted, maps)


def _whole(digests: Iterable[bytes]) -> str:
    """One digest of the digests of all weights, in hex."""
    return xxhash.xxh3_128(b"".join(digests)).hexdigest()
