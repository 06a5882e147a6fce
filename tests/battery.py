"""What every target must keep to when clones are attached to it.

Each check gets a fresh copy of a model, two clones that can be attached to it, and images for it. ``CHECKS`` lists all.
"""

import copy
import gc
import io
import itertools
import pickle
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import pnc_hub
from pnc_hub.errors import ImageError, ProbeError
from pnc_hub.hub.clone import Clone
from pnc_hub.models.fingerprint import state_digest
from pnc_hub.models.insertion import INPUT
from pnc_hub.models.preprocess import Preprocess


def run(model: nn.Module, clones: tuple[Clone, Clone], images: Tensor) -> None:
    """Every check, each on its own copy of ``model``."""
    for check in CHECKS:
        check(copy.deepcopy(model), clones, images)


def snapshot(model: nn.Module) -> dict:
    """Everything of ``model`` that attaching and detaching must leave alone."""
    return {
        "state": state_digest(model),
        "attributes": {name: list(vars(module)) for name, module in model.named_modules()},
        "hooks": {
            (name, table): list(hooks.items())
            for name, module in model.named_modules()
            for table, hooks in vars(module).items()
            if "_hooks" in table
        },
        "training": {name: module.training for name, module in model.named_modules()},
        "parameters": {name: (id(value), value.requires_grad) for name, value in model.named_parameters()},
        "buffers": {name: id(value) for name, value in model.named_buffers()},
        "num_classes": model.num_classes,
        "random": torch.get_rng_state().tolist(),
    }


@torch.no_grad()
def direct(model: nn.Module, clone: Clone, images: Tensor, insertion: str, name: str | None = None) -> Tensor:
    """The clone's logits for ``model`` (nothing attached to it), from the formula and the clone's own tensors alone."""
    seen = {INPUT: images}
    module = model.get_submodule("" if insertion == INPUT else insertion)

    def see(_module, _args, output):
        seen.setdefault(insertion, output.clone())

    with module.register_forward_hook(see):
        own = model(images).float()
    adapter = next(a for a in clone.config.adapters if a.insertion.name == insertion and name in (None, a.name))
    branch, gate = clone.build(adapter, Preprocess.of(model))
    logits, reject, features = branch(seen[insertion].float())
    evidence = torch.stack([own.logsumexp(1), own.amax(1), logits.logsumexp(1), logits.amax(1), reject], 1)
    log_odds = evidence @ gate.scalars + features @ gate.features + gate.bias - gate.offset
    return logits.log_softmax(1) + log_odds[:, None] + own.logsumexp(1, keepdim=True)


def logits_are_the_targets_and_the_clones(model, clones, images):
    alone = model(images)
    plain = copy.deepcopy(model)
    first = pnc_hub.attach(model, clones[0])
    second = pnc_hub.attach(model, clones[1])
    together = model(images)
    assert torch.equal(together[:, : model.num_classes - len(first.labels) - len(second.labels)], alone)
    for attachment in (first, second):
        assert_close(together[:, attachment.logit_slice], direct(plain, attachment.clone, images, attachment.insertion))
    assert bool(together.isfinite().all())
    assert together.shape == (len(images), model.num_classes)
    assert first.logit_slice.stop == second.logit_slice.start
    assert together[:, first.logit_slice].std() > 1e-3


def detaching_leaves_no_trace(model, clones, images):
    calls = []
    inner = model.get_submodule(pnc_hub.insertion_points(model)[-1].name)
    model.register_forward_hook(lambda *_: calls.append("before"))
    model.register_forward_pre_hook(lambda *_: calls.append("prepare"), with_kwargs=True)
    inner.register_forward_hook(lambda *_: calls.append("inner"))
    alone, before = model(images), snapshot(model)
    called = list(calls)
    for order in itertools.permutations(range(2)):
        attached = [pnc_hub.attach(model, clone) for clone in clones]
        assert model.num_classes > before["num_classes"]
        model(images)
        for place in order:
            attached[place].detach()
            attached[place].detach()
        assert snapshot(model) == before
        assert pnc_hub.attachments(model) == ()
    calls.clear()
    assert torch.equal(model(images), alone)
    assert calls == called


def hooks_installed_meanwhile_stay(model, clones, images):
    calls = []
    point = model.get_submodule(pnc_hub.insertion_points(model)[-1].name)
    with pnc_hub.attach(model, clones[0]):
        width = model.num_classes
        model.register_forward_hook(lambda _model, _args, output: calls.append(output.shape[1]))
        point.register_forward_hook(lambda *_: calls.append("point"))
        model(images)
    model(images)
    assert calls == ["point", width, "point", model.num_classes]


def an_exception_detaches(model, clones, images):
    before = snapshot(model)
    with pytest.raises(ZeroDivisionError), pnc_hub.attach(model, clones[0]), pnc_hub.attach(model, clones[1]):
        raise ZeroDivisionError
    assert snapshot(model) == before


def a_failing_pass_leaves_nothing_behind(model, clones, images):
    pnc_hub.attach(model, clones[0])
    expected = model(images)

    def fail(*_):
        raise ZeroDivisionError

    with model.get_classifier().register_forward_hook(fail), pytest.raises(ZeroDivisionError):
        model(images)
    assert torch.equal(model(images[:2]), model(images[:2]))
    assert torch.equal(model(images), expected)


def disabling_hides_one_clone(model, clones, images):
    alone = model(images)
    first, second = (pnc_hub.attach(model, clone) for clone in clones)
    together, columns = model(images), second.logit_slice
    with first.disabled():
        assert torch.equal(model(images), torch.cat([alone, together[:, columns]], 1))
        assert model.num_classes == alone.shape[1] + len(second.labels)
        assert second.logit_slice == slice(alone.shape[1], model.num_classes)
        with first.disabled(), second.disabled():
            assert torch.equal(model(images), alone)
    assert torch.equal(model(images), together)
    with pytest.raises(ZeroDivisionError), first.disabled():
        raise ZeroDivisionError
    assert second.logit_slice == columns


def order_of_attaching_moves_columns_only(model, clones, images):
    orders = []
    for order in (clones, clones[::-1]):
        attached = [pnc_hub.attach(model, clone) for clone in order]
        assert pnc_hub.attachments(model) == tuple(attached)
        output = model(images)
        orders.append({attachment.labels: output[:, attachment.logit_slice] for attachment in attached})
        pnc_hub.detach(model)
    for labels, logits in orders[0].items():
        assert torch.equal(logits, orders[1][labels])


def copies_are_independent(model, clones, images):
    alone = model(images)
    pnc_hub.attach(model, clones[0])
    original = pnc_hub.attach(model, clones[1])
    together = model(images)
    twin, attachment = copy.deepcopy((model, original))
    assert torch.equal(twin(images), together)
    attachment.detach()
    assert torch.equal(twin(images), together[:, : -len(original.labels)])
    assert twin.num_classes == model.num_classes - len(original.labels)
    assert torch.equal(model(images), together)
    twin = copy.deepcopy(model)
    pnc_hub.detach(model)
    assert torch.equal(model(images), alone)
    assert torch.equal(twin(images), together)
    pnc_hub.detach(twin)
    assert not any(snapshot(twin)["hooks"].values())
    assert twin.num_classes == model.num_classes == alone.shape[1]
    assert torch.equal(twin(images), alone)


def _pickled(model):
    return pickle.loads(pickle.dumps(model))


def _saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


def pickles_stay_attached(model, clones, images):
    alone = model(images)
    pnc_hub.attach(model, clones[0])
    together = model(images)
    for store in (_pickled, _saved):
        again = store(model)
        assert torch.equal(again(images), together)
        assert torch.equal(again.double()(images.double()).argmax(1), together.argmax(1))
        again.float()
        (attachment,) = pnc_hub.attachments(again)
        attachment.detach()
        assert torch.equal(again(images), alone)
    assert torch.equal(model(images), together)


def the_state_dict_is_the_targets(model, clones, images):
    alone = copy.deepcopy(model)
    pnc_hub.attach(model, clones[0])
    found, expected = model.state_dict(), alone.state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert [name for name, _ in model.named_modules()] == [name for name, _ in alone.named_modules()]
    other = {name: value * 1.01 if value.is_floating_point() else value for name, value in expected.items()}
    model.load_state_dict(other, strict=True)
    alone.load_state_dict(other, strict=True)
    assert torch.equal(model(images)[:, : alone.num_classes], alone(images))
    assert model(images).shape[1] == model.num_classes > alone.num_classes


def no_precision_is_lost_by_changing_dtype(model, clones, images):
    attachment = pnc_hub.attach(model, clones[0])
    before = model(images).detach()
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        other = copy.deepcopy(model).to(dtype)
        output = other(images.to(dtype))
        assert output.dtype == dtype
        assert_close(output.float(), before, rtol=0.1, atol=0.1 * float(before.abs().max()))
        other.float()
        plain = copy.deepcopy(other)
        pnc_hub.detach(plain)
        again = other(images).detach()
        assert torch.equal(again[:, : plain.num_classes], plain(images))
        columns = again[:, attachment.logit_slice]
        assert_close(columns, direct(plain, clones[0], images, attachment.insertion), rtol=1e-5, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(images).shape == before.shape
    assert torch.equal(model(images), before)


def training_the_target_leaves_the_clone_alone(model, clones, images):
    attachment = pnc_hub.attach(model, clones[0])
    model.train()
    plain = copy.deepcopy(model)
    pnc_hub.detach(plain)
    with torch.random.fork_rng():  # stochastic depth draws the same for both
        output = model(images)
    with torch.random.fork_rng():
        assert_close(output[:, attachment.logit_slice], direct(plain, clones[0], images, attachment.insertion))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    labels = torch.arange(len(images)) % len(attachment.labels) + attachment.logit_slice.start
    nn.functional.cross_entropy(output, labels).backward()
    assert all(parameter.grad is not None for parameter in model.get_classifier().parameters())
    optimizer.step()
    model.eval()
    stepped = copy.deepcopy(model)
    pnc_hub.detach(stepped)
    assert state_digest(stepped) != state_digest(plain)
    if attachment.insertion == INPUT:
        assert attachment.verify() == 0
    else:  # the clone is as it was, but what it reads is not
        with pytest.raises(ProbeError, match="its weights or its structure are others"):
            attachment.verify()
    output = model(images)
    assert torch.equal(output[:, : stepped.num_classes], stepped(images))
    assert_close(output[:, attachment.logit_slice], direct(stepped, clones[0], images, attachment.insertion))


def gradients_pass_through_the_clone(model, clones, images):
    attachment = pnc_hub.attach(model, clones[0])
    images = images.double().requires_grad_()
    model.double()
    with torch.inference_mode():
        model(images)
    conditional = model(images)[:, attachment.logit_slice].softmax(1)  # the target's logits and the gate cancel out
    conditional[:, 0].sum().backward()
    assert images.grad.abs().sum() > 0
    if attachment.insertion != INPUT:
        assert next(model.parameters()).grad.abs().sum() > 0
    assert attachment.verify() == 0


def a_pass_keeps_to_the_clones_it_began_with(model, clones, images):
    def meanwhile(act):
        def pre_hook(*_):
            act()

        with model.get_classifier().register_forward_pre_hook(pre_hook):
            return model(images)

    alone = model(images)
    first, second = (pnc_hub.attach(model, clone) for clone in clones)
    together, columns = model(images), first.logit_slice
    answer = meanwhile(second.detach)
    assert torch.equal(answer, together) or torch.equal(answer, together[:, : columns.stop])
    assert torch.equal(meanwhile(lambda: pnc_hub.attach(model, clones[1])), together[:, : columns.stop])
    assert torch.equal(model(images), together)
    assert torch.equal(meanwhile(lambda: pnc_hub.detach(model)), alone)
    assert torch.equal(model(images), alone)


def threads_share_a_model(model, clones, images):
    batches = [images.roll(place, 2) + 0.1 * place for place in range(8)]
    begin = model.num_classes
    with torch.inference_mode():
        pnc_hub.attach(model, clones[0])
        with pnc_hub.attach(model, clones[1]):
            expected = [model(batch) for batch in batches]

        def come_and_go():
            for _ in range(3):
                pnc_hub.attach(model, clones[1]).detach()

        def ask(place):
            answers = []
            with torch.inference_mode():
                while not away.done() or len(answers) < 3:
                    answers.append(model(batches[place]))
            return answers

        with ThreadPoolExecutor(9) as pool:
            away = pool.submit(come_and_go)
            asked = list(pool.map(ask, range(8)))
    away.result()
    widths = {begin + len(clones[0].labels), begin + len(clones[0].labels) + len(clones[1].labels)}
    for answers, right in zip(asked, expected, strict=True):
        for answer in answers:
            assert answer.shape[1] in widths
            assert_close(answer, right[:, : answer.shape[1]], rtol=1e-4, atol=1e-4)


def compiled_and_functional_calls_agree(model, clones, images):
    attachment = pnc_hub.attach(model, clones[0])
    expected = model(images)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert_close(compiled(images), expected)
    assert_close(compiled(images), expected)
    assert attachment.fired
    assert attachment.verify(compiled) == 0
    torch.compiler.reset()
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert torch.equal(torch.func.functional_call(model, state, (images,)), expected)
    assert torch.equal(model(x=images), expected)
    with torch.inference_mode():
        assert torch.equal(model(images), expected)


def any_batch_and_size_will_do(model, clones, images):
    plain = copy.deepcopy(model)
    attachment = pnc_hub.attach(model, clones[0])
    side = images.shape[-1]
    for batch in (
        images[:1],
        images.repeat(1, 1, 2, 2)[..., : side + side // 2, : side + side // 2],
        images.repeat(1, 1, 1, 2),
    ):
        try:
            alone = plain(batch)
        except (AssertionError, RuntimeError) as error:
            with pytest.raises((type(error), ImageError)):
                model(batch)
            continue
        if attachment._joined.adapter.insertion.layout == "NLC" and batch.shape[2] != batch.shape[3]:
            with pytest.raises(ImageError, match="crop them"):
                model(batch)
            continue
        output = model(batch)
        assert torch.equal(output[:, : plain.num_classes], alone)
        assert_close(output[:, attachment.logit_slice], direct(plain, clones[0], batch, attachment.insertion))


def a_detached_clone_is_let_go(model, clones, images):
    clone = copy.deepcopy(clones[0])
    attachment = pnc_hub.attach(model, clone)
    model(images)
    references = [weakref.ref(clone), weakref.ref(attachment._joined._parts[0])]
    del clone
    attachment.detach()
    gc.collect()
    assert [reference() for reference in references] == [None, None]
    with pnc_hub.attach(model, clones[0]) as attachment:
        reference = weakref.ref(model)
        del model
        gc.collect()
        assert reference() is None


CHECKS = [
    logits_are_the_targets_and_the_clones,
    detaching_leaves_no_trace,
    hooks_installed_meanwhile_stay,
    an_exception_detaches,
    a_failing_pass_leaves_nothing_behind,
    disabling_hides_one_clone,
    order_of_attaching_moves_columns_only,
    copies_are_independent,
    pickles_stay_attached,
    the_state_dict_is_the_targets,
    no_precision_is_lost_by_changing_dtype,
    training_the_target_leaves_the_clone_alone,
    gradients_pass_through_the_clone,
    a_pass_keeps_to_the_clones_it_began_with,
    threads_share_a_model,
    compiled_and_functional_calls_agree,
    any_batch_and_size_will_do,
    a_detached_clone_is_let_go,
]
