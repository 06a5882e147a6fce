"""Which models count as the target that an adapter was made for, and which do not."""

import copy

import accelerate
import pytest
import torch
from common import FAMILIES, tiny_model

from pnc_hub.errors import TargetError
from pnc_hub.models.fingerprint import DTYPES, fingerprint, matches, state_digest
from pnc_hub.models.skeleton import Skeleton


@pytest.fixture(params=FAMILIES)
def known(request):
    """A model, its trunk up to a point in the middle, and the fingerprint of that."""
    model = tiny_model(request.param)
    names = list(Skeleton(model).points)
    trunk = Skeleton(model).trunk_names(names[len(names) // 2])
    return model, trunk, fingerprint(model, trunk)


def changed(model, name):
    """The same model but for the smallest possible change of one weight."""
    other = copy.deepcopy(model)
    weight = dict(other.named_parameters())[name].data.view(-1)
    weight[0] = torch.nextafter(weight[0], weight[0] + 1)
    return other


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_copies_in_any_dtype_match(known, dtype):
    model, trunk, expected = known
    assert matches(copy.deepcopy(model).to(dtype), trunk, expected)
    assert len(set(expected.values())) == len(DTYPES)


def test_copies_of_other_layout_match(known):
    model, trunk, expected = known
    other = copy.deepcopy(model).to(memory_format=torch.channels_last)
    assert matches(other, trunk, expected)
    assert fingerprint(other) == fingerprint(model)


def test_the_head_may_change_and_the_trunk_may_not(known):
    model, trunk, expected = known
    names = [name for name, _ in model.named_parameters()]
    head = [name for name in names if model.get_submodule(name.rpartition(".")[0]) is model.get_classifier()]
    assert matches(changed(model, head[0]), trunk, expected)
    assert not matches(changed(model, names[0]), trunk, expected)
    assert fingerprint(changed(model, head[0])) != fingerprint(model)
    other = copy.deepcopy(model)
    other.reset_classifier(3)
    assert matches(other, trunk, expected)


def test_running_statistics_count_and_counters_do_not():
    model = tiny_model("resnet")
    trunk = Skeleton(model).trunk_names("layer2.0")
    expected, before = fingerprint(model, trunk), state_digest(model)
    model.bn1.num_batches_tracked += 1
    assert matches(model, trunk, expected)
    assert state_digest(model) != before
    model.bn1.running_mean[0] += 1e-3
    assert not matches(model, trunk, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_mixed_and_other_dtypes_do_not_match(known, dtype):
    model, trunk, expected = known
    next(model.parameters()).data = next(model.parameters()).data.to(dtype)
    assert not matches(model, trunk, expected)


def test_models_without_weights_do_not_match(known):
    model, trunk, expected = known
    assert not matches(model.to("meta"), trunk, expected)


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_accelerate_has_offloaded_is_read_where_it_is(known, tmp_path, same, dtype):
    model, trunk, expected = known
    if not same:
        next(model.parameters()).data.view(-1)[0] += 1
    cpu, disk = copy.deepcopy(model).to(dtype), copy.deepcopy(model).to(dtype)
    accelerate.cpu_offload(cpu, execution_device="cpu")
    accelerate.disk_offload(disk, tmp_path, execution_device="cpu")
    for offloaded in (cpu, disk):
        parameters = [*map(id, offloaded.parameters())]
        assert all(parameter.is_meta for parameter in offloaded.parameters())
        assert matches(offloaded, trunk, expected) == same
        assert [*map(id, offloaded.parameters())] == parameters


def test_blocks_that_accelerate_loads_as_a_whole():
    model = tiny_model("resnet")
    trunk = Skeleton(model).trunk_names("layer2.0")
    expected = fingerprint(model, trunk)
    accelerate.cpu_offload(model, execution_device="cpu", preload_module_classes=["BasicBlock"])
    assert matches(model, trunk, expected)


class Strange(torch.Tensor):
    """Any subclass: quantised, sharded, fake."""


@pytest.mark.parametrize(
    "strange",
    [
        lambda weight: torch.nn.Parameter(weight.as_subclass(Strange), False),
        lambda weight: torch.nn.Parameter(weight.to_sparse(), False),
        lambda weight: torch.nn.Parameter(torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8), False),
        lambda weight: torch.nn.UninitializedParameter(),
    ],
    ids=["subclass", "sparse", "quantised", "uninitialised"],
)
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_weights_that_are_no_plain_tensors_do_not_match(strange):
    model = tiny_model("resnet")
    trunk = Skeleton(model).trunk_names("layer2.0")
    expected = fingerprint(model, trunk)
    model.conv1.weight = strange(model.conv1.weight.detach())
    assert not matches(model, trunk, expected)
    with pytest.raises(TargetError, match=r"'conv1\.weight' is a .*plain"):
        fingerprint(model)


def test_shared_weights_count_under_every_name():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    separate = fingerprint(copy.deepcopy(model), ["1"])
    model[0].weight.data = model[1].weight.data.clone()
    model[1].weight = model[0].weight
    assert fingerprint(model, ["1"]) == separate
    assert fingerprint(model, ["1.weight", "1.bias"]) == separate
    assert fingerprint(model) != separate


def test_compared_with_many_each_weight_is_hashed_once(known):
    model, trunk, expected = known
    digests = {}
    assert matches(model, trunk, expected, digests)
    before = dict(digests)
    assert before.keys() == {name for name in model.state_dict() if name in before}
    for name in before:  # what is known is not looked at again
        digests[name] = b"another"
    assert not matches(model, trunk, expected, digests)
    assert matches(model, list(trunk)[:-1], fingerprint(model, list(trunk)[:-1]), before)


def test_half_precision_is_lost_for_good():
    model = tiny_model("vit")
    trunk = Skeleton(model).trunk_names("blocks.1")
    expected = fingerprint(model, trunk)
    assert not matches(model.half().float(), trunk, expected)


def test_a_fingerprint_does_not_depend_on_mode_or_gradients(known):
    model, trunk, expected = known
    assert fingerprint(model.train().requires_grad_(False), trunk) == expected


def test_names_and_shapes_count():
    names = ("weight", "bias")
    zeros = {name: torch.nn.Parameter(torch.zeros(4)) for name in names}
    models = [torch.nn.Module() for _ in range(3)]
    for model, entries in zip(models, [{"weight": 4}, {"bias": 4}, {"weight": (2, 2)}], strict=True):
        for name, shape in entries.items():
            model.register_parameter(name, torch.nn.Parameter(zeros[name].detach().reshape(shape)))
    assert len({state_digest(model) for model in models}) == 3


@pytest.mark.parametrize("persistent", [True, False])
def test_the_state_digest_sees_every_buffer(persistent):
    model = torch.nn.Linear(2, 2)
    model.register_buffer("table", torch.zeros(3), persistent=persistent)
    before = state_digest(model)
    model.table[1] = 1
    assert state_digest(model) != before
