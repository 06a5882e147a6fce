"""Precision, memory layout, grad modes and default settings of the process: the clone follows the model."""

import copy
from contextlib import contextmanager

import pytest
import torch
from common import images
from torch.testing import assert_close

import pnc_hub
from attachment.conditions.cases import assert_answers, everywhere, join, once_each, pair, restored

HALF = {"rtol": 0.1, "atol": 0.1}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("when", ["before", "after"])
@everywhere
def test_other_dtypes(family, at, dtype, when):
    """The clone follows a model that is converted before or after attaching."""
    joined = join(family, at)
    model, plain, batch = joined.model, joined.plain.to(dtype), images().to(dtype)
    if when == "after":
        model.to(dtype)
    else:
        model = copy.deepcopy(plain)
        pnc_hub.attach(model, joined.attachment.clone)
    with restored(plain, batch), torch.no_grad():
        assert_answers(model(batch), plain(batch), joined.together, **({} if dtype == torch.float64 else HALF))
        pnc_hub.detach(model)
        assert torch.equal(model(batch), plain(batch))


@everywhere
def test_autocast(family, at):
    joined = join(family, at)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert_answers(joined.model(images()), joined.plain(images()), joined.together, **HALF)
    with torch.no_grad():
        assert torch.equal(joined.model(images()), joined.together)


@once_each
def test_attaching_under_autocast(family, at):
    model, clones = pair(family, at)
    joined = join(family, at)
    with torch.autocast("cpu", torch.bfloat16):
        model = copy.deepcopy(model)
        pnc_hub.attach(model, clones[0])
    assert torch.equal(model(images()), joined.together)


@everywhere
def test_images_that_are_channels_last(family, at):
    joined = join(family, at)
    batch = images().to(memory_format=torch.channels_last)
    with torch.no_grad():
        assert_answers(joined.model(batch), joined.plain(batch), joined.together)


@pytest.mark.parametrize("at", ["interior", "input"])
def test_models_that_are_channels_last(at):
    joined = join("resnet", at)
    joined.model.to(memory_format=torch.channels_last)
    joined.plain.to(memory_format=torch.channels_last)
    batch = images().to(memory_format=torch.channels_last)
    with torch.no_grad():
        assert_answers(joined.model(batch), joined.plain(batch), joined.together)
        assert_answers(joined.model(images()), joined.plain(images()), joined.together)


@everywhere
def test_images_that_are_views(family, at):
    joined = join(family, at)
    batch = images().repeat_interleave(2, 3)[..., ::2]
    assert not batch.is_contiguous()
    with torch.no_grad():
        assert_answers(joined.model(batch), joined.plain(batch), joined.together)


@everywhere
def test_inference_mode_and_back(family, at):
    """Attached and first called in inference mode; gradients afterwards."""
    model, clones = pair(family, at)
    model = copy.deepcopy(model)
    joined = join(family, at)
    with torch.inference_mode():
        pnc_hub.attach(model, clones[0])
        assert torch.equal(model(images()), joined.together)
    batch = images().requires_grad_()
    model(batch).sum().backward()
    assert batch.grad.isfinite().all()
    assert batch.grad.abs().sum() > 0


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


SETTINGS = {
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "meta": lambda: torch.device("meta"),
}


@pytest.mark.parametrize("setting", SETTINGS)
@once_each
def test_a_process_with_other_defaults_attaches_the_same(family, at, setting, tmp_path):
    """A default dtype or device is for the caller's new tensors, not for the clone's."""
    joined = join(family, at)
    folder = joined.attachment.clone.save_pretrained(tmp_path / "clone")
    pnc_hub.detach(joined.model)
    with restored(joined.model):
        with SETTINGS[setting]():
            pnc_hub.attach(joined.model, folder)
        assert torch.equal(joined.model(images()), joined.together)


@pytest.mark.parametrize("setting", SETTINGS)
@once_each
def test_a_process_with_other_defaults_answers_the_same(family, at, setting):
    """The clone is built again for float64 images while the defaults are others."""
    joined = join(family, at)
    model, batch = joined.model.double(), images().double()
    with SETTINGS[setting](), torch.no_grad():
        found = model(batch)
    assert_close(found.float(), joined.together, rtol=1e-4, atol=1e-4)


@once_each
def test_deterministic_algorithms(family, at):
    joined = join(family, at)
    torch.use_deterministic_algorithms(True)
    try:
        batch = images().requires_grad_()
        output = joined.model(batch)
        output.sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(output.detach(), joined.together)


@once_each
def test_numbers_that_are_none(family, at):
    """An image of NaN spoils its own row and no other."""
    joined = join(family, at)
    batch = images()
    batch[1] = float("nan")
    with torch.no_grad():
        found = joined.model(batch)
    assert_close(found[[0, 2, 3]], joined.together[[0, 2, 3]])
    assert not found[1].isfinite().any()
