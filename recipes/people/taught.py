"""Networks for photos of one's own: by name, from a checkpoint, or trained; with a last layer for other classes if need be."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from timm.models import load_state_dict
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from pnc_hub.cloning.named import hub_id_of, named_arguments, timm_model
from pnc_hub.errors import DataError
from pnc_hub.models.classifier import classifier_name
from pnc_hub.models.labels import class_names
from recipes.frame import training
from recipes.frame.reading import HALF, TensorImages
from recipes.people import photos
from recipes.people.photos import plain

WAYS_OUT = (
    "without a connection give --source-checkpoint and --target-checkpoint, or local-dir:folder with what timm saved,"
    " or --scratch"
)
C = 0.01  # of the logistic regression, on features of unit variance
# where no weights can be had: small networks for small images, trained from nothing
SMALL, SMALL_SIDE, SMALL_EPOCHS = {"channels": (16, 32, 64, 128), "stem_width": 16}, 64, 40


@dataclass
class Network:
    """A network and what is known of its classes.

    Attributes:
        model: the network.
        fixed: whether its classes must stay (it was given as a checkpoint).
        untrained: whether its weights are random, so that all of it is to be trained.
        arguments: of its constructor.
        hub_id: of its weights.
    """

    model: nn.Module
    fixed: bool = False
    untrained: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)
    hub_id: str | None = None

    def rows(self, wanted: Sequence[str]) -> dict[str, int] | None:
        """Class of the folder -> class of the network; None where it does not know them all.

        Raises:
            DataError: that, of a network whose classes must stay.
        """
        count = int(self.model.num_classes)
        known = class_names(self.model, count)
        if known is None and self.fixed and len(wanted) == count:
            return {name: index for index, name in enumerate(wanted)}  # the order in which torch reads folders
        index_of: dict[str, list[int]] = {}
        for index, names in enumerate(known or ()):
            for name in {plain(name) for name in names}:
                index_of.setdefault(name, []).append(index)
        matches = {name: index_of.get(plain(name), []) for name in wanted}
        if all(len(indices) == 1 for indices in matches.values()):
            return {name: indices[0] for name, indices in matches.items()}
        missing = [name for name, indices in matches.items() if len(indices) != 1]
        close = difflib.get_close_matches(plain(missing[0]), index_of, 3)
        said = f"{type(self.model).__name__} has no class (or several) named {', '.join(map(repr, missing[:5]))}"
        said += f"; close are {', '.join(close)}" if close else ""
        if self.fixed:
            raise DataError(
                f"{said}. Name the folders as its {count} classes, and give their names, one a line, with"
                " --source-classes or --target-classes"
            )
        print(f"{said}.")
        return None

    def taught(self, target: nn.Module, data: TensorImages, names: Sequence[str], seed: int) -> nn.Module:
        """A copy that knows the classes ``names``; the images of ``data`` are made for ``target``."""
        what = "all of it" if self.untrained else "its last layer"
        print(
            f"{type(self.model).__name__}: {what} is trained on {len(data)} photos of {', '.join(names[:8])}", end=" "
        )
        print("..." if len(names) > 8 else "")
        if self.untrained:
            return _named(trained(self.model, data, len(names), seed), names)
        return _named(with_head(self.model, target, data, len(names)), names)


def named(name: str, checkpoint: Path | None, classes: Path | None) -> Network:
    """A timm model by name, with timm's pretrained weights or those of a checkpoint, and the names of its classes if given.

    Raises:
        DataError: its weights cannot be had or do not fit.
    """
    network = _pretrained(name) if checkpoint is None else _from_checkpoint(name, checkpoint)
    if classes is not None:
        listed = [line.strip() for line in classes.read_text(encoding="utf-8").splitlines() if line.strip()]
        if len(listed) != network.model.num_classes:
            raise DataError(f"{classes} names {len(listed)} classes, and {name} has {network.model.num_classes}")
        _named(network.model, listed)
    return network


def small(seed: int) -> Network:
    """A network without weights, to be trained on the photos from nothing."""
    overlay = {"input_size": (3, SMALL_SIDE, SMALL_SIDE), "mean": HALF, "std": HALF, "crop_pct": 1.0}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = timm.create_model("resnet18", pretrained_cfg_overlay=overlay, **SMALL)
    return Network(model, untrained=True, arguments=SMALL)


def with_head(model: nn.Module, target: nn.Module, data: TensorImages, count: int) -> nn.Module:
    """A copy of ``model`` with a last layer for ``count`` classes: logistic regression on its frozen features.

    The images of ``data`` are made for ``target``.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = copy.deepcopy(model).eval()
    model.reset_classifier(0)
    batches = tqdm(DataLoader(data, photos.BATCH), "features", leave=False, disable=None)
    features = torch.cat([photos.run_on(model, target, images) for images, _ in batches])
    fitted = make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=1000)).fit(features.numpy(), data.targets)
    scaler, regression = fitted[0], fitted[1]
    weight = regression.coef_ / scaler.scale_
    bias = regression.intercept_ - weight @ scaler.mean_
    if count == 2:  # one row stands for both
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    model.reset_classifier(count)
    last = model.get_classifier()
    with torch.no_grad():
        last.weight.copy_(torch.from_numpy(weight).reshape(last.weight.shape))
        last.bias.copy_(torch.from_numpy(bias))
    return model


def trained(model: nn.Module, data: TensorImages, count: int, seed: int) -> nn.Module:
    """A copy of ``model`` for ``count`` classes, trained on ``data`` from nothing."""
    model = copy.deepcopy(model)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model.reset_classifier(count)
    return training.train(model, data, SMALL_EPOCHS, seed, batch_size=32, learning_rate=0.1, half=False).cpu()


def _pretrained(name: str) -> Network:
    model = timm_model(name, DataError, WAYS_OUT, pretrained=True)
    return Network(model, arguments=named_arguments(name), hub_id=hub_id_of(name, model))


def _from_checkpoint(name: str, checkpoint: Path) -> Network:
    try:
        state = load_state_dict(str(checkpoint), weights_only=True)
        last = classifier_name(timm.create_model(name))
        model = timm.create_model(name, num_classes=len(state[f"{last}.weight"]))
        model.load_state_dict(state)
    except Exception as error:
        said = " ".join(str(error).split())[:300] or type(error).__name__
        raise DataError(f"{checkpoint} is no checkpoint of {name} ({type(error).__name__}: {said})") from error
    return Network(model.eval(), fixed=True)


def _named(model: nn.Module, names: Sequence[str]) -> nn.Module:
    """``model``, which says from now on what its classes are called."""
    model.pretrained_cfg = {**model.pretrained_cfg, "label_names": list(names), "num_classes": len(names)}
    return model
