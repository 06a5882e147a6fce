"""Images made of coloured squares, and clones that are learned of them in a second."""

import json

import pytest
import torch
from common import FAMILIES, source_args
from torch import nn
from torch.utils.data import TensorDataset

import pnc_hub


def few(*names, among=tuple(FAMILIES)):
    """Each of these; in the quick run ``names`` alone."""
    return [name if name in names else pytest.param(name, marks=pytest.mark.slow) for name in among]


CLASSES = {"ant": 1, "bee": 2, "wasp": 4}
PLACE = {"insertion": "stages.1", "cut": "layer3.1"}


def squares(classes, each=10, seed=0, channels=3, side=32):
    """Images of 4x4 coloured squares with noise; each class has its own squares."""
    centres = torch.randn(20, channels, 4, 4, generator=torch.Generator().manual_seed(99))
    labels = torch.tensor(list(classes)).repeat_interleave(each)
    noise = torch.randn(len(labels), channels, side, side, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(nn.functional.interpolate(centres[labels], size=(side, side)) + 0.3 * noise, labels)


def target_images(each=10, **options):
    shifted = squares(range(10, 17), each, **options)
    return TensorDataset(shifted.tensors[0], shifted.tensors[1] - 10)


NEW, OLD = squares(CLASSES.values()), target_images(8)


def trained(model, data, steps=25):
    """So that it tells the squares apart."""
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    model.train()
    for _ in range(steps):
        nn.functional.cross_entropy(model(data.tensors[0]), data.tensors[1]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def learn(source, target, classes=CLASSES, data=NEW, **options):
    """Quickly: at a fixed place, unpruned, and one pass, unless asked otherwise."""
    quick = {**PLACE, "keep": 1.0, "epochs": 1, "target_data": OLD, "source_args": source_args("resnet")}
    return pnc_hub.clone(source, target, classes, data, **{**quick, "device": "cpu", "progress": False, **options})


def contents(clone, folder):
    """File -> bytes; of the configuration what does not tell the time."""
    clone.save_pretrained(folder)
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.safetensors")}
    config = json.loads((folder / "config.json").read_text())
    del config["files"]["config.json"]  # its seal, which differs where the seconds do
    for adapter in config["adapters"]:
        adapter["metrics"].pop("seconds", None)
    return {**found, "config": config}
