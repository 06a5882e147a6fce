"""Samples of streams: even, bounded in number and in bytes, without loss."""

import io
import logging

import numpy as np
import pytest
import torch
from PIL import Image

from pnc_hub.cloning.images import streams
from pnc_hub.cloning.images.streams import Streamed


def noise(mode="RGB", side=16):
    values = np.random.RandomState(0).randint(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def numbers(kept):
    return [int(kept[index][0]) for index in range(len(kept))]


def test_of_ten_thousand_images_no_more_than_the_bound_is_ever_kept(monkeypatch):
    most = 0
    offer = streams._Reservoirs.offer

    def counting(self, image, label):
        nonlocal most
        offer(self, image, label)
        most = max(most, sum(map(len, self.images.values())))

    monkeypatch.setattr(streams, "MAX_STREAMED", 50)
    monkeypatch.setattr(streams._Reservoirs, "offer", counting)
    kept = Streamed(((torch.tensor(float(number)), number % 4) for number in range(10_000)), seed=0)
    assert (len(kept), kept.seen, most) == (200, 10_000, 200)
    assert all(number % 4 == label for number, label in zip(numbers(kept), kept.targets, strict=True))


def test_the_whole_stream_is_sampled_evenly(monkeypatch):
    monkeypatch.setattr(streams, "MAX_STREAMED", 1000)
    found = numbers(Streamed(((torch.tensor(float(number)), 0) for number in range(10_000)), seed=0))
    assert len(set(found)) == 1000
    assert np.histogram(found, 10, (0, 10_000))[0] == pytest.approx([100] * 10, abs=35)


def test_large_images_are_kept_in_smaller_numbers(monkeypatch):
    monkeypatch.setattr(streams, "MAX_STREAMED", 100)
    monkeypatch.setattr(streams, "MAX_BYTES", 100 * 1000)
    kept = Streamed(
        ((torch.full((250,), float(number)), number % 4) for number in range(4000)), seed=0
    )  # 1000 bytes each
    assert [kept.targets.count(label) for label in range(4)] == [25] * 4
    found = [int(kept[index][0][0]) for index in range(100)]
    assert np.histogram(found, 4, (0, 4000))[0] == pytest.approx([25] * 4, abs=15)


def test_a_short_stream_is_kept_whole_and_in_order():
    kept = Streamed([(torch.tensor(float(number)), number % 2) for number in range(10)], seed=0)
    assert numbers(kept) == [0, 2, 4, 6, 8, 1, 3, 5, 7, 9]


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "1", "P"])
def test_pictures_are_kept_without_loss(mode):
    image = noise(mode)
    found = Streamed([(image, 3)], seed=0)[0]
    assert found[1] == 3
    assert found[0].mode == mode
    assert found[0].convert("RGB").tobytes() == image.convert("RGB").tobytes()


def test_what_png_does_not_know_is_kept_in_colour():
    buffer = io.BytesIO()
    noise().convert("CMYK").save(buffer, "JPEG")
    assert Streamed([(Image.open(buffer), 0)], seed=0)[0][0].mode == "RGB"


def test_a_view_does_not_keep_what_it_is_a_view_of():
    batch = torch.zeros(1000, 3)
    image, _ = Streamed([(batch[0], 0)], seed=0)[0]
    assert image.untyped_storage().nbytes() == 12


def test_how_many_were_drawn_is_told(monkeypatch, caplog):
    monkeypatch.setattr(streams, "MAX_STREAMED", 3)
    with caplog.at_level(logging.WARNING):
        Streamed([(torch.zeros(1), number % 2) for number in range(6)], seed=0)
        assert not caplog.records
        Streamed([(torch.zeros(1), number % 2) for number in range(9)], seed=0)
    assert "6 of the stream's 9 images were drawn: at most 3 of each of 2 classes" in caplog.text
