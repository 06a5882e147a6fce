"""Tracing: what a model may look at while it runs, and what it may not."""

import threading

import pytest
import torch
from torch import nn

from pnc_hub.models.trace import BATCH, has_tensor, trace

SIZE = (3, 8, 8)


class Model(nn.Module):
    """A convolution and whatever a test puts behind it."""

    def __init__(self, then, **modules):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 2, 2)
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("table", torch.arange(4.0))
        self.modules_by_name = nn.ModuleDict(modules)
        self.then = then

    def forward(self, images, mask=None):
        if mask is not None:
            images = images * ~mask
        return self.then(self, self.conv(images))


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x):
        return self.inner(x), x.shape[1:3]


class Moody(nn.Module):
    """Returns a pair, and cannot be looked into."""

    def forward(self, x):
        if x.sum().numel() and x.shape[0] > 1:
            return x, x
        return x, x + 1


def traced_model(then, **modules):
    with torch.device("meta"):
        model = Model(then, **modules).eval().to("meta")
    return model, trace(model, SIZE)


def rows_of(graph):
    return [str(node.target) for node in graph.nodes if node.op == "call_module"]


FLOWS = {
    "unpacked sizes": lambda m, x: x.reshape(x.shape[0], *x.shape[1:2], -1).mean(-1),
    "a branch on a size": lambda m, x: x.mean((2, 3)) if x.shape[2] == 4 else x.undefined,
    "a loop over sizes": lambda m, x: sum(x[:, :, row] for row in range(x.shape[2])).mean(2),
    "the length of a tuple": lambda m, x: x.unbind(2)[len(x.unbind(2)) - 1].mean(2),
    "all items of a tuple": lambda m, x: torch.stack([row.mean(2) for row in x.unbind(2)]).sum(0),
    "a kind of tensor": lambda m, x: x.mean((2, 3)) if isinstance(x, torch.Tensor) else x.undefined,
    "a kind of list": lambda m, x: [x.undefined] if isinstance(x, (list, tuple)) else x.mean((2, 3)),
    "a number of axes": lambda m, x: x.mean((2, 3)) if x.ndim == x.dim() == 4 else x.undefined,
    "a buffer": lambda m, x: (x * (m.table[:2].repeat(2) + 1)[:, None, None]).mean((2, 3)),
    "a parameter": lambda m, x: (x * m.scale).mean((2, 3)),
    "a number of images": lambda m, x: x.new_ones(x.size(0), 1) * x.mean((2, 3)),
    "a size as a number": lambda m, x: x.mean((2, 3)) * float(int(x.shape[3])),
}


@pytest.mark.parametrize("flow", FLOWS)
def test_a_model_may_look_at(flow):
    torch.manual_seed(0)
    _, traced = traced_model(FLOWS[flow])
    model = Model(FLOWS[flow]).eval()
    again = torch.fx.GraphModule(model, traced.graph)
    for batch in (1, 2, 5):
        images = torch.randn(batch, *SIZE)
        assert torch.equal(again(images), model(images))


@pytest.mark.parametrize(
    "then",
    [
        lambda m, x: x if x.shape[0] > 1 else -x,
        lambda m, x: sum(x[image] for image in range(len(x))),
        lambda m, x: x.reshape(int(x.shape[0]), -1),
        lambda m, x: x.reshape(int(x.numel() // 64), -1),
        lambda m, x: x if x.device.type == "meta" else -x,
        lambda m, x: x if x.dtype == torch.float32 else -x,
        lambda m, x: x if x.sum() > 0 else -x,
    ],
)
def test_what_differs_between_passes_is_refused(then):
    with pytest.raises((torch.fx.proxy.TraceError, RuntimeError)):
        traced_model(then)


def test_modules_that_return_one_tensor_are_single_nodes_and_others_are_looked_into():
    def then(model, x):
        x, size = model.modules_by_name["pair"](x.permute(0, 2, 3, 1))
        return model.modules_by_name["one"](x.reshape(x.shape[0], *size, 4))

    _, traced = traced_model(then, pair=Pair(), one=nn.Sequential(Whole()))
    assert rows_of(traced.graph) == ["conv", "modules_by_name.pair.inner", "modules_by_name.one.0"]
    node = next(node for node in traced.graph.nodes if node.target == "modules_by_name.pair.inner")
    assert traced.values[node].shape == (BATCH, 4, 4, 4)


class Whole(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x):
        return self.inner(x)


def test_a_module_can_be_named_to_be_looked_into():
    with torch.device("meta"):
        model = Model(lambda m, x: m.modules_by_name["whole"](x.mean((2, 3))), whole=Whole())
    assert rows_of(trace(model, SIZE).graph) == ["conv", "modules_by_name.whole"]
    assert rows_of(trace(model, SIZE, ["modules_by_name.whole"]).graph) == ["conv", "modules_by_name.whole.inner"]


def test_a_module_that_can_not_be_looked_into_is_a_single_node():
    def then(model, x):
        first, second = model.modules_by_name["moody"](x)
        return (first + second * model.scale).mean((2, 3))

    _, traced = traced_model(then, moody=Moody())
    assert rows_of(traced.graph) == ["conv", "modules_by_name.moody"]
    traced.graph.lint()
    model = Model(then, moody=Moody())
    images = torch.randn(3, *SIZE)
    assert torch.equal(torch.fx.GraphModule(model, traced.graph)(images), model(images))


def test_modules_run_as_ever_after_a_trace_that_failed():
    call, attribute = nn.Module.__call__, nn.Module.__getattr__
    with pytest.raises(AttributeError):
        traced_model(lambda m, x: m.nothing_of_the_kind(x))
    assert (nn.Module.__call__, nn.Module.__getattr__) == (call, attribute)


def test_other_threads_run_and_trace_models_meanwhile():
    call = nn.Module.__call__
    torch.manual_seed(0)
    model, images = Model(FLOWS["a buffer"]).eval(), torch.randn(2, *SIZE)
    expected, wrong, done = model(images), [], threading.Event()

    def run():
        while not done.is_set():
            try:
                if not torch.equal(model(images), expected):
                    wrong.append("another answer")
            except Exception as error:  # whatever a half-patched torch raises
                wrong.append(repr(error))

    def trace_often():
        try:
            for _ in range(10):
                traced_model(FLOWS["a buffer"])
        except Exception as error:
            wrong.append(repr(error))

    runner = threading.Thread(target=run)
    tracers = [threading.Thread(target=trace_often) for _ in range(3)]
    for thread in (runner, *tracers):
        thread.start()
    for thread in tracers:
        thread.join()
    done.set()
    runner.join()
    assert wrong == []
    assert nn.Module.__call__ is call


def test_what_carries_features():
    tensor = torch.zeros(1)
    assert all(map(has_tensor, [tensor, [1, tensor], (None, [tensor]), {"a": tensor}]))
    assert not any(map(has_tensor, [None, 3, torch.Size([1]), [1, (2,)], {"a": 1}, torch.float32]))
