"""Two processes with DistributedDataParallel on gloo, and the wrappers that hooks do not reach through."""

import copy

import battery
import pytest
import torch
from common import images
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import distribute_module
from torch.testing import assert_close

import pnc_hub
from attachment.conditions import ranks
from attachment.conditions.cases import join, once_each, pair
from pnc_hub.errors import TargetError

CASES = [("vit", "interior"), ("resnet", "input")]


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What each of two processes found, by (scenario, family, insertion)."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(ranks.run, (str(folder / "store"), CASES, str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def both(answers, scenario, case):
    found = [answer[scenario, *case] for answer in answers]
    errors = [answer["error"] for answer in found if "error" in answer]
    assert errors == []
    return found


def gradients_of_one_process(family, at):
    model = join(family, at).model
    nn.functional.cross_entropy(model(images()), ranks.LABELS).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


STEPPING = [scenario.__name__ for scenario in ranks.SCENARIOS if "alone" not in scenario.__name__]


@pytest.mark.slow
@pytest.mark.parametrize("scenario", STEPPING)
@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_two_processes_train_as_one(answers, scenario, case):
    """Answers are those of one process, gradients those of the whole batch, and what is left is the stepped target."""
    first, second = both(answers, scenario, case)
    joined = join(*case)
    assert_close(first["together"], joined.together)
    expected = gradients_of_one_process(*case)
    assert first["gradients"].keys() == expected.keys()
    for name, gradient in expected.items():
        assert_close(first["gradients"][name], gradient, rtol=1e-3, atol=1e-5)
        assert torch.equal(first["gradients"][name], second["gradients"][name])
    for found in (first, second):
        assert found["frozen"]
        assert torch.equal(found["stepped"][:, : found["num_classes"]], found["alone"])
        assert found["stepped"].shape == joined.together.shape
        assert (found["hooks"], found["num_classes"]) == (0, joined.plain.num_classes)
    assert torch.equal(first["stepped"], second["stepped"])
    assert first["digest"] == second["digest"] != battery.state_digest(joined.plain)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_a_clone_in_one_of_two_processes(answers, case):
    first, second = both(answers, "detached_from_one_process_alone", case)
    joined = join(*case)
    assert_close(first["together"], joined.alone)
    assert_close(second["together"], joined.together)
    for name, gradient in first["gradients"].items():
        assert torch.equal(gradient, second["gradients"][name])


@pytest.fixture
def alone(monkeypatch):
    """A process group of this process."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


@once_each
def test_the_wrapper_of_one_process(family, at, alone):
    """As ``test_two_processes_train_as_one`` for ``attach(wrapper, clone)``, without a second process."""
    joined = join(family, at)
    wrapped = nn.parallel.DistributedDataParallel(copy.deepcopy(joined.plain))
    attachment = pnc_hub.attach(wrapped, joined.attachment.clone)
    assert pnc_hub.attachments(wrapped) == pnc_hub.attachments(wrapped.module) == (attachment,)
    with torch.no_grad():
        assert torch.equal(wrapped(images()), joined.together)
        pnc_hub.detach(wrapped)
        assert torch.equal(wrapped(images()), joined.alone)


def refused(model, clone):
    before = [(name, len(module._forward_hooks), len(vars(module))) for name, module in model.named_modules()]
    with pytest.raises(TargetError, match=r"attach to the plain model|shard"):
        pnc_hub.attach(model, clone)
    assert [(n, len(m._forward_hooks), len(vars(m))) for n, m in model.named_modules()] == before


@once_each
def test_data_parallel_is_refused(family, at):
    model, clones = pair(family, at)
    refused(nn.DataParallel(copy.deepcopy(model)), clones[0])


SHARDS = {
    "FullyShardedDataParallel": lambda model, mesh: FullyShardedDataParallel(model, device_id=torch.device("cpu")),
    "fully_shard": lambda model, mesh: fully_shard(model, mesh=mesh),
    "DTensor": lambda model, mesh: distribute_module(model, mesh),
}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("shard", SHARDS)
@once_each
def test_sharded_weights_are_refused(family, at, shard, alone):
    model, clones = pair(family, at)
    refused(SHARDS[shard](copy.deepcopy(model), alone), clones[0])
