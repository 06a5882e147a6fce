"""Image conventions of models, and images that are carried from one to another."""

import pytest
import timm
import torch
from common import FAMILIES, SIDE, images, tiny_model
from timm.data import resolve_data_config
from torch import nn
from torch.testing import assert_close

from pnc_hub.models.preprocess import Preprocess, Reprocess, input_size, resize

HALF = (0.5, 0.5, 0.5)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize("architecture", ["resnet18", "vit_base_patch16_224", "mobilenetv2_100", "inception_v4"])
def test_the_convention_is_the_one_timm_records(architecture):
    with torch.device("meta"):
        model = timm.create_model(architecture)
    found, expected = Preprocess.of(model), resolve_data_config(model=model)
    for name in ("input_size", "mean", "std", "interpolation", "crop_pct"):
        assert getattr(found, name) == expected[name]


@pytest.mark.parametrize("family", FAMILIES)
def test_tiny_models_take_the_images_they_were_built_for(family):
    model = tiny_model(family)
    assert Preprocess.of(model).input_size == (3, SIDE, SIDE)


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_other_numbers_of_channels_are_seen_in_the_first_layer(family, channels):
    name, arguments = FAMILIES[family]
    with torch.device("meta"):
        model = timm.create_model(name, in_chans=channels, **arguments)
    found = Preprocess.of(model)
    assert found.input_size[0] == channels
    assert len(found.mean) == len(found.std) == channels
    assert found.mean[0] == pytest.approx(sum(model.pretrained_cfg["mean"]) / 3)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_channels_are_counted_before_pixels_are_folded_into_them(channels):
    with torch.device("meta"):
        model = timm.create_model("tresnet_m", in_chans=channels)
    assert input_size(model) == (channels, 224, 224)


def test_a_model_that_records_nothing_gets_timms_defaults():
    assert Preprocess.of(nn.Linear(1, 1)) == Preprocess((3, 224, 224), *IMAGENET)
    assert input_size(nn.Linear(1, 1)) == (3, 224, 224)


def test_the_image_size_of_the_built_model_wins():
    with torch.device("meta"):
        model = timm.create_model("vit_tiny_patch16_224", img_size=(64, 96))
    assert input_size(model) == (3, 64, 96)


def test_the_same_picture_arrives_in_the_other_convention():
    picture = torch.rand(2, 3, 8, 8)
    mean, std = (torch.tensor(values)[:, None, None] for values in IMAGENET)
    change = Reprocess(Preprocess((3, 8, 8), *IMAGENET), Preprocess((3, 8, 8), HALF, HALF))
    assert_close(change((picture - mean) / std), (picture - 0.5) / 0.5)
    assert list(change.state_dict()) == []


def test_images_in_the_right_convention_are_passed_on():
    batch = images()
    given = Preprocess((3, SIDE, SIDE), *IMAGENET)
    assert Reprocess(given, given)(batch) is batch
    smaller = Reprocess(given, Preprocess((3, 8, 8), *IMAGENET))(batch)
    assert torch.equal(smaller, resize(batch, (8, 8)))


@pytest.mark.parametrize(("given", "wanted"), [(1, 3), (3, 1), (4, 3)])
def test_channels_become_grey(given, wanted):
    def convention(channels):
        return Preprocess((channels, 8, 8), (0.5,) * channels, (0.25,) * channels)

    picture = torch.rand(2, given, 8, 8)
    output = Reprocess(convention(given), convention(wanted))((picture - 0.5) / 0.25)
    assert output.shape == (2, wanted, 8, 8)
    assert_close(output, ((picture.mean(1, keepdim=True) - 0.5) / 0.25).expand(-1, wanted, -1, -1))


@pytest.mark.parametrize("size", [(4, 4), (16, 16), (4, 16), (8, 8), (3, 5)])
def test_resizing_keeps_flat_maps_flat(size):
    assert_close(resize(torch.full((1, 2, 8, 8), 3.0), size), torch.full((1, 2, *size), 3.0))


def test_shrinking_averages_and_growing_interpolates():
    maps = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert torch.equal(resize(maps, (2, 2)), maps.unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5)))
    assert torch.equal(resize(maps, (4, 4)), maps)
    grown = resize(maps, (8, 8))
    assert (grown.min(), grown.max()) == (0, 15)
    assert bool((grown.diff(dim=3) >= 0).all())
