"""Models that are given by name: what comes with them, and what cannot be loaded."""

import json

import pytest
import timm
from common import tiny_model
from timm.models._hub import save_for_hf

from pnc_hub.cloning.named import named_arguments, named_model
from pnc_hub.errors import SourceError, TargetError


@pytest.fixture
def folder(tmp_path):
    model = tiny_model("mobilenet")
    save_for_hf(model, str(tmp_path / "saved"), model_args={"pad_type": "same"}, safe_serialization=True)
    return tmp_path / "saved"


def test_arguments_stand_beside_the_weights(folder):
    assert named_arguments(f"local-dir:{folder}")["pad_type"] == "same"
    assert "num_classes" not in named_arguments(f"local-dir:{folder}")
    assert named_arguments("resnet18.a1_in1k") == {}


def test_a_folder_does_not_say_where_its_weights_are_on_the_hub(folder):
    config = json.loads((folder / "config.json").read_text())
    config.setdefault("pretrained_cfg", {})["hf_hub_id"] = "timm/other"
    (folder / "config.json").write_text(json.dumps(config))
    loaded, hub_id, _ = named_model(f"local-dir:{folder}", None, None)
    assert hub_id is None
    assert type(loaded) is timm.models.EfficientNet
    assert named_model(f"local-dir:{folder}", "mine/own", None)[1] == "mine/own"


@pytest.mark.parametrize("damage", ["config.json", "model.safetensors"])
def test_what_can_not_be_loaded_is_a_typed_error(folder, damage):
    (folder / damage).write_text("{}")
    with pytest.raises(SourceError, match="timm cannot make 'local-dir:"):
        named_model(f"local-dir:{folder}", None, None)
    with pytest.raises(TargetError, match="timm cannot make 'local-dir:"):
        named_model(f"local-dir:{folder}", None, None, TargetError)


def test_a_configuration_that_is_not_there(tmp_path):
    with pytest.raises(SourceError, match="configuration of 'local-dir:"):
        named_arguments(f"local-dir:{tmp_path}")
