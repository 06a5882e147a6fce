"""The recipe that ports one module to several architectures: what a row says, and that it is not measured again."""

import pytest

import pnc_hub
from pnc_hub.cli import demo
from recipes.architectures import families, port
from recipes.frame import training
from recipes.frame.rows import Rows


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A clone between two networks of the recipe that have hardly been trained."""
    monkeypatch.setattr(training, "_cache", tmp_path / "cache")
    families.network.cache_clear()
    monkeypatch.setattr(families, "FAMILIES", {name: (*entry[:3], 0) for name, entry in families.FAMILIES.items()})
    yield pnc_hub.clone(
        families.network("ResNet", port.NEW, 0),
        families.network("ConvNeXt", port.OLD, 0),
        list(range(5)),
        demo.Digits(port.NEW, 0, train=True),
        target_data=demo.Digits(port.OLD, 0, train=True),
        source_args=families.FAMILIES["ResNet"][1],
        insertion="stages.1",
        cut="layer2.1",
        epochs=0,
        progress=False,
    )
    families.network.cache_clear()


@pytest.mark.slow
def test_a_row_of_each_way_is_kept_and_not_measured_again(clone, tmp_path, monkeypatch):
    ways = {"learned": clone, "input": port.universal(clone)}
    made = [port.row(held, "ConvNeXt", way, 0, 1.0) for way, held in ways.items()]
    inside, at_input = made
    assert (inside["insertion"], at_input["insertion"]) == ("stages.1", "input")
    assert inside["module_bytes"] == at_input["module_bytes"] > at_input["adapter_bytes"] > inside["adapter_bytes"]
    monkeypatch.setattr(port, "measured", lambda seed, epochs: made)
    assert port.rows_of(Rows(tmp_path / "port.json"), 0, 1) == made
    monkeypatch.setattr(port, "measured", None)
    assert port.rows_of(Rows(tmp_path / "port.json"), 0, 1) == made
    assert len(port.table(made).splitlines()) == 2 + len(made)


@pytest.mark.slow
def test_the_row_of_a_port_is_of_the_adapter_that_it_made(clone):
    other, shown = families.network("ViT", port.OLD, 0), demo.Digits(port.NEW, 0, train=True)
    ported = pnc_hub.port(clone, other, shown, progress=False)
    assert port.row(ported, "ViT", "port", 0, 1.0)["insertion"] in dict(other.named_modules())
