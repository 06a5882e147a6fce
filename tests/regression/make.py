"""Makes the artifacts of this folder: ``python tests/regression/make.py`` from the repository's root, once per format version.

With ``--fingerprints`` only those of the artifacts that are there are taken anew, for a digest that changed before a release.

They are kept as they were written. Of each: ``clone/`` (the artifact), ``target.safetensors`` (the weights of the target that
it was made for), ``expected.safetensors`` (``images``, ``logits`` with the clone attached) and ``made.json`` (how to build the
target, and where it ran).
"""

import platform
import sys
from pathlib import Path

import timm
import torch
from torch import nn

HERE = Path(__file__).parent
VERSION = "v1"
SIDE = 32
CONVNEXT = ("convnext_atto", {"dims": (8, 8, 16, 16), "depths": (1, 1, 1, 1), "num_classes": 5})
VIT = (
    "vit_tiny_patch16_224",
    {"img_size": SIDE, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5},
)
# name -> target, family of the source, and what ``tiny_clone`` is told besides
CASES = {
    "convolutional": (CONVNEXT, "resnet", {"universal": False, "keep": 0.5}),
    "input": (CONVNEXT, "resnet", {"universal": True}),
    "vit": (VIT, "vit", {"universal": False}),
}


def build(architecture: str, arguments: dict) -> nn.Module:
    """A target as timm builds it, in eval mode, for images [3, 32, 32]."""
    arguments = {name: tuple(value) if isinstance(value, list) else value for name, value in arguments.items()}
    overlay = {"input_size": (3, SIDE, SIDE)}
    return timm.create_model(architecture, pretrained_cfg_overlay=overlay, **arguments).eval()


def place() -> dict[str, str]:
    """What decides whether numbers come out the same to the last bit."""
    info = Path("/proc/cpuinfo")
    models = [line for line in info.read_text().splitlines() if "model name" in line] if info.exists() else []
    return {
        "torch": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "processor": models[0].split(":")[1].strip() if models else platform.processor(),
    }


def moved(architecture: str, arguments: dict) -> nn.Module:
    """The target that a clone is made for: weights other than timm's, the same every time."""
    torch.manual_seed(0)
    target = build(architecture, arguments)
    for value in target.parameters():
        value.data += 0.05 * torch.randn_like(value)
    return target


def renew_fingerprints() -> None:
    """Write into every configuration the fingerprints of the models that its clone was made of; nothing else changes."""
    from common import tiny_model

    from pnc_hub.artifact import config, files
    from pnc_hub.models.fingerprint import fingerprint

    for name, (described, family, _) in CASES.items():
        path = HERE / VERSION / name / "clone" / files.CONFIG
        values, target = files.read_json(path, files.CONFIG), moved(*described)
        values["source"]["fingerprint"] = fingerprint(tiny_model(family))
        for adapter in values["adapters"]:
            if made_for := adapter["target"]:
                made_for["fingerprint"] = fingerprint(target, made_for["trunk"])
        path.write_bytes(files.json_bytes(config.seal(values)))


def main() -> None:
    """Write every case that is not there yet."""
    sys.path.insert(0, str(HERE.parent))
    torch.set_num_threads(1)
    if "--fingerprints" in sys.argv:
        renew_fingerprints()
        return
    from common import images, tiny_clone, tiny_model

    import pnc_hub
    from pnc_hub.artifact import files

    for name, ((architecture, arguments), family, options) in CASES.items():
        folder = HERE / VERSION / name
        if folder.exists():
            continue
        target = moved(architecture, arguments)
        clone = tiny_clone(tiny_model(family), target, family=family, **options)
        if name == "input":  # a target that it was not made for
            target = build(architecture, arguments)
        clone.save_pretrained(folder / "clone")
        batch = images(3)
        with torch.no_grad(), pnc_hub.attach(target, folder / "clone"):
            logits = target(batch)
        (folder / "target.safetensors").write_bytes(files.tensor_bytes(target.state_dict()))
        (folder / "expected.safetensors").write_bytes(files.tensor_bytes({"images": batch, "logits": logits}))
        (folder / "made.json").write_bytes(
            files.json_bytes({"architecture": architecture, "arguments": arguments, **place()})
        )


if __name__ == "__main__":
    main()
