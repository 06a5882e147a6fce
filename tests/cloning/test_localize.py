"""Pruning to what the cloned classes need."""

from itertools import pairwise

import pytest
import torch
from common import images, source_args, tiny_model
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from cloning.learning import few
from pnc_hub.cloning.networks import Networks
from pnc_hub.cloning.pruning.localize import changes, local_loss, prune
from pnc_hub.cloning.pruning.units import units_of
from pnc_hub.errors import SourceError
from pnc_hub.models.architecture import Architecture
from pnc_hub.models.cost import parameters
from pnc_hub.models.insertion import InsertionPoint
from pnc_hub.models.tensors import put_tensors, shrink, tensors_of

CPU = torch.device("cpu")
# a cut in the middle, inside a stage where the family has one: the residual stream is then the tail's fixed input
CUTS = {
    "resnet": "layer3.0",
    "mobilenet": "blocks.4.1",
    "convnext": "stages.1",
    "vit": "blocks.1",
    "swin": "layers.1",
    "regnet": "s2",
}


def parts(family, classes=(1, 2, 4), seed=0):
    """(source, networks, cut, tail, head, local set)."""
    source = tiny_model(family, seed=seed)
    networks = Networks(source, source, list(classes), CPU)
    cut = networks.cuts()[CUTS[family]]
    batch = images(16, seed=1)
    labels = torch.arange(16) % (len(classes) + 1)
    feature = networks.teach(batch, [cut.name]).features[cut.name]
    reject = (0.1 * torch.randn(1, networks.width), torch.zeros(1))
    return (
        source,
        networks,
        cut,
        networks.tail(cut.name),
        networks.head_rows(reject),
        [(feature, labels, torch.ones(16))],
    )


@pytest.mark.parametrize("family", few("mobilenet", "swin"))
def test_a_pruned_tail_is_smaller_runs_and_can_be_rebuilt_from_its_changes(family):
    source, networks, cut, tail, head, local_set = parts(family)
    size, fixed = parameters(tail) + parameters(head), sum(p.numel() for p in tail.parameters())
    largest = int(0.8 * size)
    before = {name: tensor.clone() for name, tensor in tensors_of(tail).items()}
    pruned, rows = prune(tail, head, cut, local_set, largest)
    assert 0 < parameters(pruned) + parameters(rows) <= largest
    assert parameters(tail) == fixed
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors_of(tail).items())
    feature = local_set[0][0]
    expected = rows(pruned(feature))
    assert expected.shape == (16, 4)

    branch = nn.ModuleDict({"tail": pruned, "head": rows})
    shapes, attributes = changes(branch, nn.ModuleDict({"tail": networks.tail(cut.name), "head": head}))
    assert shapes
    arguments = {**source_args(family), "num_classes": 7}
    rebuilt = Architecture(source.pretrained_cfg["architecture"], arguments, networks.source.preprocess.input_size)
    with torch.device("meta"):
        again = nn.ModuleDict({"tail": rebuilt.tail(cut.name), "head": nn.Linear(rebuilt.features, 4)})
    shrink(again, shapes, attributes)
    put_tensors(again, tensors_of(branch))
    again.eval()
    assert torch.equal(again["head"](again["tail"](feature)), expected)


@pytest.mark.parametrize("family", few("resnet"))
def test_less_is_stored_and_computed(family, tmp_path):
    _, _, cut, tail, head, local_set = parts(family)
    size = parameters(tail) + parameters(head)
    found = []
    for share in (1.0, 0.8, 0.6):
        both = nn.Sequential(*prune(tail, head, cut, local_set, int(share * size)))
        with FlopCounterMode(display=False) as counter:
            both(local_set[0][0])
        save_file(both.state_dict(), tmp_path / "tail.safetensors")
        found.append((parameters(both), counter.get_total_flops(), (tmp_path / "tail.safetensors").stat().st_size))
    for larger, smaller in pairwise(found):
        assert all(less < more for less, more in zip(smaller, larger, strict=True)), found


@pytest.mark.parametrize("family", few("vit", among=("vit", "swin")))
def test_attention_loses_heads_and_mlps_lose_widths(family):
    _, _, cut, tail, head, local_set = parts(family)
    size = parameters(tail) + parameters(head)
    pruned, _ = prune(tail, head, cut, local_set, int(0.55 * size))
    before, after = ([m for m in t.modules() if hasattr(m, "qkv")] for t in (tail, pruned))
    assert sum(layer.num_heads for layer in after) < sum(layer.num_heads for layer in before)
    assert all(layer.qkv.out_features == 3 * layer.proj.in_features for layer in after)
    assert all(
        layer.proj.in_features // layer.num_heads == old.proj.in_features // old.num_heads
        for layer, old in zip(after, before, strict=True)
    )
    before, after = ([m.fc1.out_features for m in t.modules() if hasattr(m, "fc1")] for t in (tail, pruned))
    assert sum(after) < sum(before)


@pytest.mark.parametrize(
    "family", ["resnet", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mobilenet", "convnext", "regnet"))]
)
def test_the_penultimate_feature_shrinks(family):
    _, _, cut, tail, head, local_set = parts(family)
    pruned, rows = prune(tail, head, cut, local_set, int(0.3 * (parameters(tail) + parameters(head))))
    assert rows.in_features < head.in_features
    assert pruned(local_set[0][0]).shape == (16, rows.in_features)
    assert rows.out_features == head.out_features


def test_rows_beyond_the_classes_reject_together():
    logits, labels = torch.randn(5, 6), torch.tensor([0, 1, 2, 3, 5])
    found = local_loss(3)(logits, labels)
    log_p = logits.log_softmax(1)
    expected = torch.cat([-log_p[:3].diagonal(), -log_p[3:, 3:].logsumexp(1)])
    assert_close(found, expected)
    assert_close(local_loss(6)(logits, labels), F.cross_entropy(logits, labels, reduction="none"))


def test_a_failing_graph_is_told(monkeypatch):
    def broken(*_):
        raise KeyError("no such node")

    monkeypatch.setattr("pnc_hub.cloning.pruning.localize.units_of", broken)
    _, _, cut, tail, head, local_set = parts("resnet")
    with pytest.raises(SourceError, match="cannot be pruned") as caught:
        prune(tail, head, cut, local_set, 1000)
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_graph_that_takes_other_channels_is_found_out(monkeypatch):
    """Then widths of MLPs and heads alone are pruned; here the first channels go, whichever are chosen."""
    _, _, cut, tail, head, local_set = parts("mobilenet")
    simple = []

    def misled(whole, example):
        units = units_of(whole, example)
        for group in units.groups:
            remove = group.remove
            group.remove = lambda gone, remove=remove: remove(list(range(len(gone))))
        simple.append(any(group.simple for group in units.groups))
        return units

    monkeypatch.setattr("pnc_hub.cloning.pruning.localize.units_of", misled)
    with pytest.raises(SourceError) as caught:
        prune(tail, head, cut, local_set, int(0.9 * (parameters(tail) + parameters(head))))
    assert simple
    assert isinstance(caught.value.__cause__, (RuntimeError, ValueError))


def test_what_is_small_enough_stays_whole():
    _, _, cut, tail, head, local_set = parts("resnet")
    size = parameters(tail) + parameters(head)
    pruned, rows = prune(tail, head, cut, local_set, size)
    assert parameters(pruned) + parameters(rows) == size
    assert torch.equal(rows(pruned(local_set[0][0])), head(tail(local_set[0][0])))
    assert changes(pruned, tail) == ({}, {})


@pytest.mark.parametrize("largest", [0, 40])
def test_the_impossible_is_refused(largest):
    _, _, cut, tail, head, local_set = parts("resnet")
    with pytest.raises(SourceError, match=r"cannot be pruned to .* allow more with keep=, or cut later"):
        prune(tail, head, cut, local_set, largest)


def test_the_channels_that_the_classes_need_stay():
    """The head reads 4 of 16 hidden channels, which lie apart; the other 12 lead nowhere."""
    needed = [2, 5, 11, 12]
    torch.manual_seed(0)
    tail = nn.Sequential(
        nn.Conv2d(6, 16, 1), nn.ReLU(), nn.Conv2d(16, 8, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    tail[2].weight.data[:, [c for c in range(16) if c not in needed]] = 0
    head = nn.Linear(8, 3)
    cut = InsertionPoint("here", 6, 8, "NCHW", (4, 4))
    feature, labels = torch.randn(64, 6, 4, 4), torch.arange(64) % 3
    wanted = {tuple(tail[0].weight[c].flatten().tolist()) for c in needed}
    expected = head(tail(feature))
    pruned, rows = prune(tail, head, cut, [(feature, labels, torch.ones(64))], 130)
    kept = {tuple(row.flatten().tolist()) for row in pruned[0].weight}
    assert len(kept) < 16
    assert wanted <= kept
    assert_close(rows(pruned(feature)), expected)


def test_only_images_with_weight_decide():
    """Two halves of the channels serve one class each; images of weight 0 have no say in which half stays."""
    torch.manual_seed(0)
    tail = nn.Sequential(
        nn.Conv2d(2, 8, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 8), nn.ReLU()
    )
    with torch.no_grad():
        tail[0].weight.zero_()
        tail[0].weight[:4, 0], tail[0].weight[4:, 1] = 1.0, 1.0
        tail[0].weight += 0.1 * torch.rand(8, 2, 1, 1) * (tail[0].weight > 0)
        tail[0].bias.zero_()
        tail[4].weight.copy_(torch.eye(8))
        tail[4].bias.zero_()
    head = nn.Linear(8, 3)
    feature = F.one_hot(torch.arange(32) % 2, 2).float()[:, :, None, None].expand(32, 2, 4, 4).contiguous()
    labels = torch.arange(32) % 2
    cut = InsertionPoint("here", 2, 8, "NCHW", (4, 4))
    size = parameters(tail) + parameters(head)
    for side in (0, 1):
        pruned, _ = prune(tail, head, cut, [(feature, labels, (labels == side).float())], size - 20)
        left = (pruned[0].weight[:, side].flatten() > 0).sum()
        assert left == 4
        assert parameters(pruned) < parameters(tail)


def test_no_more_goes_than_has_to_where_all_is_worth_the_same():
    _, _, cut, tail, head, local_set = parts("resnet")
    size = parameters(tail) + parameters(head)

    def equal(whole, units, *_):
        return [torch.zeros(group.count) for group in units.groups]

    pruned, rows = prune(tail, head, cut, local_set, int(0.7 * size), importance=equal)
    assert 0.66 * size < parameters(pruned) + parameters(rows) <= 0.7 * size
