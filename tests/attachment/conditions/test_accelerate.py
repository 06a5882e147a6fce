"""accelerate: dispatched and offloaded models, prepared models, and its hooks on modules, before and after attaching."""

import copy

import battery
import pytest
import torch
from accelerate import Accelerator, cpu_offload, disk_offload, dispatch_model
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module, remove_hook_from_submodules
from accelerate.state import AcceleratorState
from common import images
from torch import nn
from torch.testing import assert_close

import pnc_hub
from attachment.conditions.cases import assert_answers, join, once_each, pair, restored
from pnc_hub.errors import ProbeError

HALF = {"rtol": 0.1, "atol": 0.1}
WHEN = pytest.mark.parametrize("when", ["before", "after"])


def half_on_disk(model, folder):
    """The first half of its parts in memory, the second in files."""
    parts = [name for name, _ in model.named_children()]
    places = {name: "disk" if 2 * place > len(parts) else "cpu" for place, name in enumerate(parts)}
    places.update({name: "cpu" for name, _ in model.named_parameters(recurse=False)})
    dispatch_model(model, places, offload_dir=folder)


OFFLOADS = {
    "cpu": lambda model, folder: cpu_offload(model),
    "cpu and buffers": lambda model, folder: cpu_offload(model, offload_buffers=True),
    "disk": lambda model, folder: disk_offload(model, folder),
    "dispatched": half_on_disk,
    "dispatched to one place": lambda model, folder: dispatch_model(model, {"": "cpu"}),
    "dispatched with hooks": lambda model, folder: dispatch_model(model, {"": "cpu"}, force_hooks=True),
}

QUICK = ("cpu", "dispatched")


@WHEN
@pytest.mark.parametrize(
    "offload",
    [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in OFFLOADS if name not in QUICK)],
)
@once_each
def test_offloaded_models(family, at, offload, when, tmp_path):
    """Weights that come when their module runs and go again: "before" is attached to a model that has been offloaded."""
    joined = join(family, at)
    clone, model = joined.attachment.clone, joined.model
    if when == "before":
        model = copy.deepcopy(joined.plain)
        OFFLOADS[offload](model, tmp_path)
        attachment = pnc_hub.attach(model, clone)
        assert attachment.insertion == joined.attachment.insertion
    else:
        OFFLOADS[offload](model, tmp_path)
    with torch.no_grad():
        assert_answers(model(images()), joined.alone, joined.together)
        assert_answers(model(images()), joined.alone, joined.together)
        pnc_hub.detach(model)
        assert torch.equal(model(images()), joined.alone)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert model.num_classes == joined.plain.num_classes


@once_each
def test_offloading_that_ends_while_attached(family, at):
    joined = join(family, at)
    cpu_offload(joined.model)
    with torch.no_grad():
        joined.model(images())
        remove_hook_from_submodules(joined.model)
        assert_answers(joined.model(images()), joined.alone, joined.together)
        pnc_hub.detach(joined.model)
        assert torch.equal(joined.model(images()), joined.alone)
    assert battery.state_digest(joined.model) == battery.state_digest(joined.plain)


@pytest.fixture
def accelerator():
    """Makes one; the state that all of a process share is forgotten afterwards."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield lambda **options: Accelerator(cpu=True, **options)
    AcceleratorState._reset_state(reset_partial_state=True)


@WHEN
@pytest.mark.parametrize("precision", ["no", "bf16"])
@once_each
def test_prepared_models(family, at, precision, when, accelerator):
    """One process; with bf16 the model's own forward runs under autocast and its hooks do not."""
    joined = join(family, at)
    machine = accelerator(mixed_precision=precision)
    plain = machine.prepare(copy.deepcopy(joined.plain))
    model = machine.prepare(joined.model if when == "after" else copy.deepcopy(joined.plain))
    if when == "before":
        pnc_hub.attach(model, joined.attachment.clone)
    with torch.no_grad():
        alone = plain(images())
        assert_answers(model(images()), alone, joined.together, **(HALF if precision == "bf16" else {}))
        unwrapped = machine.unwrap_model(model, keep_fp32_wrapper=False)
        assert_answers(unwrapped(images()), joined.alone, joined.together)
        pnc_hub.detach(unwrapped)
        assert torch.equal(unwrapped(images()), joined.alone)


@pytest.mark.parametrize("precision", ["no", "bf16"])
@once_each
def test_a_prepared_training_step(family, at, precision, accelerator):
    joined = join(family, at)
    machine = accelerator(mixed_precision=precision)
    optimizer = torch.optim.SGD(joined.model.parameters(), lr=0.1)
    model, optimizer = machine.prepare(joined.model.train(), optimizer)
    with machine.accumulate(model):
        loss = nn.functional.cross_entropy(model(images()), torch.tensor([0, 3, 8, 9]))
        machine.backward(loss)
        machine.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    trained = machine.unwrap_model(model, keep_fp32_wrapper=False).eval()
    assert list(machine.get_state_dict(model)) == list(joined.plain.state_dict())
    with torch.no_grad():
        together = trained(images())
        pnc_hub.detach(trained)
        assert torch.equal(trained(images()), together[:, : trained.num_classes])
    assert battery.state_digest(trained) != battery.state_digest(joined.plain)


class Doubling(ModelHook):
    """Doubles what its module returns, and counts."""

    def __init__(self):
        self.calls = 0

    def post_forward(self, module, output):
        self.calls += 1
        return output * 2


@WHEN
@pytest.mark.parametrize("where", ["root", "insertion point"])
@once_each
def test_hooks_of_accelerate(family, at, where, when):
    """They exchange ``forward`` as clones do: what came last sees what the other returns."""
    model, clones = pair(family, at)
    model, hook = copy.deepcopy(model), Doubling()
    name = "" if where == "root" or at == "input" else join(family, at).attachment.insertion
    hooked = model.get_submodule(name)
    attachment = pnc_hub.attach(model, clones[0]) if when == "after" else None
    add_hook_to_module(hooked, hook)
    attachment = attachment or pnc_hub.attach(model, clones[0])
    plain = copy.deepcopy(model)
    pnc_hub.detach(plain)
    with torch.no_grad():
        alone, together = plain(images()), model(images())
        assert hook.calls == 1
        assert torch.equal(together[:, : plain.num_classes], alone)
        own = pair(family, at)[0]
        doubles_the_clone = hooked is model and when == "after"
        expected = battery.direct(own if doubles_the_clone else plain, clones[0], images(), attachment.insertion)
        assert_close(together[:, plain.num_classes :], expected * (1 + doubles_the_clone))
        remove_hook_from_module(hooked)
        with restored(own):
            assert torch.equal(model(images())[:, : own.num_classes], own(images()))
        pnc_hub.detach(model)
        assert torch.equal(model(images()), own(images()))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


ORDERS = [
    "attach add detach remove",
    "attach add remove detach",
    "add attach detach remove",
    "add attach remove detach",
]


@pytest.mark.parametrize("where", ["root", "insertion point"])
@pytest.mark.parametrize("order", ORDERS)
@once_each
def test_clones_and_hooks_of_accelerate_come_and_go_in_any_order(family, at, order, where):
    model, clones = pair(family, at)
    own, model = model, copy.deepcopy(model)
    name = "" if where == "root" or at == "input" else join(family, at).attachment.insertion
    hooked, before = model.get_submodule(name), battery.snapshot(model)
    steps = {
        "attach": lambda: pnc_hub.attach(model, clones[0]),
        "detach": lambda: pnc_hub.detach(model),
        "add": lambda: add_hook_to_module(hooked, ModelHook()),
        "remove": lambda: remove_hook_from_module(hooked),
    }
    attached = False
    with torch.no_grad():
        for step in order.split():
            steps[step]()
            attached = (attached or step == "attach") and step != "detach"
            found = model(images())
            assert torch.equal(found[:, :7], own(images()))
            assert found.shape == (4, 10 if attached else 7)
            assert "_hf_hook" not in vars(hooked) or step != "remove"
    after = battery.snapshot(model)
    vars(hooked).pop("forward", None)  # accelerate leaves it there, unwrapped
    assert after | {"attributes": {name: list(vars(module)) for name, module in model.named_modules()}} == before


@once_each
def test_detaching_while_a_prepared_model_wraps_its_forward(family, at, accelerator):
    joined = join(family, at)
    machine = accelerator(mixed_precision="bf16")
    prepared = machine.prepare(joined.model)
    plain = machine.prepare(joined.plain)
    with torch.no_grad():
        assert prepared(images()).shape == joined.together.shape
        pnc_hub.detach(joined.model)
        assert torch.equal(prepared(images()), plain(images()))
        assert torch.equal(machine.unwrap_model(prepared, keep_fp32_wrapper=False)(images()), joined.alone)


class WithoutSteps(nn.Module):
    """A classifier that is run as a whole alone, so only its ``forward`` can be answered for."""

    def __init__(self, body):
        super().__init__()
        self.body, self.num_classes, self.pretrained_cfg = body, body.num_classes, body.pretrained_cfg

    def forward(self, x):
        return self.body(x)


@pytest.mark.filterwarnings("ignore:.*attached at the input")
def test_a_hook_that_is_removed_takes_the_clone_along_where_there_are_no_steps_and_verify_says_so():
    body, clones = pair("resnet", "input")
    model = WithoutSteps(copy.deepcopy(body)).eval()
    add_hook_to_module(model, ModelHook())
    with torch.no_grad(), pnc_hub.attach(model, clones[0]) as attachment:
        assert model(images()).shape == (4, 10)
        assert attachment.verify() == 0
        remove_hook_from_module(model)
        assert model(images()).shape == (4, 7)
        with pytest.raises(ProbeError, match="does not carry the clone's logits"):
            attachment.verify()
    assert torch.equal(model(images()), body(images()))
