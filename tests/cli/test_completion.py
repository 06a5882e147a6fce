"""Names of models without importing timm."""

import timm

from pnc_hub.cli.completion import model_names, models


def test_nearly_every_model_is_found():
    known = {*timm.list_models(), *timm.list_pretrained()}
    assert len(known & model_names()) > 0.97 * len(known)


def test_names_with_weights_are_offered_for_a_chosen_architecture():
    assert "resnet50" in [item.value for item in models(None, None, "resnet50")]
    assert not [item.value for item in models(None, None, "resnet50") if "." in item.value]
    assert {item.value for item in models(None, None, "resnet50.a1")} >= {"resnet50.a1_in1k", "resnet50.a1h_in1k"}
