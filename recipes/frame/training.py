"""Training a classifier: one-cycle SGD on batches of tensors, by accelerate, resumable, and remembered on disk.

Nothing random depends on how far an earlier run came: every epoch draws its order and its augmentation from (seed, epoch).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset, default_collate
from tqdm.auto import tqdm

from pnc_hub.models.fingerprint import state_digest
from recipes.frame import rehearsal
from recipes.frame.task import clock

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]
WEIGHT_DECAY = 5e-4
_cache = Path(__file__).parents[1] / ".cache"
_seconds: WeakKeyDictionary[nn.Module, float] = WeakKeyDictionary()


def use_cache(folder: Path | str) -> None:
    """Keep trained networks in ``folder`` from now on (``recipes/.cache`` by default)."""
    global _cache
    _cache = Path(folder)


def seconds(model: nn.Module) -> float:
    """How long it took to train ``model`` when that was last done; 0 for a network that ``train`` did not return."""
    return _seconds.get(model, 0.0)


def cross_entropy(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """The loss that is used where no other is given."""
    return nn.functional.cross_entropy(model(images), labels)


def train(
    model: nn.Module,
    data: Dataset,
    epochs: int,
    seed: int,
    *,
    loss: Loss | None = None,
    learning_rate: float = 0.2,
    batch_size: int = 128,
    augment: bool = True,
    flip: bool = True,
    optimizer: str = "sgd",
    weight_decay: float = WEIGHT_DECAY,
    half: bool = True,
    name: str | None = None,
    device: str | None = None,
) -> nn.Module:
    """Train ``model`` in place on all of ``data``.

    Parameters that take no gradient stay as they are. The caller's random state is not touched.

    Args:
        model: a network for the images of ``data``.
        data: pairs (image [C, H, W], label); fastest where it has ``batch``, as ``reading.TensorImages``.
        epochs: passes.
        seed: of order and augmentation (and of what is random in the model).
        loss: (model, images, labels) -> scalar, cross-entropy by default; ``model(images)`` gives float32 logits.
        learning_rate: the highest of the cycle.
        batch_size: images per step.
        augment: shift the images of a batch by up to an eighth of their side, each by its own amount.
        flip: also mirror half of them, where ``augment``; not for characters.
        optimizer: name as ``timm.optim.create_optimizer_v2`` takes it; ``"sgd"`` has Nesterov's momentum of 0.9.
        weight_decay: of all but biases and normalisations.
        half: compute in bfloat16 (autocast).
        name: remember the result under this name and continue an interrupted run. With ``loss`` the name must also tell what
            goes into that; everything else is part of the key.
        device: ``"cpu"`` to stay off an accelerator.

    Returns:
        ``model``, in eval mode, on the device that it was trained on; ``seconds`` tells how long that took.
    """
    epochs = rehearsal.passes(epochs)
    accelerator = Accelerator(cpu=device == "cpu")
    settings = (epochs, seed, learning_rate, batch_size, augment, flip, optimizer, weight_decay, half)
    path = _path(name, model, data, settings, loss) if name and not rehearsal.on() else None
    if path and path.exists():
        model.load_state_dict(load_file(path))
        _seconds[model] = json.loads(path.with_suffix(".json").read_text())["seconds"]
        return model.to(accelerator.device).eval()
    model.to(memory_format=torch.channels_last)
    steps = max(1, epochs * (-(-len(data) // batch_size)))
    stepper = create_optimizer_v2(model, opt=optimizer, lr=learning_rate, weight_decay=weight_decay, momentum=0.9)
    schedule = torch.optim.lr_scheduler.OneCycleLR(stepper, learning_rate, steps, pct_start=0.25 if steps > 4 else 0.3)
    model, stepper = accelerator.prepare(model, stepper)
    run = _Run(model, stepper, schedule, path and path.with_suffix(".part"))
    # mixed precision is not the Accelerator's: its state outlives it, and what comes after would inherit bfloat16
    autocast = torch.autocast(accelerator.device.type, torch.bfloat16, enabled=half)
    to_float = model.register_forward_hook(lambda _module, _inputs, logits: logits.float())
    model.train()
    with torch.random.fork_rng(), tqdm(total=epochs, initial=run.epoch, desc=name, disable=None, leave=False) as bar:
        for epoch in range(run.epoch, epochs):
            generator = torch.Generator().manual_seed(1_000_003 * seed + epoch)
            torch.manual_seed(1_000_003 * seed + epoch)
            for positions in torch.randperm(len(data), generator=generator).split(batch_size):
                images, labels = _taken(data, positions)
                images = augmented(images, generator, flip) if augment else images
                images = images.to(accelerator.device, memory_format=torch.channels_last)
                with autocast:
                    value = (loss or cross_entropy)(model, images, labels.to(accelerator.device))
                accelerator.backward(value)
                stepper.step()
                schedule.step()
                stepper.zero_grad()
            run.save(epoch + 1)
            bar.update()
    to_float.remove()
    model = accelerator.unwrap_model(model).to(memory_format=torch.contiguous_format).eval()
    _seconds[model] = run.seconds()
    if path:
        _store(model, path)
        run.path.unlink(missing_ok=True)
    return model


def augmented(images: Tensor, generator: torch.Generator, flip: bool) -> Tensor:
    """Each image [B, C, H, W] shifted by up to an eighth of its size, zeros coming in, and by chance mirrored."""
    count, _, height, width = images.shape

    def positions(size: int, mirror: bool) -> Tensor:
        margin = size // 8
        start = torch.randint(2 * margin + 1, (count, 1), generator=generator)
        order = torch.arange(size).expand(count, size)
        if mirror:
            order = torch.where(torch.rand(count, 1, generator=generator) < 0.5, order.flip(1), order)
        return (start + order).to(images.device)

    rows, columns = positions(height, False), positions(width, flip)
    padded = F.pad(images, [width // 8] * 2 + [height // 8] * 2)
    which = torch.arange(count, device=images.device)[:, None, None]
    return padded[which, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


class _Run:
    """How far a training has come, in memory and (where there is a path) on disk."""

    def __init__(self, model: nn.Module, optimizer: Any, schedule: Any, path: Path | None) -> None:
        self.parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
        self.path, self.epoch, self.earlier = path, 0, 0.0
        if path and path.exists():
            saved = torch.load(path, map_location="cpu", weights_only=True)
            for name, part in self.parts.items():
                part.load_state_dict(saved[name])
            self.epoch, self.earlier = saved["epoch"], saved["seconds"]
        self.started = clock()

    def seconds(self) -> float:
        return self.earlier + clock() - self.started

    def save(self, epoch: int) -> None:
        if self.path:
            state = {name: part.state_dict() for name, part in self.parts.items()}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _replace(self.path, lambda path: torch.save({**state, "epoch": epoch, "seconds": self.seconds()}, path))


def _taken(data: Any, positions: Tensor) -> tuple[Tensor, Tensor]:
    if hasattr(data, "batch"):
        return data.batch(positions)
    images, labels = default_collate([data[position] for position in positions.tolist()])
    return images, torch.as_tensor(labels)


def _path(name: str, model: nn.Module, data: Dataset, settings: tuple, loss: Loss | None) -> Path:
    identity = data.digest() if hasattr(data, "digest") else _digest(data)
    trainable = [parameter.requires_grad for parameter in model.parameters()]
    what = "None" if loss is None else getattr(loss, "__qualname__", type(loss).__qualname__)
    parts = (repr(model), state_digest(model), trainable, identity, settings, what)
    key = hashlib.sha256(repr(parts).encode()).hexdigest()[:12]
    return _cache / f"{name}-{key}.safetensors"


def _digest(data: Any) -> str:
    digest = hashlib.sha256()
    for index in range(len(data)):
        image, label = data[index]
        digest.update(image.contiguous().numpy().tobytes() + str(int(label)).encode())
    return digest.hexdigest()


def _store(model: nn.Module, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = json.dumps({"seconds": seconds(model)})
    _replace(path.with_suffix(".json"), lambda part: part.write_text(beside))  # first: the weights say that it is done
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    _replace(path, lambda part: save_file(state, part))


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    """Write beside and rename, so that what stands at ``path`` is always whole."""
    part = path.with_name(f"{path.name}.{os.getpid()}")
    write(part)
    part.replace(path)
