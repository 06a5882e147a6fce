"""torch.compile in every order: the compiled model answers as the eager one does, with the clone and without it."""

import copy

import pytest
import torch
from common import images, tiny_clone, tiny_model
from torch import nn
from torch._dynamo.utils import counters
from torch.testing import assert_close

import pnc_hub
from pnc_hub.models.insertion import INPUT


@pytest.fixture(autouse=True)
def _compiled_afresh():
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


@pytest.fixture(scope="module", params=["vit", pytest.param("resnet", marks=pytest.mark.slow)])
def pair(request):
    model = tiny_model(request.param)
    return model, tiny_clone(tiny_model("convnext", seed=1), model, family="convnext")


def in_place(model, **options):
    model.compile(**options)
    return model


WAYS = {"torch.compile": torch.compile, "model.compile": in_place}
FIRST_WAY = pytest.mark.parametrize("way", ["torch.compile", pytest.param("model.compile", marks=pytest.mark.slow)])


def eagerly(model, batch):
    with torch.compiler.set_stance("force_eager"):
        return model(batch)


@pytest.mark.parametrize(
    ("way", "called"),
    [
        ("torch.compile", True),
        pytest.param("model.compile", True, marks=pytest.mark.slow),
        pytest.param("torch.compile", False, marks=pytest.mark.slow),
        pytest.param("model.compile", False, marks=pytest.mark.slow),
    ],
)
def test_compiled_before_attaching(pair, way, called):
    model, clone = copy.deepcopy(pair[0]), pair[1]
    compiled = WAYS[way](model, backend="eager", fullgraph=True)
    alone = compiled(images()) if called else eagerly(model, images())
    attachment = pnc_hub.attach(model, clone)
    assert_close(compiled(images()), eagerly(model, images()))
    assert attachment.fired
    assert attachment.verify(compiled) == 0
    for guarded in (torch.no_grad(), torch.inference_mode()):
        with guarded:
            assert_close(compiled(images(3, seed=1)), eagerly(model, images(3, seed=1)))
    attachment.detach()
    assert_close(compiled(images()), alone)


def attached_before_compiling(model, clone, way, backend):
    alone = model(images())
    attachment = pnc_hub.attach(model, clone)
    together = model(images())
    compiled = WAYS[way](model, backend=backend, fullgraph=True)
    with torch.no_grad():
        assert_close(compiled(images()), together, rtol=1e-4, atol=1e-4)
    assert attachment.verify(compiled) == 0
    attachment.detach()
    with torch.no_grad():
        assert_close(compiled(images()), alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("way", "backend"),
    [("torch.compile", "eager"), *(pytest.param(way, "aot_eager", marks=pytest.mark.slow) for way in WAYS)],
)
def test_attached_before_compiling(pair, way, backend):
    attached_before_compiling(copy.deepcopy(pair[0]), pair[1], way, backend)


@pytest.mark.slow
def test_attached_before_compiling_with_inductor():
    model = tiny_model("resnet")
    clone = tiny_clone(tiny_model("convnext", seed=1), model, family="convnext")
    attached_before_compiling(model, clone, "torch.compile", "inductor")


@FIRST_WAY
def test_the_wrapper_itself_can_be_attached_to(pair, way):
    model, clone = copy.deepcopy(pair[0]), pair[1]
    compiled = WAYS[way](model, backend="eager")
    compiled(images())
    with pnc_hub.attach(compiled, clone) as attachment:
        assert pnc_hub.attachments(compiled) == pnc_hub.attachments(model) == (attachment,)
        assert_close(compiled(images()), eagerly(model, images()))
    assert compiled(images()).shape == eagerly(model, images()).shape


@FIRST_WAY
def test_coming_and_going_does_not_compile_again(pair, way, tmp_path):
    model, folder = copy.deepcopy(pair[0]), pair[1].save_pretrained(tmp_path / "clone")
    compiled = WAYS[way](model, backend="eager", fullgraph=True)
    with torch.no_grad():
        compiled(images())
        with pnc_hub.attach(model, folder):
            together = compiled(images())
        alone, graphs = compiled(images()), counters["stats"]["unique_graphs"]
        for _ in range(3):
            with pnc_hub.attach(model, folder) as attachment:
                assert_close(compiled(images()), together)
                assert attachment.fired
            assert_close(compiled(images()), alone)
    assert counters["stats"]["unique_graphs"] == graphs


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*attached at the input")
def test_clones_at_the_input_and_several_of_them(pair):
    model, clone = copy.deepcopy(pair[0]), pair[1]
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    compiled(images())
    stranger = tiny_clone(
        tiny_model("regnet", seed=2), tiny_model("mobilenet"), family="regnet", labels=("fly", "moth")
    )
    with pnc_hub.attach(model, clone) as first, pnc_hub.attach(model, stranger) as second:
        assert second.insertion == INPUT
        both = compiled(images())
        assert_close(both, eagerly(model, images()))
        with first.disabled():
            assert_close(compiled(images()), eagerly(model, images()))
        first.detach()
        assert_close(compiled(images()), eagerly(model, images()))
        assert compiled(images()).shape[1] == both.shape[1] - len(first.labels)


class Wrapped(nn.Module):
    """A classifier that is not timm's: it has no steps."""

    def __init__(self, body):
        super().__init__()
        self.body, self.num_classes = body, body.num_classes

    def forward(self, x):
        return self.body(x)


@pytest.mark.filterwarnings("ignore:.*attached at the input")
def test_a_model_without_steps_compiled_and_called_before():
    model = Wrapped(tiny_model("resnet")).eval()
    clone = tiny_clone(tiny_model("vit", seed=1), tiny_model("resnet", seed=3), family="vit")
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    alone = compiled(images())
    with pnc_hub.attach(model, clone):
        assert_close(compiled(images()), eagerly(model, images()))
        assert compiled(images()).shape == (4, 10)
    assert_close(compiled(images()), alone)


def test_a_function_that_calls_the_model(pair):
    model, clone = copy.deepcopy(pair[0]), pair[1]

    @torch.compile(backend="eager")
    def predict(batch):
        return model(batch).softmax(1)

    alone = predict(images())
    with pnc_hub.attach(model, clone):
        assert_close(predict(images()), eagerly(model, images()).softmax(1))
    assert_close(predict(images()), alone)


@pytest.mark.slow
def test_compiled_training_reaches_the_target_and_not_the_clone(pair):
    model, clone = copy.deepcopy(pair[0]), pair[1]
    pnc_hub.attach(model, clone)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    gradients = []
    for run in (model, compiled):
        model.zero_grad()
        run(images()).logsumexp(1).sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-4)
