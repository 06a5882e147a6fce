"""Photos, and a model to attach clones to."""

import itertools

import pytest
from common import images
from torchvision.transforms.functional import to_pil_image

from cli.photographs import named


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder for each of the cloned classes, and for each of the model's own."""
    folder = tmp_path_factory.mktemp("photos")
    names = [*(f"cloned/{label}" for label in ("ant", "bee", "wasp", "snail")), *(f"own/{i}" for i in range(7))]
    for number, (name, photo) in enumerate(itertools.product(names, range(2))):
        (folder / name).mkdir(parents=True, exist_ok=True)
        to_pil_image(images(1, seed=number)[0].sigmoid()).save(folder / name / f"{photo}.png")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Options that name the model which ``saved_clone`` was made for."""
    return ["--model", "mobilenetv2_035", *named("model", "mobilenet", tmp_path_factory.mktemp("model"))]
