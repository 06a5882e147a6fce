"""The battery on every tiny family: at interior points and at the input, with sources of the same and of other families."""

import copy
from functools import lru_cache

import battery
import pytest
import torch
from common import images, tiny_clone, tiny_model

import pnc_hub

CASES = [
    # target, source, whether at the input
    ("resnet", "vit", False),
    ("vit", "convnext", True),
    pytest.param("resnet", "resnet", False, marks=pytest.mark.slow),
    pytest.param("mobilenet", "vit", False, marks=pytest.mark.slow),
    pytest.param("convnext", "convnext", False, marks=pytest.mark.slow),
    pytest.param("vit", "vit", False, marks=pytest.mark.slow),
    pytest.param("swin", "resnet", False, marks=pytest.mark.slow),
    pytest.param("regnet", "swin", False, marks=pytest.mark.slow),
    pytest.param("resnet", "vit", True, marks=pytest.mark.slow),
    pytest.param("swin", "swin", True, marks=pytest.mark.slow),
    pytest.param("mobilenet", "mobilenet", True, marks=pytest.mark.slow),
    pytest.param("convnext", "regnet", True, marks=pytest.mark.slow),
    pytest.param("regnet", "resnet", True, marks=pytest.mark.slow),
]

pytestmark = pytest.mark.filterwarnings("ignore:.*it is attached at the input")


@pytest.fixture(autouse=True)
def _one_thread():
    """Models this small only wait for a second one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@lru_cache(maxsize=1)
def case(target: str, source: str, universal: bool):
    """A model and two clones for it; with ``universal``, clones that were made for a target with other weights."""
    model, teacher = tiny_model(target), tiny_model(source, seed=1)
    made_for = tiny_model(target, seed=2) if universal else model
    points = [point.name for point in pnc_hub.insertion_points(model)]
    clones = (
        tiny_clone(teacher, made_for, family=source),
        tiny_clone(teacher, made_for, family=source, labels=("fly", "moth"), rows=(4, 5), insertion=points[-2], seed=1),
    )
    return model, clones


# test_compile and test_threads ask the same of other models
ELSEWHERE = (battery.compiled_and_functional_calls_agree, battery.threads_share_a_model)


@pytest.mark.parametrize(
    "check",
    [pytest.param(check, marks=pytest.mark.slow) if check in ELSEWHERE else check for check in battery.CHECKS],
    ids=lambda check: check.__name__,
)
@pytest.mark.parametrize(("target", "source", "universal"), CASES)
def test_battery(target, source, universal, check):
    model, clones = case(target, source, universal)
    random = torch.get_rng_state()
    check(copy.deepcopy(model), clones, images())
    assert torch.equal(torch.get_rng_state(), random)
