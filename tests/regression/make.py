"""Makes the artifacts of this folder: ``python tests/regression/make.py`` from the repository's root, once per format version.

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


def main() -> None:
    """Write every case that is not there yet."""
    sys.path.insert(0, str(HERE.parent))
    from common import images, tiny_clone, tiny_model

    import pnc_hub
    from pnc_hub.artifact import files

    torch.set_num_threads(1)
    for name, ((architecture, arguments), family, options) in CASES.items():
        folder = HERE / VERSION / name
        if folder.exists():
            continue
        torch.manual_seed(0)
        target = build(architecture, arguments)
        for value in target.parameters():
            value.data += 0.05 * torch.randn_like(value)
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
