"""Other ways in which a model is taken apart or exchanged: the clone's logits are kept, or an error says that they are not."""

import pytest
import torch
from common import images
from torch import fx, nn
from torch.fx.experimental.optimization import fuse
from torch.testing import assert_close

import pnc_hub
from attachment.conditions.cases import everywhere, join, once_each
from pnc_hub.errors import PncHubError

GRAPHS = {"traced": fx.symbolic_trace, "fused": fuse}


@pytest.mark.parametrize("graph", GRAPHS)
@everywhere
def test_symbolic_graphs(family, at, graph):
    """torch.fx reads the class's ``forward``, around the hooks of the root."""
    joined = join(family, at)
    with torch.no_grad():
        try:
            found = GRAPHS[graph](joined.model)(images())
        except PncHubError:
            return
        assert_close(found, joined.together, rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@once_each
def test_scripts(family, at):
    """torch.jit.script reads the source of what stands behind a method: it is kept from it, or the clone would be lost."""
    joined = join(family, at)
    with pytest.raises(AttributeError, match="with a clone attached cannot be scripted; trace or export it"):
        torch.jit.script(joined.model)
    with torch.no_grad():
        assert torch.equal(joined.model(images()), joined.together)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@once_each
def test_quantised_layers(family, at):
    """A copy whose linear layers are of eight bits; the clone's are not."""
    joined = join(family, at)
    quantised = torch.ao.quantization.quantize_dynamic(joined.model, {nn.Linear}, dtype=torch.qint8)
    with torch.no_grad():
        found = quantised(images())
        assert_close(found, joined.together, rtol=0.2, atol=0.2)
        pnc_hub.detach(quantised)
        assert torch.equal(quantised(images()), found[:, :7])
        assert torch.equal(joined.model(images()), joined.together)


@everywhere
def test_parts_of_larger_models(family, at):
    joined = join(family, at)
    larger = nn.Sequential(joined.model, nn.Softmax(1))
    with torch.no_grad():
        assert torch.equal(larger(images()), joined.together.softmax(1))
        larger.half().float().share_memory()
        assert larger(images()).shape == joined.together.shape
        pnc_hub.detach(joined.model)
        assert larger(images()).shape == joined.alone.shape


@everywhere
def test_one_model_in_two_places(family, at):
    """As in siamese networks: the same module called twice in one pass of a larger one."""
    joined = join(family, at)

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.left = self.right = joined.model

        def forward(self, x):
            return self.left(x) - self.right(x.flip(0))

    with torch.no_grad():
        found = Twice()(images())
    assert_close(found, joined.together - joined.together.flip(0), rtol=1e-4, atol=1e-4)
