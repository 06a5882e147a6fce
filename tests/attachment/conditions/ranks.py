"""What each of two processes does in ``test_distributed``: scenarios that return what the test then looks at."""

import copy
import os

import battery
import torch
from accelerate import Accelerator
from common import images
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

import pnc_hub
from attachment.conditions.cases import join

LABELS = torch.tensor([0, 3, 8, 9])


def run(rank: int, store: str, cases: list[tuple[str, str]], folder: str) -> None:
    """Every scenario for every case; what they return goes to ``folder/<rank>.pt``."""
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), GLOO_SOCKET_IFNAME="lo")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="1")  # accelerate asks for them; the store is a file
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    try:
        found = {(scenario.__name__, *case): attempt(scenario, case, rank) for scenario in SCENARIOS for case in cases}
        torch.save(found, f"{folder}/{rank}.pt")
        distributed.barrier()
    finally:
        distributed.destroy_process_group()


def attempt(scenario, case: tuple[str, str], rank: int) -> dict:
    """What the scenario returns, or the error that it ends with: both ranks come to the same end."""
    try:
        return scenario(join(*case), rank)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def step(wrapped: nn.Module, model: nn.Module, rank: int) -> dict:
    """One training step on this rank's half of the batch; then the clone is detached."""
    (attachment,) = pnc_hub.attachments(model)
    clone = attachment.clone
    before = {name: value.clone() for name, value in clone.tensors["model.safetensors"].items()}
    with torch.no_grad():
        together = wrapped(images())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    half = slice(2 * rank, 2 * rank + 2)
    nn.functional.cross_entropy(wrapped(images()[half]), LABELS[half]).backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    optimizer.step()
    with torch.no_grad():
        stepped = wrapped(images())
        pnc_hub.detach(model)
        alone = wrapped(images())
    return {
        "together": together,
        "gradients": gradients,
        "stepped": stepped,
        "alone": alone,
        "digest": battery.state_digest(model),
        "frozen": all(torch.equal(value, before[name]) for name, value in clone.tensors["model.safetensors"].items()),
        "hooks": sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()),
        "num_classes": model.num_classes,
    }


def attached_then_wrapped(joined, rank):
    return step(DistributedDataParallel(joined.model), joined.model, rank)


def wrapped_then_attached_to_the_module(joined, rank):
    wrapped = DistributedDataParallel(copy.deepcopy(joined.plain))
    pnc_hub.attach(wrapped.module, joined.attachment.clone)
    return step(wrapped, wrapped.module, rank)


def wrapped_then_attached_to_the_wrapper(joined, rank):
    wrapped = DistributedDataParallel(copy.deepcopy(joined.plain))
    attachment = pnc_hub.attach(wrapped, joined.attachment.clone)
    assert pnc_hub.attachments(wrapped) == pnc_hub.attachments(wrapped.module) == (attachment,)
    found = step(wrapped, wrapped.module, rank)
    assert pnc_hub.attachments(wrapped) == ()
    return found


def prepared_after_attaching(joined, rank):
    return step(Accelerator(cpu=True).prepare(joined.model), joined.model, rank)


def prepared_before_attaching(joined, rank):
    machine = Accelerator(cpu=True)
    wrapped = machine.prepare(copy.deepcopy(joined.plain))
    assert isinstance(wrapped, DistributedDataParallel)
    model = machine.unwrap_model(wrapped)
    pnc_hub.attach(model, joined.attachment.clone)
    return step(wrapped, model, rank)


def detached_from_one_process_alone(joined, rank):
    """Clones are each process's own affair: the target's gradients are what is synchronised."""
    wrapped = DistributedDataParallel(joined.model)
    if rank == 0:
        pnc_hub.detach(joined.model)
    wrapped(images())[:, :7].sum().backward()
    with torch.no_grad():
        output = wrapped(images())
    pnc_hub.detach(joined.model)
    gradients = {name: parameter.grad.clone() for name, parameter in joined.model.named_parameters()}
    return {"together": output, "gradients": gradients, "num_classes": joined.model.num_classes}


SCENARIOS = [
    attached_then_wrapped,
    wrapped_then_attached_to_the_module,
    wrapped_then_attached_to_the_wrapper,
    prepared_after_attaching,
    prepared_before_attaching,
    detached_from_one_process_alone,
]
