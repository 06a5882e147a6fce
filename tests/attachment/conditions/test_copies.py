"""Copies, files and weights of an attached model."""

import copy
import io
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from common import images

import pnc_hub
from attachment.conditions.cases import everywhere, join, once_each, pair


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda model: pickle.loads(pickle.dumps(model)), "save": saved}


@pytest.mark.parametrize("how", COPIES)
@everywhere
def test_a_copy_is_attached_and_independent(family, at, how):
    joined = join(family, at)
    twin = COPIES[how](joined.model)
    with torch.no_grad():
        pnc_hub.detach(joined.model)
        assert torch.equal(joined.model(images()), joined.alone)
        assert torch.equal(twin(images()), joined.together)
        second = pnc_hub.attach(twin, pair(family, at)[1][1])
        assert twin(images()).shape[1] == joined.together.shape[1] + len(second.labels)
        assert joined.model(images()).shape[1] == joined.model.num_classes
        pnc_hub.detach(twin)
        assert torch.equal(twin(images()), joined.alone)
    assert twin.num_classes == joined.model.num_classes == joined.alone.shape[1]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in twin.modules())


READ = """
import sys, torch
import pnc_hub
torch.set_num_threads(1)
with torch.no_grad():
    for model, batch, together, alone in torch.load(sys.argv[1], weights_only=False):
        torch.testing.assert_close(model(batch), together)
        pnc_hub.detach(model)
        torch.testing.assert_close(model(batch), alone)
"""


@pytest.mark.slow
def test_models_saved_in_one_process_are_read_in_another(tmp_path):
    cases = []
    for family, at in (("vit", "interior"), ("resnet", "input")):
        joined = join(family, at)
        cases.append((joined.model, images(), joined.together, joined.alone))
    torch.save(cases, tmp_path / "cases.pt")
    root = Path(pnc_hub.__file__).parent.parent
    subprocess.run([sys.executable, "-c", READ, str(tmp_path / "cases.pt")], check=True, cwd=root)


@everywhere
def test_the_state_is_the_targets(family, at):
    joined = join(family, at)
    state = joined.model.state_dict()
    assert list(state) == list(joined.plain.state_dict())
    other = {name: value * 1.1 if value.is_floating_point() else value for name, value in state.items()}
    joined.plain.load_state_dict(other, strict=True)
    for assign in (False, True):
        model = copy.deepcopy(joined.model)
        model.load_state_dict(copy.deepcopy(other), strict=True, assign=assign)
        with torch.no_grad():
            found = model(images())
            assert torch.equal(found[:, : joined.alone.shape[1]], joined.plain(images()))
            assert found.shape == joined.together.shape
            pnc_hub.detach(model)
            assert torch.equal(model(images()), joined.plain(images()))


@once_each
def test_a_state_with_other_names_is_refused_as_ever(family, at):
    joined = join(family, at)
    state = {**joined.model.state_dict(), "clone.weight": torch.zeros(1)}
    with pytest.raises(RuntimeError, match="Unexpected key"):
        joined.model.load_state_dict(state, strict=True)
    with torch.no_grad():
        assert torch.equal(joined.model(images()), joined.together)


@once_each
def test_weights_saved_from_an_attached_model_load_into_a_plain_one(family, at):
    joined = join(family, at)
    file = io.BytesIO()
    torch.save(joined.model.state_dict(), file)
    for parameter in joined.plain.parameters():
        parameter.data.zero_()
    joined.plain.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True), strict=True)
    with torch.no_grad():
        assert torch.equal(joined.plain(images()), joined.alone)


@everywhere
def test_a_model_that_lost_its_weights_and_got_them_back(family, at):
    joined = join(family, at)
    state = copy.deepcopy(joined.model.state_dict())
    model = joined.model.to("meta")
    assert model(images().to("meta")).shape == joined.together.shape
    model.load_state_dict(state, strict=True, assign=True)
    for name, buffer in joined.plain.named_buffers():  # those that no state holds
        if name not in state:
            owner, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(owner), attribute, buffer)
    with torch.no_grad():
        assert torch.equal(model(images()), joined.together)
        pnc_hub.detach(model)
        assert torch.equal(model(images()), joined.alone)
