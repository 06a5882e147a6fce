"""One clone at work in one model: its module and its gate, where and as the target's features come."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn

from pnc_hub import fusion
from pnc_hub.artifact import files
from pnc_hub.artifact.probe import enlarge
from pnc_hub.attachment.plan import Plan, feature_error
from pnc_hub.errors import InsertionPointError, ProbeError, TargetError
from pnc_hub.hub.clone import Clone
from pnc_hub.models.insertion import INPUT
from pnc_hub.models.tensors import tensors_of
from pnc_hub.module import CloneModule, Gate

# Relative error of the target's feature beyond which its weights or its structure are others; by size of its dtype.
FEATURE_TOLERANCE = {8: 1e-3, 4: 1e-3, 2: 0.1}

Parts = tuple[CloneModule, Gate, torch.device, torch.dtype]


class JoinedClone:
    """The module and the gate of one attached clone. Copies and pickles hold the clone and build their own.

    A frozen one follows the device and the dtype of the features that come, built anew from the clone's own tensors, so
    that no precision is lost on the way. A trainable one stays in float32 and moves: its parameters are the same objects for
    as long as it lives, as an optimizer needs them.
    """

    def __init__(self, clone: Clone, plan: Plan, trainable: bool = False) -> None:
        self.clone, self.adapter, self.given, self.trainable = clone, plan.adapter, plan.given, trainable
        self.labels, self.insertion = clone.labels, plan.adapter.insertion
        self.fired = False  # whether a pass has used it
        self.attachment: Any = None  # what stands for it outside
        self._parts = self._built(plan.device, plan.dtype)

    def __repr__(self) -> str:
        return repr(self.attachment)

    def __call__(self, feature: Tensor, target_logits: Tensor) -> Tensor:
        """Logits of the cloned classes [B, K], on the device and in the dtype of the target's [B, T]."""
        self._check(feature)
        self.fired = True  # not looked at first: torch.compile would guard on it
        kind = feature.device.type
        autocast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
        dtype = torch.promote_types(feature.dtype, torch.float32) if autocast else feature.dtype
        parts = self._parts
        if parts[2] != feature.device or (parts[3] != dtype and not self.trainable):
            parts = self._parts = self._moved(feature.device) if self.trainable else self._built(feature.device, dtype)
        module, gate, _, weights_dtype = parts
        clone_logits, reject, features = module(feature if autocast else feature.to(weights_dtype))
        target = target_logits.to(feature.device)
        with torch.autocast(kind, enabled=False) if autocast else nullcontext():  # fusion needs its float32
            new = fusion.new_logits(target, clone_logits, gate(target, clone_logits, reject, features))
        return new.to(target_logits.device)

    def _check(self, feature: Tensor) -> None:
        point = self.adapter.insertion
        if point.name == INPUT:  # images are checked as such, and grey ones are given colours
            return
        axis = {"NCHW": 1, "NC": 1, "NHWC": 3, "NLC": 2}[point.layout]
        if feature.dim() != len(point.layout) or feature.shape[axis] != point.channels:
            raise InsertionPointError(
                f"the clone reads {point.layout} features with {point.channels} channels at {point.name!r}, found"
                f" {list(feature.shape)}; have an adapter made for this model"
            )

    def __getstate__(self) -> dict[str, Any]:
        clone = self.learned() if self.trainable else self.clone
        return {**self.__dict__, "clone": clone, "_parts": self._parts[2:]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._parts = self._built(*state["_parts"])

    def parameters(self) -> Iterator[nn.Parameter]:
        """Of the module, then of the gate."""
        for part in self._parts[:2]:
            yield from part.parameters()

    def learned(self) -> Clone:
        """A clone with the weights as they are now, and a probe that expects them; what was measured before is left out."""
        module, gate = self._parts[:2]
        trained: dict[str, nn.Module] = {"tail": module.tail, "head": module.head, "gate": gate}
        if self.adapter.insertion.name == INPUT:
            trained["trunk"] = cast(nn.Sequential, module.adapter)[1]
        else:
            trained["adapter"] = module.adapter
        values = {f"{key}.{name}": value for key, part in trained.items() for name, value in tensors_of(part).items()}
        config, tensors = copy.deepcopy(self.clone.config), self.clone.all_tensors()
        for file in (files.WEIGHTS, self.adapter.file, *[files.TRUNK] * ("trunk" in trained)):
            for name, old in tensors[file].items():
                tensors[file][name] = values[name].detach().to("cpu", old.dtype, copy=True)
        clone = Clone(config, tensors)
        for adapter in config.adapters:
            adapter.metrics, adapter.series = {}, {}
            clone.refresh_probe(adapter)
        return clone

    def verify(self, model: nn.Module, end: int, run_as: Callable[[Tensor], Tensor]) -> float:
        """Check that target and clone answer the probe as recorded, and that ``run_as`` answers an image as ``model`` does.

        ``model`` is the target in eval mode; the clone's logits end at column ``end`` of its output.

        Returns:
            The largest absolute difference from the probe's expected logits.

        Raises:
            ProbeError: one of them does not.
        """
        kind, insertion, size = type(model).__name__, self.adapter.insertion.name, self.given.input_size
        difference = self.clone.run_probe(self.adapter)
        reference = next(model.parameters(), torch.zeros(()))
        error = feature_error(model, self.clone, self.adapter, size)
        if not error <= FEATURE_TOLERANCE.get(reference.element_size(), FEATURE_TOLERANCE[2]):
            raise ProbeError(
                f"{kind} answers the probe at {insertion!r} with another feature than the target that the clone was made for"
                f" (relative error {error:.2g}): its weights or its structure are others. Load those weights, or have an"
                " adapter made for this model."
            )
        shipped = self.clone.probe(self.adapter)["image"][:1]
        image = enlarge(shipped if shipped.shape[1] == size[0] else shipped.mean(1, keepdim=True), size)
        image = image.expand(-1, size[0], -1, -1).to(reference)
        try:
            with torch.compiler.set_stance("force_eager"):
                expected = model(image)
            found = run_as(image)
        except TargetError as error:
            raise ProbeError(str(error)) from error
        if not bool(expected[:, end - len(self.clone.labels) : end].isfinite().all()):
            raise ProbeError(
                f"the clone has no answer to its probe in {str(expected.dtype).removeprefix('torch.')}: it overflows. Convert"
                " the model to bfloat16 or float32"
            )
        complete = expected.shape[1] >= end and found.shape == expected.shape
        if not complete or not torch.allclose(found, expected, rtol=1e-2, atol=1e-2):
            raise ProbeError(
                f"the callable returns {list(found.shape)} and does not carry the clone's logits: it was compiled or captured"
                " before the clone was attached, or its forward was exchanged since. Attach first, or call"
                " torch.compiler.reset()."
            )
        return difference

    def _moved(self, device: torch.device) -> Parts:
        module, gate, _, dtype = self._parts
        return module.to(device), gate.to(device), device, dtype

    def _built(self, device: torch.device, dtype: torch.dtype) -> Parts:
        """Built in a thread of its own: inference mode, tracing, default devices and functorch's levels are the caller's."""
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(self._build, device, dtype).result()

    def _build(self, device: torch.device, dtype: torch.dtype) -> Parts:
        module, gate = self.clone.build(self.adapter, self.given)
        if not self.trainable and (device.type, dtype) == ("cpu", torch.float32):  # as it is built
            return module, gate, device, dtype
        if not self.trainable:
            return module.to(device, dtype), gate.to(device), device, dtype
        copies = copy.deepcopy((module, gate))
        for part in copies:
            part.to(device, torch.float32).requires_grad_()
        return *copies, device, torch.float32
