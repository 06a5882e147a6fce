"""What the names in the documentation stand for: models and a clone on the loopback Hub, folders of photos.

Networks are small and untrained but for one head, and photos are squares of one colour a class, so that the source knows them.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import timm
import torch
from loopback_hub import LoopbackHub
from PIL import Image
from timm.data import ImageNetInfo, create_dataset, create_transform
from timm.models import push_to_hf_hub
from torch import Tensor, nn

import pnc_hub
from pnc_hub.models.preprocess import Preprocess, Reprocess

TARGETS = ("mobilenetv3_small_050.lamb_in1k", "mobilenetv3_small_075.lamb_in1k")
SOURCE, CLONE = "user/bird-classifier", "user/clone-birds"
CLASSES = ["lazuli bunting", "painted bunting"]
BIRDS = ["blue grosbeak", *CLASSES, "pyrrhuloxia"]  # what the source knows and photos/ shows
PHOTOS, SIDE = 12, 64


def build(hub: LoopbackHub, folder: Path) -> str:
    """Make all of it, photos in ``folder``; returns the token of ``user``."""
    token = hub.add_user("user")
    rng = np.random.default_rng(0)
    make_photos(folder / "photos", BIRDS, PHOTOS, rng)
    known = ImageNetInfo("imagenet-1k")
    make_photos(folder / "imagenet-sample", map(known.index_to_label_name, range(0, 1000, 100)), 4, rng)
    (folder / "photo.jpg").write_bytes((folder / "photos" / CLASSES[0] / "0.jpg").read_bytes())
    targets = [untrained(name.split(".")[0]) for name in TARGETS]
    for name, model in zip(TARGETS, targets, strict=True):
        push_to_hf_hub(model, f"timm/{name}", token=hub.add_user("timm"), safe_serialization=True)
    source = taught(untrained("test_resnet", len(BIRDS), SIDE), targets[0], folder / "photos")
    push_to_hf_hub(source, SOURCE, token=token, model_config={"label_names": sorted(BIRDS)}, safe_serialization=True)
    clone = pnc_hub.clone(
        f"hf-hub:{SOURCE}",
        TARGETS[0],
        CLASSES,
        folder / "photos",
        insertion="blocks.3.0",
        cut="layer2.0",
        epochs=0,
        progress=False,
    )
    clone.push_to_hub(CLONE, token=token)
    return token


def make_photos(folder: Path, names: Iterable[str], count: int, rng: np.random.Generator) -> None:
    """``count`` small photos of each class, of a colour of its own."""
    for name in names:
        (folder / name).mkdir(parents=True)
        colour = rng.integers(0, 256, 3)
        for number in range(count):
            pixels = 0.7 * colour + 0.3 * rng.integers(0, 256, (4, 4, 3))
            Image.fromarray(pixels.astype(np.uint8)).resize((SIDE, SIDE)).save(folder / name / f"{number}.jpg")


def untrained(architecture: str, num_classes: int = 1000, side: int = 224) -> nn.Module:
    """As sure of its answers as a trained one, with running statistics that are not those of initialisation."""
    torch.manual_seed(0)
    overlay = {"input_size": (3, side, side)}
    model = timm.create_model(architecture, num_classes=num_classes, pretrained_cfg_overlay=overlay)
    with torch.no_grad():
        model.train()(torch.randn(8, 3, SIDE, SIDE))
        logits = model.eval()(torch.randn(8, 3, SIDE, SIDE))
        model.get_classifier().weight.mul_(10 / logits.std())
    return model


@torch.no_grad()
def taught(source: nn.Module, target: nn.Module, photos: Path) -> nn.Module:
    """``source`` with a head that knows ``photos`` as they are shown to ``target``."""
    given = Preprocess.of(target)
    transform = create_transform(given.input_size, mean=given.mean, std=given.std, crop_pct=given.crop_pct)
    images, labels = zip(*create_dataset("", root=str(photos), transform=transform), strict=True)
    shown = Reprocess(given, Preprocess.of(source))(torch.stack(images))
    features = source.forward_head(source.forward_features(shown), pre_logits=True)
    solution = least_squares(features, torch.tensor(labels))
    source.get_classifier().weight.copy_(solution[:-1].T)
    source.get_classifier().bias.copy_(solution[-1])
    return source


def least_squares(features: Tensor, labels: Tensor) -> Tensor:
    """Weights, and below them biases, that give logits of 5 and -5."""
    rows = torch.cat([features, features.new_ones(len(features), 1)], 1).double()
    goal = nn.functional.one_hot(labels).double() * 10 - 5
    return torch.linalg.lstsq(rows, goal, driver="gelsd").solution.float()
