"""An artifact is what was saved, byte for byte, or it is refused and the model is not touched."""

import json
import os
import shutil
import stat
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from common import images, sha256, slow, tiny_clone, tiny_model
from hub_fixtures import contents, drop, edit
from torch._dynamo.testing import CompileCounter

import pnc_hub
from pnc_hub import Clone
from pnc_hub.artifact import files
from pnc_hub.errors import (
    ArtifactError,
    CloneNotFoundError,
    IntegrityError,
    MalformedArtifactError,
    ProbeError,
    PublishError,
)
from pnc_hub.models.insertion import empty
from pnc_hub.models.preprocess import Preprocess

PAIRS = [  # source, target, share of the tail that is kept, with a universal adapter
    ("resnet", "resnet", 0.6, True),
    ("swin", "convnext", None, False),
    *map(
        slow,
        [
            ("resnet", "mobilenet", None, False),
            ("mobilenet", "vit", None, True),
            ("convnext", "convnext", None, True),
            ("vit", "regnet", 0.6, True),
            ("regnet", "swin", None, False),
        ],
    ),
]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) * 3 // 4] ^= 1
    path.write_bytes(data)


def adapter_file(folder: Path) -> Path:
    """The file of the adapter at an interior point."""
    return next(path for path in (folder / "adapters").iterdir() if path.name != "universal.safetensors")


@pytest.fixture(
    scope="module", params=PAIRS, ids=lambda pair: "-".join(map(str, pair)) if isinstance(pair, tuple) else None
)
def made(request, tmp_path_factory):
    """(target, clone in memory, folder) of one pair."""
    family, target_family, keep, universal = request.param
    target = tiny_model(target_family, num_classes=5, seed=1)
    clone = tiny_clone(tiny_model(family), target, family=family, keep=keep, universal=universal)
    return target, clone, clone.save_pretrained(tmp_path_factory.mktemp("made") / "clone")


class TestRoundTrip:
    def test_saving_what_was_loaded_gives_the_same_bytes(self, made, tmp_path):
        _, _, folder = made
        again = Clone.from_pretrained(folder).save_pretrained(tmp_path / "again")
        assert contents(again) == contents(folder)

    def test_every_file_is_recorded(self, made):
        _, clone, folder = made
        config = json.loads((folder / "config.json").read_text())
        recorded = config["files"]
        del recorded["config.json"]  # what the configuration records of itself is its seal
        assert recorded == {name: sha256(folder / name) for name in contents(folder) if name.endswith(".safetensors")}
        assert ("trunk.safetensors" in recorded) == (len(clone.config.adapters) == 2)

    def test_modules_are_equal(self, made):
        _, clone, folder = made
        loaded = Clone.from_pretrained(folder)
        assert loaded.labels == clone.labels
        for ours, theirs in zip(loaded.config.adapters, clone.config.adapters, strict=True):
            given = clone.config.preprocess
            for found, expected in zip(loaded.build(ours, given), clone.build(theirs, given), strict=True):
                found, expected = found.state_dict(), expected.state_dict()
                assert found.keys() == expected.keys()
                assert all(torch.equal(found[name], expected[name]) for name in expected)
            assert loaded.run_probe(ours) == 0

    def test_logits_are_equal(self, made):
        target, clone, folder = made
        batch = images()
        with torch.no_grad():
            with pnc_hub.attach(target, clone):
                expected = target(batch)
            with pnc_hub.attach(target, folder):
                found = target(batch)
        assert expected.shape == (4, 8)
        assert torch.equal(found, expected)


class TestDamage:
    @pytest.mark.parametrize("name", ["model.safetensors", "trunk.safetensors", "adapters/universal.safetensors"])
    def test_a_flipped_byte_is_found(self, clone_folder, target, name):
        flip(clone_folder / name)
        edit(clone_folder, lambda config: drop(config, 0))  # the universal one stays
        with (
            pytest.raises(IntegrityError, match="force_download") as error,
            pytest.warns(UserWarning, match="no adapter"),
        ):
            pnc_hub.attach(target, clone_folder)
        assert (error.value.file, error.value.repo_id) == (name, str(clone_folder))

    @pytest.mark.parametrize("interior", [True, False])
    def test_a_flipped_byte_of_the_adapter_in_use_matters_alone(self, clone_folder, target, interior):
        used = adapter_file(clone_folder)
        flip(used if interior else clone_folder / "adapters/universal.safetensors")
        if not interior:
            pnc_hub.attach(target, clone_folder).detach()
            return
        with pytest.raises(IntegrityError) as error:
            pnc_hub.attach(target, clone_folder)
        assert error.value.file == f"adapters/{used.name}"

    def test_no_byte_of_the_configuration_makes_another_error(self, clone_folder, target):
        data = (clone_folder / "config.json").read_bytes()
        for position in range(0, len(data), 97):
            (clone_folder / "config.json").write_bytes(
                data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]
            )
            with suppress(ArtifactError):
                clone = Clone.from_pretrained(clone_folder)
                for adapter in clone.config.adapters:
                    clone.build(adapter, Preprocess.of(target))

    def test_a_flipped_byte_of_the_probe(self, clone_folder):
        flip(clone_folder / "probe.safetensors")
        clone = Clone.from_pretrained(clone_folder)
        with pytest.raises(IntegrityError) as error:
            clone.run_probe(clone.config.adapters[0])
        assert (error.value.file, error.value.repo_id) == ("probe.safetensors", str(clone_folder))
        with pytest.raises(IntegrityError):
            clone.save_pretrained(clone_folder.parent / "copy")
        assert not (clone_folder.parent / "copy").exists()

    @pytest.mark.parametrize("name", ["config.json", "model.safetensors", "adapters"])
    def test_a_missing_file(self, clone_folder, target, name):
        path = clone_folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        with pytest.raises(CloneNotFoundError, match="no such file") as error:
            pnc_hub.attach(target, clone_folder)
        assert error.value.file.startswith(name)
        assert error.value.repo_id == str(clone_folder)

    @pytest.mark.parametrize("kind", ["file", "folder"])
    def test_a_file_in_the_place_of_a_folder_and_the_other_way_round(self, clone_folder, target, kind):
        if kind == "file":
            shutil.rmtree(clone_folder / "adapters")
            (clone_folder / "adapters").write_text("")
        else:
            (clone_folder / "model.safetensors").unlink()
            (clone_folder / "model.safetensors").mkdir()
        with pytest.raises(ArtifactError):
            pnc_hub.attach(target, clone_folder)

    def test_swapped_tensors_of_the_right_shape(self, clone_folder, target):
        """What the configuration records is what counts, not that a file is a good file."""
        other = tiny_clone(tiny_model("resnet", seed=5), target).save_pretrained(clone_folder.parent / "other")
        shutil.copy(other / "model.safetensors", clone_folder / "model.safetensors")
        with pytest.raises(IntegrityError):
            pnc_hub.attach(target, clone_folder)

    def test_no_sha256_recorded(self, clone_folder, target):
        edit(clone_folder, lambda config: config["files"].pop("model.safetensors"))
        with pytest.raises(MalformedArtifactError, match="records no sha256"):
            pnc_hub.attach(target, clone_folder)

    def test_a_probe_that_is_not_met(self, clone_folder):
        path = clone_folder / "probe.safetensors"
        tensors = files.safetensors.torch.load_file(path)
        logits = next(name for name in tensors if name.endswith("logits"))
        tensors[logits] += 1
        path.write_bytes(files.tensor_bytes(tensors))
        edit(clone_folder, lambda config: config["files"].update({"probe.safetensors": sha256(path)}))
        clone = Clone.from_pretrained(clone_folder)
        with pytest.raises(ProbeError, match="more than the artifact allows"):
            clone.run_probe(clone.adapter(logits.rpartition("/")[0]))

    @pytest.mark.parametrize(
        "replace",
        [
            lambda tensors, name: tensors.pop(f"{name}/feature"),
            lambda tensors, name: tensors.update({f"{name}/feature": tensors[f"{name}/feature"].double()}),
            lambda tensors, name: tensors.update({f"{name}/feature": torch.zeros(())}),
            lambda tensors, name: tensors.update({f"{name}/logits": torch.zeros(2, 4)}),
            lambda tensors, name: tensors.update({"surplus": torch.zeros(1)}),
            lambda tensors, name: tensors.update({k: v[:0] for k, v in tensors.items()}),
        ],
    )
    def test_a_probe_of_another_form(self, clone_folder, replace):
        path = clone_folder / "probe.safetensors"
        tensors = files.safetensors.torch.load_file(path)
        replace(tensors, adapter_file(clone_folder).stem)
        path.write_bytes(files.tensor_bytes(tensors))
        edit(clone_folder, lambda config: config["files"].update({"probe.safetensors": sha256(path)}))
        clone = Clone.from_pretrained(clone_folder)
        with pytest.raises(MalformedArtifactError) as error:
            clone.run_probe(clone.config.adapters[0])
        assert error.value.file == "probe.safetensors"


class TestBuilding:
    def test_what_does_not_run_is_found_each_time_and_harms_nothing_else(self, clone_folder, target):
        """That one tail has been found to run is remembered for just that one."""
        good, bad = (Clone.from_pretrained(clone_folder) for _ in range(2))
        layer = next(
            name
            for name in files.read_header(clone_folder / files.WEIGHTS, "").tensors
            if name.endswith("conv1.weight")
        )
        height, *others = files.read_header(clone_folder / files.WEIGHTS, "").tensors[layer].shape
        bad.config.tail.shapes[layer] = [height - 1, *others]
        good.build(good.config.adapters[0], Preprocess.of(target))
        for _ in range(2):
            with pytest.raises(MalformedArtifactError, match="does not run") as error:
                bad.build(bad.config.adapters[0], Preprocess.of(target))
            assert error.value.file == "config.json"
            good.build(good.config.adapters[0], Preprocess.of(target))

    @pytest.mark.slow
    def test_graphs_that_were_compiled_of_one_module_serve_the_next(self, saved_clone):
        count = CompileCounter()
        run = torch.compile(lambda module, feature: module(feature)[0], backend=count)
        for _ in range(3):
            clone = Clone.from_pretrained(saved_clone)
            module, _ = clone.build(clone.config.adapters[0], clone.config.preprocess)
            feature = torch.randn_like(empty(clone.config.adapters[0].insertion, batch=2))
            assert torch.equal(run(module, feature), module(feature)[0])
        assert count.frame_count == 1


class TestReading:
    def test_only_what_is_needed_is_read(self, clone_folder, target):
        for name in ("trunk.safetensors", "probe.safetensors", "adapters/universal.safetensors", "README.md"):
            (clone_folder / name).unlink()
        with pnc_hub.attach(target, clone_folder), torch.no_grad():
            assert target(images()).shape == (4, 10)

    def test_a_file_that_changes_later_changes_nothing(self, clone_folder, target):
        with pnc_hub.attach(target, clone_folder), torch.no_grad():
            expected = target(images())
            for path in (clone_folder / "model.safetensors", adapter_file(clone_folder)):
                with path.open("r+b") as file:
                    file.seek(-400, 2)
                    file.write(b"\0" * 400)
            assert torch.equal(target(images()), expected)

    @pytest.mark.parametrize(
        "name", ["nobody", "a/b/c", "../clone", "a--b/c", "user/", "/user/clone", "user/clo ne", "nul\0/x"]
    )
    def test_what_is_neither_a_folder_nor_an_id(self, name):
        with pytest.raises(CloneNotFoundError, match=r"1\. a folder .* Received") as error:
            Clone.from_pretrained(name)
        assert error.value.repo_id == name

    def test_it_says_where_it_came_from(self, clone_folder):
        loaded = Clone.from_pretrained(clone_folder)
        assert repr(loaded) == f"Clone(ant, bee, wasp of resnet18, from {clone_folder})"
        assert (loaded.repo_id, loaded.revision) == (str(clone_folder), None)

    def test_adapters_by_name(self, clone_folder):
        loaded = Clone.from_pretrained(clone_folder)
        assert loaded.adapter("universal").target is None
        with pytest.raises(CloneNotFoundError, match=r"no adapter 'other'; its adapters are .*universal"):
            loaded.adapter("other")


class TestSaving:
    @pytest.fixture
    def other(self, clone_folder) -> Clone:
        """Another clone than the one in ``clone_folder``: without the universal adapter."""
        copy = clone_folder.parent / "source-of-other"
        shutil.copytree(clone_folder, copy)
        edit(copy, lambda config: (drop(config, 1), config["files"].pop("trunk.safetensors")))
        probe = files.safetensors.torch.load_file(copy / "probe.safetensors")
        (copy / "probe.safetensors").write_bytes(
            files.tensor_bytes({name: value for name, value in probe.items() if "universal" not in name})
        )
        digest = sha256(copy / "probe.safetensors")
        edit(copy, lambda config: config["files"].update({"probe.safetensors": digest}))
        return Clone.from_pretrained(copy)

    def test_an_older_clone_is_replaced_whole(self, clone_folder, other, tmp_path):
        other.save_pretrained(clone_folder)
        assert contents(clone_folder) == contents(other.save_pretrained(tmp_path / "fresh"))
        assert not (clone_folder / "trunk.safetensors").exists()

    def test_a_clone_can_be_saved_where_it_was_read(self, clone_folder):
        before = contents(clone_folder)
        Clone.from_pretrained(clone_folder).save_pretrained(clone_folder)
        assert contents(clone_folder) == before

    def test_a_new_nested_folder(self, other, tmp_path):
        assert other.save_pretrained(tmp_path / "a" / "b") == tmp_path / "a" / "b"
        (tmp_path / "empty").mkdir()
        assert other.save_pretrained(str(tmp_path / "empty")) == tmp_path / "empty"

    @pytest.mark.parametrize("mask", [0o022, 0o027])
    def test_files_have_the_mode_that_the_umask_gives(self, other, tmp_path, mask):
        before = os.umask(mask)
        try:
            folder = other.save_pretrained(tmp_path / "shared")
        finally:
            os.umask(before)
        for path in (folder, *folder.rglob("*")):
            assert stat.S_IMODE(path.stat().st_mode) == (0o777 if path.is_dir() else 0o666) & ~mask

    def test_a_link_to_a_folder_stays_a_link(self, clone_folder, other, tmp_path):
        (tmp_path / "link").symlink_to(clone_folder)
        other.save_pretrained(tmp_path / "link")
        assert (tmp_path / "link").is_symlink()
        assert Clone.from_pretrained(clone_folder).config == other.config

    @pytest.mark.parametrize(
        "foreign", ["notes.txt", "adapters/notes.txt", "adapters/deeper/a.safetensors", ".git/HEAD"]
    )
    def test_files_of_others_are_not_deleted(self, clone_folder, other, foreign):
        (clone_folder / foreign).parent.mkdir(exist_ok=True)
        (clone_folder / foreign).write_text("mine")
        before = contents(clone_folder)
        with pytest.raises(PublishError, match="something else than a clone"):
            other.save_pretrained(clone_folder)
        assert contents(clone_folder) == before

    @pytest.mark.parametrize("config", ['{"architecture": "resnet18"}', "[]", "{", '{"library_name": "timm"}'])
    def test_another_librarys_model_is_not_deleted(self, other, tmp_path, config):
        folder = tmp_path / "theirs"
        folder.mkdir()
        (folder / "config.json").write_text(config)
        (folder / "model.safetensors").write_bytes(b"weights")
        before = contents(folder)
        with pytest.raises(PublishError):
            other.save_pretrained(folder)
        assert contents(folder) == before

    def test_a_file_is_not_replaced(self, other, tmp_path):
        (tmp_path / "file").write_text("mine")
        for path in (tmp_path / "file", tmp_path / "file" / "below"):
            with pytest.raises(PublishError):
                other.save_pretrained(path)
        assert (tmp_path / "file").read_text() == "mine"

    @pytest.mark.parametrize("interruption", [KeyboardInterrupt, OSError, MemoryError])
    @pytest.mark.parametrize("step", ["write_bytes", "rename"])
    @pytest.mark.parametrize("call", [1, 2])
    def test_an_interruption_leaves_the_older_clone(self, clone_folder, other, monkeypatch, interruption, step, call):
        """The file system fails at the first or second call of one of the operations that saving consists of."""
        before, beside = contents(clone_folder), set(clone_folder.parent.iterdir())
        real, calls = getattr(Path, step), []

        def failing(self, *args, **kwargs):
            calls.append(self)
            if len(calls) == call:
                raise interruption
            return real(self, *args, **kwargs)

        with monkeypatch.context() as patched:
            patched.setattr(Path, step, failing)
            with pytest.raises(PublishError if interruption is OSError else interruption):
                other.save_pretrained(clone_folder)
        assert contents(clone_folder) == before
        assert set(clone_folder.parent.iterdir()) == beside


@pytest.mark.parametrize("name", ["a" * 5000, "folder/\0", "/" * 5000 + "a" * 300], ids=["long", "nul", "deep"])
def test_names_that_no_folder_can_have(name):
    with pytest.raises(CloneNotFoundError, match="no such folder, and not a Hub id"):
        Clone.from_pretrained(name)
