"""Attached models that leave Python: torch.export, ONNX and tracing keep the clone's logits, also after it is detached."""

import io

import pytest
import torch
from common import images
from torch.testing import assert_close

import pnc_hub
from attachment.conditions.cases import everywhere, join

BATCH = torch.export.Dim("batch", min=1, max=64)


def expected(joined, count):
    """What the attached model answers to ``count`` images."""
    with torch.no_grad():
        answer = joined.model(images(count))
    assert answer.shape == (count, joined.together.shape[1])
    return answer


@everywhere
def test_export(family, at):
    joined = join(family, at)
    exported = torch.export.export(joined.model, (images(),)).module()
    pnc_hub.detach(joined.model)
    assert torch.equal(joined.model(images()), joined.alone)
    assert_close(exported(images()), joined.together)


@pytest.mark.slow
def test_export_through_the_tracer_of_bytecode():
    joined = join("vit", "interior")
    exported = torch.export.export(joined.model, (images(),), strict=True).module()
    assert_close(exported(images()), joined.together)


@pytest.mark.parametrize(
    ("family", "at"), [("resnet", "interior"), pytest.param("vit", "input", marks=pytest.mark.slow)]
)
def test_export_with_any_batch(family, at):
    joined = join(family, at)
    answers = {count: expected(joined, count) for count in (2, 7)}
    program = torch.export.export(joined.model, (images(),), dynamic_shapes={"x": {0: BATCH}})
    file = io.BytesIO()
    torch.export.save(program, file)
    pnc_hub.detach(joined.model)
    exported = torch.export.load(io.BytesIO(file.getvalue())).module()
    for count, answer in answers.items():
        assert_close(exported(images(count)), answer)


@pytest.mark.parametrize(
    ("family", "at"), [("resnet", "input"), pytest.param("vit", "interior", marks=pytest.mark.slow)]
)
@pytest.mark.filterwarnings("ignore")
def test_onnx(family, at):
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    runtime = pytest.importorskip("onnxruntime")
    joined = join(family, at)
    answers = {count: expected(joined, count) for count in (2, 7)}
    program = torch.onnx.export(joined.model, (images(),), dynamo=True, dynamic_shapes={"x": {0: BATCH}}, verbose=False)
    pnc_hub.detach(joined.model)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = runtime.InferenceSession(program.model_proto.SerializeToString(), options)
    for count, answer in answers.items():
        (found,) = session.run(None, {session.get_inputs()[0].name: images(count).numpy()})
        assert_close(torch.from_numpy(found), answer, rtol=1e-3, atol=1e-3)


@everywhere
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_a_trace_of_one_image_answers_several(family, at):
    joined = join(family, at)
    answers = {count: expected(joined, count) for count in (1, 2, 7)}
    traced = torch.jit.trace(joined.model, (images(1),))
    file = io.BytesIO()
    torch.jit.save(traced, file)
    pnc_hub.detach(joined.model)
    traced = torch.jit.load(io.BytesIO(file.getvalue()))
    for count, answer in answers.items():
        assert_close(traced(images(count)), answer)
    assert torch.equal(joined.model(images()), joined.alone)
