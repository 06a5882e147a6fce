"""Running a model on the probe: does the target give the feature, and the model the answer, that is recorded?"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pnc_hub.artifact.config import AdapterConfig
from pnc_hub.artifact.contents import Contents
from pnc_hub.artifact.probe import enlarge
from pnc_hub.attachment.joined import JoinedClone
from pnc_hub.errors import ProbeError, TargetError
from pnc_hub.models.features import read
from pnc_hub.models.insertion import INPUT

# Relative error of the target's feature beyond which its weights or its structure are others; by size of its dtype.
FEATURE_TOLERANCE = {8: 1e-3, 4: 1e-3, 2: 0.1}


@torch.inference_mode()
def feature_error(model: nn.Module, contents: Contents, adapter: AdapterConfig, size: tuple[int, ...]) -> float:
    """Relative error of the target's feature on the probe; 0 for an adapter at the input, which reads no feature.

    ``model`` is the target in eval mode, ``size`` (C, H, W) that of its images; ``adapter`` is one of the clone's.
    """
    if adapter.insertion.name == INPUT:
        return 0.0
    shipped, name = contents.probe(adapter), adapter.insertion.name
    if shipped["image"].shape[1] != size[0]:
        return float("inf")
    image = enlarge(shipped["image"], size).to(next(model.parameters(), torch.zeros(())))
    with torch.compiler.set_stance("force_eager"):  # a compiled graph would not see the hook
        _, features = read(model, image, [name], stop=True)
    found, wanted = features.get(name), shipped["feature"]
    if found is None or found.shape != wanted.shape:
        return float("inf")
    return float((found.float().cpu() - wanted).norm() / wanted.norm().clamp_min(1e-12))


def verify(model: nn.Module, joined: JoinedClone, end: int, run_as: Callable[[Tensor], Tensor]) -> float:
    """Check that target and clone answer the probe as recorded, and that ``run_as`` answers an image as ``model`` does.

    Args:
        model: the target, in eval mode.
        joined: an attached clone.
        end: where its logits end in the output of ``model``.
        run_as: how the model is run.

    Returns:
        The largest absolute difference from the probe's expected logits.

    Raises:
        ProbeError: one of them does not.
    """
    kind, insertion, size = type(model).__name__, joined.adapter.insertion.name, joined.given.input_size
    difference = joined.clone.run_probe(joined.adapter)
    reference = next(model.parameters(), torch.zeros(()))
    error = feature_error(model, joined.clone, joined.adapter, size)
    if not error <= FEATURE_TOLERANCE.get(reference.element_size(), FEATURE_TOLERANCE[2]):
        raise ProbeError(
            f"{kind} answers the probe at {insertion!r} with another feature than the target that the clone was made for"
            f" (relative error {error:.2g}): its weights or its structure are others. Load those weights, or have an"
            " adapter made for this model."
        )
    shipped = joined.clone.probe(joined.adapter)["image"][:1]
    image = enlarge(shipped if shipped.shape[1] == size[0] else shipped.mean(1, keepdim=True), size)
    image = image.expand(-1, size[0], -1, -1).to(reference)
    try:
        with torch.compiler.set_stance("force_eager"):
            expected = model(image)
        found = run_as(image)
    except TargetError as error:
        raise ProbeError(str(error)) from error
    if not bool(expected[:, end - len(joined.clone.labels) : end].isfinite().all()):
        raise ProbeError(
            f"the clone has no answer to its probe in {str(expected.dtype).removeprefix('torch.')}: it overflows. Convert the"
            " model to bfloat16 or float32"
        )
    complete = expected.shape[1] >= end and found.shape == expected.shape
    if not complete or not torch.allclose(found, expected, rtol=1e-2, atol=1e-2):
        raise ProbeError(
            f"the callable returns {list(found.shape)} and does not carry the clone's logits: it was compiled or captured"
            " before the clone was attached, or its forward was exchanged since. Attach first, or call"
            " torch.compiler.reset()."
        )
    return difference
