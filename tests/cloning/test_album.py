"""The album keeps few, small photos, each where it belongs."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from pnc_hub.cloning.measuring import album as module
from pnc_hub.cloning.measuring.album import MOST, MOST_OF_A_CLASS, SIDE, Album, class_names_of
from pnc_hub.models.preprocess import Preprocess

RGB = Preprocess((3, 32, 32), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), "bilinear", 1.0)
NEW = ("ant", "bee")


def logits(answers, before=0):
    """Of three old and two new classes; the target alone answers ``before``."""
    found = torch.zeros(len(answers), 5)
    found[:, before] = 1.0
    for row, answer in enumerate(answers):
        found[row, answer] += 3.0
    return found


def see(album, labels, answers, new, images=None):
    images = torch.zeros(len(labels), 3, 32, 32) if images is None else images
    album.see(images, torch.tensor(labels), logits(answers), 3, new)


def test_each_photo_is_told_with_what_was_and_what_is():
    album = Album(RGB, ["cat", "dog", "elk"], NEW)
    see(album, [0, 0, 1], [3, 4, 0], new=True)
    see(album, [2, 1, -1], [4, 1, 3], new=False)
    found = [(one.kind, one.shows, one.before[0], one.after[0]) for one in album.photos()]
    assert found == [
        ("recognised", "ant", "cat", "ant"),
        ("mixed", "ant", "cat", "bee"),
        ("missed", "bee", "cat", "cat"),
        ("diverted", "elk", "cat", "bee"),
        ("diverted", None, "cat", "ant"),
    ]
    first = album.photos()[0]
    scores = logits([3])[0]
    assert first.before[1] == pytest.approx(float(scores[:3].softmax(0)[0]))
    assert first.after[1] == pytest.approx(float(scores.softmax(0)[3]))


def test_classes_without_a_name_have_their_number():
    album = Album(RGB, None, NEW)
    see(album, [1], [0], new=True)
    assert album.photos()[0].before[0] == "class 0"


def test_there_are_few_and_not_all_of_one_class():
    album = Album(RGB, None, [str(label) for label in range(2)])
    for _ in range(50):
        see(album, [0, 1] * 8, [3, 4] * 8, new=True)
    assert [photo.shows for photo in album.photos()].count("0") == MOST_OF_A_CLASS
    many = Album(RGB, None, [str(label) for label in range(50)])
    labels = torch.arange(50)
    scores = torch.zeros(50, 53)
    scores[labels, labels + 3] = 5.0
    many.see(torch.zeros(50, 3, 32, 32), labels, scores, 3, True)
    assert len(many.photos()) == MOST


def test_a_small_picture_is_what_the_target_was_shown():
    pixels = torch.randint(0, 256, (1, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (RGB.mean, RGB.std))
    album = Album(RGB, None, NEW)
    see(album, [0], [3], new=True, images=(pixels / 255 - mean) / std)
    shown = np.asarray(Image.open(io.BytesIO(album.photos()[0].picture)))
    assert (shown == pixels[0].permute(1, 2, 0).numpy()).all()


@pytest.mark.parametrize(("channels", "side"), [(1, 32), (3, 384), (4, 200)])
def test_pictures_are_small_whatever_comes_in(channels, side):
    preprocess = Preprocess((channels, side, side), (0.5,) * channels, (0.2,) * channels, "bilinear", 1.0)
    album = Album(preprocess, None, NEW)
    noise = torch.randn(1, channels, side, side // 2, generator=torch.Generator().manual_seed(0)) * 9
    see(album, [0], [3], new=True, images=noise)
    photo = album.photos()[0]
    picture = Image.open(io.BytesIO(photo.picture))
    assert max(picture.size) <= SIDE
    assert len(photo.picture) < 20_000
    assert photo.uri.startswith(f"data:image/{picture.format.lower()};base64,")


def test_several_processes_are_put_together_in_the_order_of_one(monkeypatch):
    albums = [Album(RGB, None, NEW), Album(RGB, None, NEW)]
    for turn, album in enumerate(albums):
        see(album, [turn], [3 + turn], new=True)
        see(album, [turn], [3 + turn], new=True)
    monkeypatch.setattr(module, "gather_object", lambda own: [one for album in albums for one in album._photos])
    assert [photo.shows for photo in albums[0].photos()] == ["ant", "bee", "ant", "bee"]
    assert albums[0].photos() == albums[1].photos()


class TestNames:
    def test_a_target_knows_its_own(self):
        target = torch.nn.Identity()
        target.num_classes, target.pretrained_cfg = 2, {"label_names": ("n01", "n02")}
        assert class_names_of(target, None) == ["n01", "n02"]

    def test_imagenet_has_names_for_people(self):
        target = torch.nn.Identity()
        target.num_classes, target.pretrained_cfg = 1000, {"tag": "a1_in1k"}
        assert class_names_of(target, None)[14] == "indigo bunting"

    @pytest.mark.parametrize(("folders", "names"), [(["a", "b"], ["a", "b"]), (["a", "b", "c"], None), (None, None)])
    def test_otherwise_its_folders_are_asked_if_there_is_one_for_each(self, folders, names):
        target, data = torch.nn.Identity(), TensorDataset(torch.zeros(1))
        target.num_classes, data.classes = 2, folders
        assert class_names_of(target, data) == names
