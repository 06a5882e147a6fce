"""What each of two processes does in ``test_distributed``: it learns clones, and notes what came out."""

import os
import random
import warnings
from unittest import mock

import numpy as np
import sklearn.metrics  # noqa: F401  (its first import draws a random number, for rich)
import torch
from accelerate.utils import broadcast_object_list
from common import source_args, tiny_model
from torch import distributed

import pnc_hub
from cloning.learning import CLASSES, PLACE, squares, target_images

# Batches of 8 leave one process with a batch more, or with a short one; in batches of 64 the second process has none.
CASES = {
    "searched": {"epochs": 0, "keep": 0.5, "batch_size": 8},
    "one batch": {**PLACE, "epochs": 0, "keep": 1.0, "batch_size": 64},
    "refined": {**PLACE, "epochs": 2, "keep": 0.6, "batch_size": 8},
    "not tuned": {**PLACE, "epochs": 1, "keep": 1.0, "batch_size": 16, "tune": False, "universal": False},
    "own statistics": {**PLACE, "epochs": 6, "keep": 1.0, "batch_size": 16, "universal": False},
}


def learn(case: str) -> dict:
    """Tensors, configuration and curve of the clone, and its tensors as this process alone has them."""
    before, own = random_state(), {}

    def sent(clones: list) -> list:
        own.update(clones[0].all_tensors())
        return broadcast_object_list(clones)

    with warnings.catch_warnings(action="ignore"), mock.patch("pnc_hub.cloning.session.broadcast_object_list", sent):
        clone = pnc_hub.clone(
            tiny_model("resnet", seed=1),
            tiny_model("convnext"),
            CLASSES,
            squares(CLASSES.values(), 11),
            target_data=target_images(9, seed=1),
            source_args=source_args("resnet"),
            device="cpu",
            progress=False,
            **CASES[case],
        )
    assert random_state() == before
    return {"tensors": clone.all_tensors(), "config": clone.config.to_dict(), "curve": clone.curve, "own": own}


def random_state() -> tuple:
    return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()


def run(rank: int, store: str, folder: str) -> None:
    """Every case; what came out goes to ``folder/<rank>.pt``."""
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), GLOO_SOCKET_IFNAME="lo")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="1")  # accelerate asks for them; the store is a file
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    try:
        torch.save({case: learn(case) for case in CASES}, f"{folder}/{rank}.pt")
        distributed.barrier()
    finally:
        distributed.destroy_process_group()
