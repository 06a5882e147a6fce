import argparse
import gzip
import io
import json
import math
import zipfile

import numpy as np
import pytest
import torch
from common import tiny_model
from PIL import Image
from torch import nn

import pnc_hub
from pnc_hub.cloning.networks import Networks
from pnc_hub.cloning.package import source_config
from recipes.compare import baselines
from recipes.frame import networks, pairs, protocol, reading, training
from recipes.frame.task import Result, Task
from recipes.method import ablations, benchmark, ours

RNG = np.random.RandomState(0)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "_cache", tmp_path / "cache")


def raw(classes=4, each=12, seed=0):
    """Random images whose mean tells their class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat(each)
    noise = torch.randint(0, 60, (len(labels), 3, 32, 32), generator=generator)
    images = (noise + 40 * labels[:, None, None, None]).to(torch.uint8)
    return reading.Raw(images, labels, [f"class {label}" for label in range(classes)])


def tensor_images(**arguments):
    return reading.TensorImages.of(raw(**arguments), reading.CIFAR_MEAN, reading.CIFAR_STD)


class TestReading:
    @pytest.mark.parametrize("name", ["cifar10", "cifar100"])
    def test_sprites_give_every_pixel(self, tmp_path, name):
        expected = {}
        for file in {"cifar10": ("train_half", "test"), "cifar100": ("train", "test")}[name]:
            tiles = RNG.randint(0, 256, (1000, 32, 32, 3)).astype(np.uint8)
            labels = np.sort(RNG.randint(0, 3, 1000)).astype(np.uint8)
            expected[file] = tiles, labels
            with zipfile.ZipFile(tmp_path / f"{name}_{file}.zip", "w") as archive:
                for number in (1, 0):
                    part = tiles[500 * number : 500 * number + 500]
                    sprite = part.reshape(20, 25, 32, 32, 3).transpose(0, 2, 1, 3, 4).reshape(640, 800, 3)
                    archive.writestr(f"{number:03}.webp", encoded(sprite, "WEBP", lossless=True))
                content = io.BytesIO()
                np.save(content, labels)
                archive.writestr("labels.npy", content.getvalue())
                archive.writestr("classes.txt", "ant\nbee\nwasp\n")
        for found, (tiles, labels) in zip(getattr(reading, name)(tmp_path), expected.values(), strict=True):
            assert found.images.dtype == torch.uint8
            assert np.array_equal(found.images.permute(0, 2, 3, 1).numpy(), tiles)
            assert found.labels.tolist() == labels.tolist()
            assert found.classes == ["ant", "bee", "wasp"]

    def test_photos_are_labelled_by_folder_and_grey_ones_have_three_channels(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "photos20_224.zip", "w") as archive:
            for place, (split, wnid) in enumerate(
                [("train", "n02"), ("train", "n01"), ("test", "n02"), ("test", "n01"), ("test", "n01")]
            ):
                pixels = np.full((16, 16), 40 * place, np.uint8)
                archive.writestr(f"{split}/{wnid}/{place}.JPEG", encoded(pixels, "JPEG", quality=100))
        train, test = reading.photos(tmp_path)
        assert train.classes == test.classes == ["n01", "n02"]
        assert (train.labels.tolist(), test.labels.tolist()) == ([0, 1], [0, 0, 1])
        assert test.images.shape == (3, 3, 16, 16)
        assert test.images.float().mean((1, 2, 3)).round().tolist() == [120, 160, 80]

    @pytest.mark.parametrize("packed", [False, True])
    def test_idx_files_are_padded_to_32_pixels(self, tmp_path, packed):
        pixels = RNG.randint(0, 256, (5, 28, 28)).astype(np.uint8)
        for split in ("train", "t10k"):
            for kind, values in (("images-idx3-ubyte", pixels), ("labels-idx1-ubyte", np.arange(5, dtype=np.uint8))):
                head = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
                content = head + values.tobytes()
                path = tmp_path / f"{split}-{kind}{'.gz' if packed else ''}"
                path.write_bytes(gzip.compress(content) if packed else content)
        train, test = reading.mnist(tmp_path)
        assert train.images.shape == (5, 1, 32, 32)
        assert np.array_equal(test.images[:, 0, 2:30, 2:30].numpy(), pixels)
        assert test.images.sum() == pixels.sum()
        assert train.labels.tolist() == [0, 1, 2, 3, 4]

    def test_another_file_under_the_name_of_an_idx_file_is_refused(self, tmp_path):
        (tmp_path / "train-images-idx3-ubyte").write_bytes(b"<html>not found</html>")
        with pytest.raises(reading.MissingDataError, match="no idx file"):
            reading.mnist(tmp_path)

    @pytest.mark.parametrize("reader", [reading.cifar10, reading.cifar100, reading.photos, reading.mnist])
    def test_missing_files_are_named(self, tmp_path, reader):
        with pytest.raises(reading.MissingDataError, match=r"has no .*--data"):
            reader(tmp_path)

    def test_images_are_normalised_when_read(self):
        stored = raw()
        images = reading.TensorImages.of(stored, (0.5, 0.25, 0.0), (0.5, 1.0, 2.0))
        expected = (stored.images[3].float() / 255 - torch.tensor([0.5, 0.25, 0.0])[:, None, None]) / torch.tensor(
            [0.5, 1.0, 2.0]
        )[:, None, None]
        torch.testing.assert_close(images[3][0], expected)
        assert images[3][1] == 3
        batch, labels = images.batch([5, 3])
        torch.testing.assert_close(batch[1], expected)
        assert labels.tolist() == [1, 3]

    def test_subsets_keep_images_and_labels_together(self):
        images = tensor_images()
        some = images.of_classes([3, 1])
        assert sorted(set(some.targets)) == [0, 1]
        assert len(some) == 24
        for place in (0, 7, 23):
            original = next(i for i in range(48) if torch.equal(images[i][0], some[place][0]))
            assert images.targets[original] == [3, 1][some.targets[place]]
        assert set(images.relabelled(-1).targets) == {-1}
        few = images.few(5, seed=1)
        assert [few.targets.count(label) for label in range(4)] == [5] * 4
        assert few.digest() == images.few(5, seed=1).digest() != images.few(5, seed=2).digest()
        both = reading.joined(few, some)
        assert both.targets == few.targets + some.targets
        assert torch.equal(both[21][0], some[1][0])

    def test_digest_changes_with_labels_and_pixels(self):
        images = tensor_images()
        digests = {images.digest(), images.relabelled(0).digest(), tensor_images(seed=1).digest()}
        assert len(digests) == 3


class TestNetworks:
    @pytest.mark.parametrize("name", networks.NETWORKS)
    def test_every_block_is_an_insertion_point_and_a_clone_can_name_the_source(self, name):
        model = networks.build(name, 5, seed=1).eval()
        points = {point.name for point in pnc_hub.insertion_points(model)}
        blocks = {
            module_name
            for module_name, module in model.named_modules()
            if type(module).__name__ in ("BasicBlock", "InvertedResidual", "ConvNeXtStage", "Block")
        }
        assert len(blocks) >= 4
        assert blocks <= points
        assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 5)
        about = Networks(model, tiny_model("resnet"), [0, 1], torch.device("cpu"))
        described = source_config(model, networks.source_args(name), None, "apache-2.0", about)
        assert described.architecture == networks.NETWORKS[name][0]

    def test_the_seed_draws_the_weights(self):
        first, again, other = (networks.build("resnet14", 5, seed).fc.weight for seed in (0, 0, 1))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)

    def test_eight_bit_weights(self, tmp_path):
        model = networks._mobilenetv2(7)
        stored, expected = {}, {}
        for name, value in model.state_dict().items():
            if name.endswith("weight") and (value.dim() == 4 or name.startswith("classifier")):
                q = RNG.randint(0, 256, value.shape).astype(np.uint8)
                zero, scale = RNG.randint(0, 256, len(q)), RNG.rand(len(q)).astype(np.float32)
                stored |= {f"{name}.q": q, f"{name}.zero": zero, f"{name}.scale": scale}
                rows = zip(q.astype(np.float32), zero, scale, strict=True)
                expected[name] = np.stack([(row - np.float32(z)) * s for row, z, s in rows])
            elif name.endswith("bias"):
                stored[name] = expected[name] = RNG.rand(*value.shape).astype(np.float32)
        np.savez(tmp_path / "net.npz", **stored)
        loaded = networks.mobilenetv2_q8(tmp_path / "net.npz")
        state = loaded.state_dict()
        for name, value in expected.items():
            assert np.array_equal(state[name].numpy(), value), name
        feature = torch.randn(2, 32, 4, 4)
        only_bias = feature + loaded.bn1.bias[:, None, None]
        torch.testing.assert_close(loaded.bn1.eval()(feature), loaded.bn1.act(only_bias))
        kept = networks.mobilenetv2_q8(tmp_path / "net.npz", [6, 2])
        image = torch.randn(1, 3, 32, 32) / 1e3
        assert torch.equal(kept.classifier.bias, loaded.classifier.bias[[6, 2]])
        torch.testing.assert_close(kept.forward_features(image), loaded.forward_features(image), equal_nan=True)
        with pytest.raises(reading.MissingDataError, match=r"no weights at .*other\.npz"):
            networks.mobilenetv2_q8(tmp_path / "other.npz")


class Interrupted(Exception):
    pass


class Counting:
    """Cross-entropy that counts its calls and fails at one of them."""

    __qualname__ = "Counting"

    def __init__(self, stop=None):
        self.calls, self.stop, self.dtypes = 0, stop, set()

    def __call__(self, model, images, labels):
        self.calls += 1
        if self.calls == self.stop:
            raise Interrupted
        logits = model(images)
        self.dtypes.add(logits.dtype)
        return nn.functional.cross_entropy(logits, labels)


def trained(loss, epochs=3, **options):
    model = networks.build("resnet14", 4, seed=3)
    return training.train(model, tensor_images(), epochs, 5, loss=loss, batch_size=16, device="cpu", **options)


class TestTraining:
    def test_an_interrupted_run_ends_like_one_that_was_not(self, tmp_path):
        whole = trained(Counting(), name="net")
        training.use_cache(tmp_path / "second")
        with pytest.raises(Interrupted):
            trained(Counting(stop=8), name="net")  # three steps make an epoch: in the middle of the third
        rest = Counting()
        resumed = trained(rest, name="net")
        assert rest.calls == 3
        for name, value in whole.state_dict().items():
            assert torch.equal(value, resumed.state_dict()[name]), name
        assert sorted(path.suffix for path in (tmp_path / "second").iterdir()) == [".json", ".safetensors"]

    def test_a_finished_run_is_not_repeated(self):
        first = trained(Counting(), name="net")
        second = Counting()
        again = trained(second, name="net")
        assert second.calls == 0
        assert training.seconds(again) == training.seconds(first) > 0
        assert not again.training
        images = torch.randn(4, 3, 32, 32)
        assert torch.equal(first(images), again(images))

    @pytest.mark.parametrize("change", [{"epochs": 2}, {"learning_rate": 0.1}, {"name": "other"}])
    def test_another_setting_is_another_run(self, change):
        trained(Counting(), epochs=1, name="net")
        again = Counting()
        trained(again, **{"epochs": 1, "name": "net", **change})
        assert again.calls > 0

    def test_the_random_state_of_the_caller_stays_and_the_loss_is_in_single_precision(self):
        before = torch.random.get_rng_state()
        loss = Counting()
        trained(loss)
        assert torch.equal(before, torch.random.get_rng_state())
        assert loss.dtypes == {torch.float32}

    def test_it_learns_and_leaves_no_hook(self):
        model = networks.build("resnet14", 4)
        images = tensor_images(each=32)
        training.train(model, images, 4, 0, learning_rate=0.05, batch_size=16, flip=False, device="cpu")
        logits, labels = protocol.logits_of(model, images)
        assert (logits.argmax(1) == labels).float().mean() > 0.9
        assert not model._forward_hooks

    def test_any_dataset_of_pairs_will_do(self):
        images = tensor_images()
        pairs_of = [images[index] for index in range(len(images))]
        one = training.train(networks.build("resnet14", 4), images, 1, 0, device="cpu")
        other = training.train(networks.build("resnet14", 4), pairs_of, 1, 0, device="cpu")
        torch.testing.assert_close(one.fc.weight, other.fc.weight)

    def test_augmentation_shifts_and_mirrors(self):
        images = torch.arange(1, 1 + 32 * 32.0).reshape(1, 1, 32, 32).expand(64, 2, -1, -1)
        found = training.augmented(images, torch.Generator().manual_seed(0))
        assert found.shape == images.shape
        assert torch.equal(found[:, 0], found[:, 1])
        # neighbours in a row differ by one, upwards where the image is not mirrored
        steps = found[:, 0, 16, 16] - found[:, 0, 16, 15]
        assert set(steps.tolist()) == {1.0, -1.0}
        assert len(set(found[:, 0, 16, 16].tolist())) > 20
        unflipped = training.augmented(images, torch.Generator().manual_seed(0), flip=False)
        assert (unflipped[:, 0, 16, 16] - unflipped[:, 0, 16, 15] == 1).all()


class TestProtocol:
    def test_metrics_of_known_logits(self):
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

    def test_weights_of_the_average_are_numbers_of_classes(self):
        alone = torch.eye(4)
        old = torch.cat([alone, torch.full((4, 1), -9.0)], 1)
        new = torch.tensor([[9.0, 0, 0, 0, 0]])
        found = protocol.metrics(old, torch.arange(4), new, torch.tensor([0]), alone)
        assert (found["ori"], found["tar"], found["avg_u"], found["avg_w"]) == (1, 0, 0.5, 0.8)

    def test_a_method_that_never_answers_with_a_new_class(self):
        alone = torch.randn(6, 3)
        joint = torch.cat([alone, torch.full((6, 2), -math.inf)], 1)
        found = protocol.metrics(joint, alone.argmax(1), joint, torch.zeros(6, dtype=torch.long), alone)
        assert (found["ori"], found["tar"], found["auroc"], found["diverted"], found["kl"]) == (1, 0, 0.5, 0, 0)

    def test_oracle_answers_are_judged_by_side(self):
        task = toy_task()
        found = protocol.measure(task, lambda task: toy_result(oracle=True))
        assert (found["diverted"], found["auroc"], found["fpr95"]) == (0, 1, 0)

    def test_rows_are_kept_and_not_computed_again(self, tmp_path, monkeypatch, capsys):
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
        assert {"ori", "tar", "params", "kept", "macs", "bytes", "images", "seconds", "shots", "epochs"} <= set(
            first[0]
        )
        assert (first[0]["params"], first[0]["images"], first[0]["clone"]) == (7, 9, 1)
        second = protocol.main(benchmark, ["--json", str(path), "--regime", "R1", "R4"])
        assert calls[4:] == [(1, "R4"), (2, "R4")]
        assert [row["method"] for row in second] == ["toy", "toy", "late", "toy", "toy", "late"]
        protocol.main(benchmark, ["--json", str(path), "--regime", "R1", "--methods", "toy", "--clone", "2"])
        assert len(calls) == 8
        table = capsys.readouterr().out
        assert table.count("| R1 | toy | 1 2 |") == 3

    def test_a_table_shows_means_over_seeds(self):
        row = dict.fromkeys([name for name, *_ in protocol.COLUMNS.values()] + ["source_alone", "target_alone"], 0.0)
        row |= {"benchmark": "B", "regime": "R1", "method": "m"}
        rows = [row | {"seed": 1, "ori": 0.5, "params": 1000}, row | {"seed": 2, "ori": 0.7, "params": 2000}]
        line = protocol.table(rows).splitlines()[2]
        assert line.startswith("| R1 | m | 1 2 | 60.0 | ")
        assert "| 1,500 |" in line

    @pytest.mark.parametrize("name", ["cifar10", "cifar100", "mnist", "real"])
    def test_without_data_the_program_says_what_to_do(self, name, tmp_path):
        with pytest.raises(SystemExit, match="--data"):
            benchmark.main([name, "--data", str(tmp_path), "--methods", "clone"])

    def test_command_lines(self, capsys):
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


@pytest.fixture(scope="module")
def pair():
    mean, std = reading.CIFAR_MEAN, reading.CIFAR_STD
    return pairs.Pair("TINY", raw(6, 30), raw(6, 4, 1), 3, mean, std, unrelated=raw(2, 5, 2), epochs=1)


class TestTasks:
    def test_classes_and_images_of_each_regime(self, pair):
        order = np.random.RandomState(1993).permutation(6).tolist()
        tasks = {regime: pair.task(1993, regime, 2, "cpu") for regime in ("R1", "R2", "R3", "R4")}
        for task in tasks.values():
            assert task.labels == [f"class {label}" for label in order[3:5]]
            assert task.rows == [0, 1]
            assert (len(task.new), len(task.new_test), len(task.old_test)) == (60, 8, 12)
        assert tasks["R1"].old is None
        assert tasks["R2"].old.targets == [-1] * 10
        assert [tasks["R3"].old.targets.count(label) for label in range(3)] == [20] * 3
        assert len(tasks["R4"].old) == 90
        known = pair.images(pair.train)
        image = tasks["R4"].old[0]
        original = next(index for index in range(180) if torch.equal(known[index][0], image[0]))
        assert known.targets[original] == order[image[1]]
        assert tasks["R4"].untrained(5)(image[0][None]).shape == (1, 5)
        with pytest.raises(ValueError, match="no unrelated images"):
            pairs.Pair("NONE", pair.train, pair.test, 3, pair.mean, pair.std, epochs=0).task(1, "R2", 1, "cpu")

    def test_source_and_target_are_different_networks(self, pair):
        source, target = pair.trained(1993, "cpu")
        assert not torch.equal(source.conv1.weight, target.conv1.weight)
        assert not source.training
        assert not target.training

    def test_images_that_a_source_is_shown(self, pair):
        task = pair.task(1993, "R2", 2, "cpu")
        task.rows = [2, 0]
        shown = ours.Shown(task)
        assert set(shown.targets[:60]) == {0, 2}
        assert set(shown.targets[60:]) == {3}
        assert (len(shown), shown[61][1]) == (70, 3)
        assert torch.equal(shown[61][0], task.old[1][0])
        position = task.new.targets.index(1)
        assert shown[position][1] == 0

    def test_a_clone_adds_columns_and_leaves_the_target(self, pair):
        task = pair.task(1993, "R4", 2, "cpu")
        images = task.old_test.batch(range(4))[0]
        before = task.target(images)
        result = ours.clone(task, epochs=0, insertion="layer1.1", cut="layer2.0")
        joint = result.predict(images)
        assert joint.shape == (4, 5)
        assert torch.equal(joint[:, :3], before)
        assert torch.equal(task.target(images), before)
        assert (result.extra["insertion"], result.extra["cut"]) == ("layer1.1", "layer2.0")
        assert 0.5 < result.extra["auroc_stitched"] <= 1
        assert 0.5 < result.extra["auroc_pruned"] <= 1
        assert result.macs > 0
        assert 0 < result.params < 174_933


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


def encoded(pixels, kind, **options):
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, kind, **options)
    return content.getvalue()
