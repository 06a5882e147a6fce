"""Modules built back from a configuration and its tensors."""

import pytest
import torch
from common import images, tiny_clone, tiny_model
from hostile.harness import change

import pnc_hub
from pnc_hub import Clone
from pnc_hub.errors import MalformedArtifactError
from pnc_hub.models.insertion import empty


@pytest.mark.parametrize("kernel", [1, 3])
def test_an_adapter_of_any_width_comes_back_as_it_was(tmp_path, target, kernel):
    made = tiny_clone(tiny_model("resnet"), target, kernel=kernel, universal=False)
    read = Clone.from_pretrained(made.save_pretrained(tmp_path / "clone"))
    (adapter,) = read.config.adapters
    assert adapter.kernel == kernel
    feature = empty(adapter.insertion, batch=2) + 0.5
    for found, expected in zip(
        *(clone.build(adapter, read.config.preprocess)[0](feature) for clone in (made, read)), strict=True
    ):
        assert torch.equal(found, expected)
    with torch.no_grad(), pnc_hub.attach(target, read) as attachment:
        assert target(images()).shape == (4, 10)
        attachment.verify()


def test_a_kernel_that_the_weights_do_not_have(tmp_path, target):
    folder = tiny_clone(tiny_model("resnet"), target, kernel=3, universal=False).save_pretrained(tmp_path / "clone")
    change(folder, "adapters/0/kernel", 5)
    with pytest.raises(MalformedArtifactError, match=r"adapter\.map\.weight"):
        pnc_hub.attach(target, folder)
