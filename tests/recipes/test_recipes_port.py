"""The recipe that ports one module to several architectures: what a row says, and that it is not measured again."""

import pytest

import pnc_hub
from pnc_hub.cli import demo
from recipes.architectures import families, port
from recipes.frame import training


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


def test_a_row_of_each_way_is_kept_and_not_measured_again(clone, tmp_path, monkeypatch, capsys):
    ways = {"learned": clone, "input": port.universal(clone)}
    rows = [port.row(held, 0, "ConvNeXt", way, 0, 1.0) for way, held in ways.items()]
    inside, at_input = rows
    assert (inside["insertion"], at_input["insertion"]) == ("stages.1", "input")
    assert inside["module_bytes"] == at_input["module_bytes"] > at_input["adapter_bytes"] > inside["adapter_bytes"]
    monkeypatch.setattr(port, "rows_of", lambda seed, epochs: rows)
    command = ["--seeds", "0", "--json", str(tmp_path / "port.json")]
    assert port.main(command) == rows
    assert len(capsys.readouterr().out.splitlines()) == 2 + len(rows)
    monkeypatch.setattr(port, "rows_of", None)
    assert port.main(command) == rows
