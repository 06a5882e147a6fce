"""Names of classes."""

from unittest.mock import Mock

import pytest
import timm
import torch
from common import tiny_model

from pnc_hub.models import labels
from pnc_hub.models.labels import class_names, same_label


def test_recorded_names_are_used_only_for_as_many_classes():
    model = tiny_model("resnet", num_classes=2)
    assert class_names(model, 2) is None
    model.pretrained_cfg["label_names"] = ["cat", "dog"]
    assert class_names(model, 2) == [("cat",), ("dog",)]
    assert class_names(model, 3) is None


def test_imagenet_weights_have_the_names_of_their_synsets():
    with torch.device("meta"):
        model, other = timm.create_model("resnet50.a1_in1k"), timm.create_model("resnet50.a1_in1k", num_classes=10)
    assert "indigo bunting" in class_names(model, 1000)[14]
    assert class_names(other, 10) is None


def test_they_are_those_that_timm_gives(monkeypatch):
    read = labels._imagenet.__wrapped__()
    monkeypatch.setattr(labels, "_read_imagenet", Mock(side_effect=OSError))
    assert labels._imagenet.__wrapped__() == read
    assert len(read) == 1000


@pytest.mark.parametrize(("one", "other"), [("Heron", "heron"), ("ﬁnch", "finch"), ("STRASSE", "straße")])
def test_names_that_read_the_same(one, other):
    assert same_label(one) == same_label(other)


def test_names_that_differ():
    assert same_label("crane") != same_label("cranes")
