"""Clones that are learned once for all tests; neither they nor their models may be changed."""

from collections.abc import Iterator

import pytest
from common import tiny_model
from torch import nn

from cloning.learning import learn
from pnc_hub.hub.clone import Clone
from pnc_hub.models.fingerprint import state_digest


@pytest.fixture(scope="session")
def models() -> Iterator[tuple[nn.Module, nn.Module]]:
    """(source, target) of ``refined`` and ``closed``."""
    pair = tiny_model("resnet", seed=1), tiny_model("convnext")
    before = [state_digest(model) for model in pair]
    yield pair
    assert [state_digest(model) for model in pair] == before


@pytest.fixture(scope="session")
def refined(models) -> Clone:
    """At a fixed place, with its whole tail, after one pass."""
    return learn(*models)


@pytest.fixture(scope="session")
def closed(models) -> Clone:
    """The same in closed form."""
    return learn(*models, epochs=0)
