"""Two processes on gloo learn the clone that one process learns."""

import pytest
import torch
from torch.testing import assert_close

from cloning import processes

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What each of two processes found, by case."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(processes.run, (str(folder / "store"), str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


def same(first, second):
    assert first.keys() == second.keys()
    for file, tensors in first.items():
        assert tensors.keys() == second[file].keys()
        assert all(torch.equal(tensor, second[file][name]) for name, tensor in tensors.items())


@pytest.mark.parametrize("case", processes.CASES)
def test_both_processes_come_to_the_same_clone(answers, case):
    first, second = (answer[case] for answer in answers)
    same(first["own"], second["own"])
    same(first["tensors"], second["tensors"])
    assert first["config"] == second["config"]
    assert first["curve"] == second["curve"]


@pytest.mark.parametrize("case", [name for name, options in processes.CASES.items() if not options["epochs"]])
def test_without_refinement_it_is_the_clone_of_one_process(answers, case):
    """Adapters, insertion point, cut, pruned shapes, gates and measurements."""
    found, expected = answers[0][case], processes.learn(case)
    assert found["config"]["cut"] == expected["config"]["cut"]
    assert found["config"]["tail"] == expected["config"]["tail"]
    assert [row["insertion"] for row in found["curve"]] == [row["insertion"] for row in expected["curve"]]
    for one, other in zip(found["config"]["adapters"], expected["config"]["adapters"], strict=True):
        assert one["insertion"] == other["insertion"]
        assert one["metrics"].keys() == other["metrics"].keys()
        for name in one["metrics"].keys() - {"seconds"}:
            value = other["metrics"][name]
            assert one["metrics"][name] == (pytest.approx(value, rel=1e-4) if isinstance(value, float) else value)
    assert found["tensors"].keys() == expected["tensors"].keys()
    for file, tensors in expected["tensors"].items():
        for name, tensor in tensors.items():
            # sums in float32 depend on how the images are shared, and on the number of threads too
            assert_close(found["tensors"][file][name], tensor, rtol=0, atol=1e-4 * float(tensor.abs().max()))


@pytest.mark.parametrize("case", [name for name, options in processes.CASES.items() if options["epochs"]])
def test_refinement_learns_something_in_two_processes_too(answers, case):
    """Not the same as in one, since other images are perturbed, but in the same number of steps."""
    found, expected = answers[0][case], processes.learn(case)
    metrics = found["config"]["adapters"][0]["metrics"]
    assert metrics["restored"] is True
    assert metrics["images"] == expected["config"]["adapters"][0]["metrics"]["images"]
    assert {
        name: {key: value.shape for key, value in tensors.items()} for name, tensors in found["tensors"].items()
    } == {name: {key: value.shape for key, value in tensors.items()} for name, tensors in expected["tensors"].items()}
