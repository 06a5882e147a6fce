"""Photos on disk, found and brought to a model."""

import pytest
import timm
import torch
from common import images, tiny_model
from PIL import Image
from torchvision.transforms.functional import to_pil_image

from pnc_hub.cloning.images.files import BATCH, ImageFiles, files_among
from pnc_hub.errors import DataError


@pytest.fixture
def picture():
    """64 pixels high, 48 wide, dark above and bright below."""
    image = Image.new("RGB", (48, 64), "black")
    image.paste("white", (0, 32, 48, 64))
    return image


def test_files_and_folders_in_order(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("b.PNG", "deep/a.jpg", "deep/c.webp", "notes.txt", "._b.png", "z.dat"):
        (tmp_path / name).touch()
    assert files_among([tmp_path / "z.dat", tmp_path]) == [
        tmp_path / name for name in ("z.dat", "b.PNG", "deep/a.jpg", "deep/c.webp")
    ]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no photo in .*empty"):
        files_among([tmp_path / "b.PNG", tmp_path / "empty"])


def test_a_photo_is_what_timm_makes_of_it(tmp_path):
    model = tiny_model("mobilenet")
    to_pil_image(images(1)[0].sigmoid()).save(tmp_path / "a.png")
    ((paths, batch),) = ImageFiles([tmp_path / "a.png"], model)
    mean, std = (torch.tensor(model.pretrained_cfg[name])[:, None, None] for name in ("mean", "std"))
    assert paths == [tmp_path / "a.png"]
    assert batch.shape == (1, 3, 32, 32)
    assert (batch[0] * std + mean).mean().item() == pytest.approx(images(1)[0].sigmoid().mean().item(), abs=0.02)
    assert (batch[0] * std + mean).min() > -0.1


def test_the_size_is_that_which_the_model_was_built_for(tmp_path, picture):
    picture.save(tmp_path / "a.png")
    model = timm.create_model("vit_tiny_patch16_224", img_size=48, num_classes=7)
    ((_, batch),) = ImageFiles([tmp_path / "a.png"], model)
    assert model(batch).shape == (1, 7)


def test_a_photo_taken_with_the_camera_on_its_side_is_turned(tmp_path, picture):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by a quarter to the right to see it upright
    picture.rotate(90, expand=True).save(tmp_path / "turned.png", exif=exif)
    picture.save(tmp_path / "upright.png")
    ((_, (turned, upright)),) = ImageFiles([tmp_path / "turned.png", tmp_path / "upright.png"], tiny_model("mobilenet"))
    assert torch.equal(turned, upright)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "I;16"])
def test_every_kind_of_picture(tmp_path, picture, mode):
    picture.convert("L").convert(mode).save(tmp_path / f"a.{'jpg' if mode == 'CMYK' else 'png'}")
    ((_, batch),) = ImageFiles(files_among([tmp_path]), tiny_model("mobilenet"))
    assert batch.shape == (1, 3, 32, 32)


def test_one_channel_for_a_model_of_one_channel(tmp_path, picture):
    picture.save(tmp_path / "a.png")
    model = timm.create_model("resnet18", in_chans=1, num_classes=7)
    ((_, batch),) = ImageFiles([tmp_path / "a.png"], model)
    assert batch.shape == (1, 1, 224, 224)
    assert model(batch).shape == (1, 7)


def test_a_damaged_photo_does_not_keep_others_from_being_read(tmp_path, picture):
    files = [tmp_path / f"{index}.png" for index in range(BATCH + 2)]
    for path in files:
        picture.save(path)
    files[0].write_bytes(files[0].read_bytes()[:60])
    files[3].write_text("no picture")
    read = ImageFiles(files, tiny_model("mobilenet"))
    assert [len(paths) for paths, _ in read] == [BATCH - 2, 2]
    assert set(read.unreadable) == {files[0], files[3]}
    assert "cannot identify image file" in read.unreadable[files[3]]
