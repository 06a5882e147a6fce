"""What a row says, and the command line that all benchmarks share."""

import argparse
import json
import math

import pytest
import torch
from made_up import tensor_images

from recipes.compare import baselines
from recipes.frame import networks, protocol
from recipes.frame.task import Result, Task
from recipes.method import ablations, benchmark, ours


def test_metrics_of_known_logits():
    # two old classes, one new; rows are log-probabilities up to a constant
    alone = torch.log(torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]]))
    gate = torch.tensor([0.1, 0.2, 0.9, 0.5])[:, None]
    old = torch.cat([alone + torch.log1p(-gate), gate.log()], 1)
    inside = torch.tensor([0.95, 0.3])[:, None]
    new = torch.cat([torch.log(torch.tensor([[0.5, 0.5], [0.9, 0.1]])) + torch.log1p(-inside), inside.log()], 1)
    found = protocol.metrics(old, torch.tensor([0, 1, 0, 0]), new, torch.tensor([0, 0]), alone)
    assert found["target_alone"] == 0.75
    assert found["ori"] == 0.5  # the third image is diverted, and the fourth (0.35 against 0.5) was wrong before
    assert found["tar"] == 0.5  # 0.95 against 0.025, and 0.3 against 0.63
    assert found["avg_u"] == 0.5
    assert found["avg_w"] == pytest.approx((2 * 0.5 + 0.5) / 3)
    assert found["diverted"] == 0.5
    assert found["agreement"] == 0.5
    assert found["auroc"] == pytest.approx(6 / 8)
    assert found["fpr95"] == 0.5  # both new ones pass at 0.3, and so do 0.9 and 0.5
    assert found["kl"] == pytest.approx(-float(torch.log1p(-gate).mean()), rel=1e-5)


def test_weights_of_the_average_are_numbers_of_classes():
    alone = torch.eye(4)
    old = torch.cat([alone, torch.full((4, 1), -9.0)], 1)
    new = torch.tensor([[9.0, 0, 0, 0, 0]])
    found = protocol.metrics(old, torch.arange(4), new, torch.tensor([0]), alone)
    assert (found["ori"], found["tar"], found["avg_u"], found["avg_w"]) == (1, 0, 0.5, 0.8)


def test_a_method_that_never_answers_with_a_new_class():
    alone = torch.randn(6, 3)
    joint = torch.cat([alone, torch.full((6, 2), -math.inf)], 1)
    found = protocol.metrics(joint, alone.argmax(1), joint, torch.zeros(6, dtype=torch.long), alone)
    assert (found["ori"], found["tar"], found["auroc"], found["diverted"], found["kl"]) == (1, 0, 0.5, 0, 0)


def test_oracle_answers_are_judged_by_side():
    task = toy_task()
    found = protocol.measure(task, lambda task: toy_result(oracle=True))
    assert (found["diverted"], found["auroc"], found["fpr95"]) == (0, 1, 0)


def test_rows_are_kept_and_not_computed_again(tmp_path, monkeypatch, capsys):
    calls = []

    def method(task):
        calls.append((task.seed, task.regime))
        return toy_result()

    toys = {"ours": {"toy": (method, ("R1", "R4"))}, "baselines": {"late": (method, ("R4",))}}
    monkeypatch.setattr(protocol, "groups", lambda: toys)
    options = {"--clone": {"type": int, "default": 1}}
    benchmark = protocol.Benchmark(
        "TOY", lambda arguments, seed, regime: toy_task(seed, regime), options, seeds=(1, 2), needs_data=False
    )
    path = tmp_path / "rows" / "toy.json"
    first = protocol.main(benchmark, ["--json", str(path), "--regime", "R1", "R4", "--methods", "toy"])
    assert calls == [(1, "R1"), (1, "R4"), (2, "R1"), (2, "R4")]
    assert json.loads(path.read_text()) == first
    assert {"ori", "tar", "params", "kept", "macs", "bytes", "images", "seconds", "shots", "epochs"} <= set(first[0])
    assert (first[0]["params"], first[0]["images"], first[0]["clone"]) == (7, 9, 1)
    second = protocol.main(benchmark, ["--json", str(path), "--regime", "R1", "R4"])
    assert calls[4:] == [(1, "R4"), (2, "R4")]
    assert [row["method"] for row in second] == ["toy", "toy", "late", "toy", "toy", "late"]
    protocol.main(benchmark, ["--json", str(path), "--regime", "R1", "--methods", "toy", "--clone", "2"])
    assert len(calls) == 8
    table = capsys.readouterr().out
    assert table.count("| R1 | toy | 1 2 |") == 3


def test_a_table_shows_means_over_seeds():
    row = dict.fromkeys([name for name, *_ in protocol.COLUMNS.values()] + ["source_alone", "target_alone"], 0.0)
    row |= {"benchmark": "B", "regime": "R1", "method": "m"}
    rows = [row | {"seed": 1, "ori": 0.5, "params": 1000}, row | {"seed": 2, "ori": 0.7, "params": 2000}]
    line = protocol.table(rows).splitlines()[2]
    assert line.startswith("| R1 | m | 1 2 | 60.0 | ")
    assert "| 1,500 |" in line


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "mnist", "real"])
def test_without_data_the_program_says_what_to_do(name, tmp_path):
    with pytest.raises(SystemExit, match="--data"):
        benchmark.main([name, "--data", str(tmp_path), "--methods", "clone"])


def test_command_lines(capsys):
    def parsed(name, *arguments):
        parser = argparse.ArgumentParser()
        protocol.add_options(parser, benchmark.BENCHMARKS[name])
        return parser.parse_args(["--data", "x", *arguments])

    given = parsed("cifar10", "--clone", "3", "--regime", "R2")
    assert (given.clone, given.seeds, given.regime, given.preset) == (3, [1993, 1994, 1995], ["R2"], "quick")
    assert parsed("cifar100").clone == 20
    assert parsed("real").seeds == [1993]
    for wrong in (["--clone", "4"], ["--methods", "magic"], ["--regime", "R5"]):
        with pytest.raises(SystemExit):
            parsed("cifar10", *wrong)
    for name in ("mnist", "digits", "real"):
        with pytest.raises(SystemExit):
            parsed(name, "--regime", "R2")
    capsys.readouterr()


def test_every_method_is_registered_once():

    found = protocol.methods()
    assert set(found) == {*ours.METHODS, *baselines.METHODS, *ablations.METHODS}
    assert len(found) == sum(len(file.METHODS) for file in (ours, baselines, ablations))
    assert protocol.chosen(["ours", "joint", "clone"]) == [*ours.METHODS, "joint"]
    assert all(set(regimes) <= set(protocol.REGIMES) for _, regimes in found.values())


def toy_task(seed=0, regime="R4"):
    images = tensor_images(classes=2, each=3)
    network = networks.build("resnet14", 2).eval()
    return Task("TOY", seed, regime, network, network, ["a"], [0], images, None, images.of_classes([0]), images)


def toy_result(**extra):
    return Result(lambda images: torch.zeros(len(images), 3), 7, 5, 28, 9, 1.5, extra)
