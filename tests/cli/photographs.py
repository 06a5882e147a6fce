"""Photos and checkpoints on disk, for commands to read."""

import json
from pathlib import Path

import torch
from common import FAMILIES, SIDE, tiny_model
from PIL import Image
from safetensors.torch import save_file
from torch import nn

OVERLAY = {"pretrained_cfg_overlay": {"input_size": [3, SIDE, SIDE]}, "num_classes": 7}
CLONED = {"ant": 1, "bee": 2, "wasp": 4}
OLD = {f"old-{index}": 10 + index for index in range(7)}


def take(folder: Path, classes: dict[str, int], each: int, seed: int = 0) -> Path:
    """A folder with a folder of ``each`` photos of coloured squares per class; equal numbers look alike."""
    generator = torch.Generator().manual_seed(seed)
    for name, number in classes.items():
        (folder / name).mkdir(parents=True)
        squares = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(number))
        for index in range(each):
            photo = nn.functional.interpolate(squares, size=(SIDE, SIDE))[0]
            photo = photo + 0.1 * torch.randn(3, SIDE, SIDE, generator=generator)
            pixels = (photo.clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


def named(role: str, family: str, folder: Path, seed: int = 0) -> list[str]:
    """Options that name a tiny model, whose weights are written to ``folder``."""
    name, arguments = FAMILIES[family]
    weights = tiny_model(family, seed=seed).state_dict()
    path = folder / f"{family}-{seed}{'.pth' if role == 'source' else '.safetensors'}"
    torch.save(weights, path) if role == "source" else save_file(weights, path)
    options = [f"--{role}", name] if role != "model" else []
    checkpoint = "--checkpoint" if role == "model" else f"--{role}-checkpoint"
    return [*options, checkpoint, str(path), f"--{role}-args", json.dumps({**arguments, **OVERLAY})]
