"""Networks of the benchmarks: where a clone can be inserted, and weights from eight bits."""

import numpy as np
import pytest
import torch
from common import tiny_model

import pnc_hub
from pnc_hub.cloning.networks import Networks
from pnc_hub.cloning.package import source_config
from recipes.frame import networks, reading

RNG = np.random.RandomState(0)


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_every_block_is_an_insertion_point_and_a_clone_can_name_the_source(name):
    model = networks.build(name, 5, seed=1).eval()
    points = {point.name for point in pnc_hub.insertion_points(model)}
    blocks = {
        module_name
        for module_name, module in model.named_modules()
        if type(module).__name__ in ("BasicBlock", "InvertedResidual", "ConvNeXtStage", "Block")
    }
    assert len(blocks) >= 4
    assert blocks <= points
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 5)
    about = Networks(model, tiny_model("resnet"), [0, 1], torch.device("cpu"))
    described = source_config(model, networks.source_args(name), None, "apache-2.0", about)
    assert described.architecture == networks.NETWORKS[name][0]


def test_the_seed_draws_the_weights():
    first, again, other = (networks.build("resnet14", 5, seed).fc.weight for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_eight_bit_weights(tmp_path):
    model = networks._mobilenetv2(7)
    stored, expected = {}, {}
    for name, value in model.state_dict().items():
        if name.endswith("weight") and (value.dim() == 4 or name.startswith("classifier")):
            q = RNG.randint(0, 256, value.shape).astype(np.uint8)
            zero, scale = RNG.randint(0, 256, len(q)), RNG.rand(len(q)).astype(np.float32)
            stored |= {f"{name}.q": q, f"{name}.zero": zero, f"{name}.scale": scale}
            rows = zip(q.astype(np.float32), zero, scale, strict=True)
            expected[name] = np.stack([(row - np.float32(z)) * s for row, z, s in rows])
        elif name.endswith("bias"):
            stored[name] = expected[name] = RNG.rand(*value.shape).astype(np.float32)
    np.savez(tmp_path / "net.npz", **stored)
    loaded = networks.mobilenetv2_q8(tmp_path / "net.npz")
    state = loaded.state_dict()
    for name, value in expected.items():
        assert np.array_equal(state[name].numpy(), value), name
    feature = torch.randn(2, 32, 4, 4)
    only_bias = feature + loaded.bn1.bias[:, None, None]
    torch.testing.assert_close(loaded.bn1.eval()(feature), loaded.bn1.act(only_bias))
    kept = networks.mobilenetv2_q8(tmp_path / "net.npz", [6, 2])
    image = torch.randn(1, 3, 32, 32) / 1e3
    assert torch.equal(kept.classifier.bias, loaded.classifier.bias[[6, 2]])
    torch.testing.assert_close(kept.forward_features(image), loaded.forward_features(image), equal_nan=True)
    with pytest.raises(reading.MissingDataError, match=r"no weights at .*other\.npz"):
        networks.mobilenetv2_q8(tmp_path / "other.npz")
