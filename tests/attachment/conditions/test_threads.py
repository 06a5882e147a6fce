"""Threads that share an attached model: every answer belongs to one state, and nothing stays behind."""

import copy
import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from common import images, live
from torch.testing import assert_close

import pnc_hub
from attachment.conditions.cases import everywhere, join, once_each, pair

THREADS, PATIENCE = 16, 60


class Progress:
    """Answers of all threads, counted, and a way to wait for some more of them."""

    def __init__(self):
        self.answers = []
        self.over = False
        self._changed = threading.Condition()

    def add(self, place, answer):
        with self._changed:
            self.answers.append((place, answer))
            self._changed.notify_all()

    def end(self, *_):
        with self._changed:
            self.over = True
            self._changed.notify_all()

    def wait_for(self, more):
        with self._changed:
            wanted = len(self.answers) + more
            assert self._changed.wait_for(lambda: self.over or len(self.answers) >= wanted, PATIENCE)


@pytest.mark.parametrize(
    ("family", "at", "wanted"),
    [
        ("vit", "input", 200),
        pytest.param("resnet", "interior", 1000, marks=pytest.mark.slow),
        pytest.param("vit", "input", 1000, marks=pytest.mark.slow),
    ],
)
def test_answers_while_a_clone_comes_and_goes(family, at, wanted):
    model, clones = pair(family, at)
    model = copy.deepcopy(model)
    batches = [images(1, seed=place) for place in range(THREADS)]
    with torch.inference_mode():
        pnc_hub.attach(model, clones[0])
        with pnc_hub.attach(model, clones[1]):
            expected = [model(batch) for batch in batches]
    progress = Progress()

    def ask(place):
        with torch.inference_mode():
            while not progress.over:
                progress.add(place, model(batches[place]))

    def come_and_go():
        while len(progress.answers) < wanted and not progress.over:
            second = pnc_hub.attach(model, clones[1])
            progress.wait_for(2 * THREADS)
            second.detach()
            progress.wait_for(2 * THREADS)

    with ThreadPoolExecutor(THREADS + 1) as pool:
        futures = [pool.submit(come_and_go), *(pool.submit(ask, place) for place in range(THREADS))]
        for future in futures:  # whichever ends first, by an error or because enough was asked, ends all
            future.add_done_callback(progress.end)
    for future in futures:
        future.result()
    assert len(progress.answers) >= wanted
    for place, answer in progress.answers:
        assert_close(answer, expected[place][:, : answer.shape[1]], rtol=1e-5, atol=1e-5)
    assert {answer.shape[1] for _, answer in progress.answers} == {10, 12}
    pnc_hub.detach(model)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@once_each
def test_many_clones_attached_and_detached_by_many_threads(family, at):
    model, clones = pair(family, at)
    model = copy.deepcopy(model)
    start = threading.Barrier(8)

    def come_and_go(_):
        start.wait(PATIENCE)
        for _ in range(3):
            attachment = pnc_hub.attach(model, clones[0], on_collision="allow")
            with torch.inference_mode():
                model(images(1))
            attachment.detach()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(come_and_go, range(8)))
    assert pnc_hub.attachments(model) == ()
    assert model.num_classes == 7
    assert torch.equal(model(images()), join(family, at).alone)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


class Interrupted(BaseException):
    """As KeyboardInterrupt, but no test runner's affair."""


def failing(model, error, count):
    """One pass over ``count`` images that ends in ``error`` after the insertion point, and lets go of everything."""

    def fail(*_):
        raise error

    with model.get_classifier().register_forward_hook(fail):
        try:
            model(images(count))
        except (ZeroDivisionError, Interrupted):
            return
    pytest.fail("the hook did not run")


@pytest.mark.parametrize("error", [ZeroDivisionError, Interrupted])
@pytest.mark.parametrize("place", ["in a thread", pytest.param("here", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("family", "at"), [("vit", "interior"), pytest.param("resnet", "input", marks=pytest.mark.slow)]
)
def test_a_failing_pass_leaves_no_tensor_behind(family, at, place, error):
    """``Interrupted`` is no exception that hooks of torch are called for: what it left goes with the clone."""
    joined = join(family, at)
    with ThreadPoolExecutor(1) as pool:  # its thread lives until the end of the block
        if place == "here":
            failing(joined.model, error, 37)
        else:
            pool.submit(failing, joined.model, error, 37).result()
        if error is Interrupted:
            pnc_hub.detach(joined.model)
        assert [tuple(tensor.shape) for tensor in live(37)] == []
        again = pool.submit(joined.model, images()).result()
    assert torch.equal(again.detach(), joined.alone if error is Interrupted else joined.together)


@once_each
def test_a_pass_leaves_no_tensor_behind(family, at):
    joined = join(family, at)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: joined.model(images(37)).shape).result() == (37, 10)
        joined.model(images(37)).sum().backward()
        assert [tuple(tensor.shape) for tensor in live(37)] == []


@everywhere
def test_what_was_detached_is_let_go_though_threads_have_used_it(family, at):
    model, clones = pair(family, at)
    model, clone = copy.deepcopy(model), copy.deepcopy(clones[0])
    attachment = pnc_hub.attach(model, clone)
    hooks = [hook for module in model.modules() for hook in module._forward_hooks.values()]
    references = [weakref.ref(thing) for thing in (clone, attachment, *hooks)]
    references += [weakref.ref(tensor) for tensors in clone.tensors.values() for tensor in tensors.values()]
    assert len(references) > 10
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda place: model(images(2, seed=place)).shape, range(8)))
        attachment.detach()
        del attachment, clone, hooks
        gc.collect()
        left = [type(reference()).__name__ for reference in references if reference() is not None]
        assert left == []
        assert pool.submit(model, images()).result().shape == (4, 7)
