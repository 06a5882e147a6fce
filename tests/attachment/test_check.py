"""``check`` says yes exactly where ``attach`` succeeds, why not where it does not, and fetches no weights to know."""

import copy
import json
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from common import tiny_clone, tiny_model
from hostile.harness import reseal
from hub_fixtures import edit
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from torch import nn

import pnc_hub
from pnc_hub import Clone
from pnc_hub.artifact import files
from pnc_hub.errors import (
    ClassCollisionError,
    CloneNotFoundError,
    FingerprintMismatchError,
    HubError,
    IntegrityError,
    MalformedArtifactError,
    NoClassifierError,
    PncHubError,
    TargetError,
)
from pnc_hub.models.cost import macs
from pnc_hub.models.insertion import empty
from pnc_hub.models.preprocess import Preprocess


def agreed(model, clone, **options) -> pnc_hub.Compatibility:
    """What ``check`` says, found to be what ``attach`` then does."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = pnc_hub.check(model, clone, **options)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        attachment, problem = tried(model, clone, **options)
    assert (type(found.problem), str(found.problem)) == (type(problem), str(problem))
    assert found.attaches is (attachment is not None)
    if attachment is None:
        return found
    assert found.warnings == tuple(str(warning.message) for warning in told)
    branch = attachment._joined
    assert (found.adapter, found.insertion) == (branch.adapter.name, attachment.insertion)
    assert found.parameters == sum(parameter.numel() for parameter in branch.parameters())
    attachment.detach()
    return found


def tried(model, clone, **options) -> tuple[pnc_hub.Attachment | None, PncHubError | None]:
    try:
        return pnc_hub.attach(model, clone, **options), None
    except PncHubError as error:
        return None, error


@pytest.fixture(scope="session")
def inside_only(tmp_path_factory, _target):
    """A clone that has no universal adapter."""
    clone = tiny_clone(tiny_model("resnet"), _target, universal=False)
    return clone.save_pretrained(tmp_path_factory.mktemp("saved") / "inside")


def other_weights(model: nn.Module) -> nn.Module:
    next(model.parameters()).data.add_(1)
    return model


def other_head(model: nn.Module, classes: int) -> nn.Module:
    with torch.random.fork_rng():
        model.reset_classifier(classes)
    return model


def grey(model: nn.Module) -> nn.Module:
    with torch.random.fork_rng():
        return timm.create_model(
            "resnet18", in_chans=1, num_classes=7, pretrained_cfg_overlay={"input_size": (1, 32, 32)}
        )


def named(model: nn.Module, *names: str) -> nn.Module:
    model.pretrained_cfg = {**model.pretrained_cfg, "label_names": [*names, *"cdefghijk"][: model.num_classes]}
    return model


MODELS = {
    "itself": lambda model: model,
    "training": lambda model: model.train(),
    "half": lambda model: model.half(),
    "bfloat16, channels_last": lambda model: model.bfloat16().to(memory_format=torch.channels_last),
    "another head": lambda model: other_head(model, 3),
    "no head": lambda model: other_head(model, 0),
    "other weights": other_weights,
    "on the meta device": lambda model: model.to("meta"),
    "another architecture": lambda model: tiny_model("vit"),
    "grey images": lambda model: grey(model),
    "compiled": torch.compile,
    "traced": lambda model: torch.jit.trace(model, torch.zeros(1, 3, 32, 32)),
    "DataParallel": nn.DataParallel,
    "no model": lambda model: "resnet18",
    "names of its own": lambda model: named(model, "cat", "dog"),
    "two of the names": lambda model: named(model, "Bee", "dog", "ant"),
}
SLOW = ("compiled", "traced", "bfloat16, channels_last", "DataParallel", "no model", "no head", "two of the names")


def edit_tensors(folder: Path, file: str, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Let ``change`` change the tensors of a file of a saved clone, which goes on being one."""
    tensors = files.safetensors.torch.load_file(folder / file)
    change(tensors)
    (folder / file).write_bytes(files.tensor_bytes(tensors))
    reseal(folder, file)


def unrecord(folder: Path, file: str) -> None:
    def change(config: dict) -> None:
        config["files"].pop(file, None)

    edit(folder, change)


def flip(folder: Path, file: str) -> None:
    data = bytearray((folder / file).read_bytes())
    data[-1] ^= 1
    (folder / file).write_bytes(data)


def make_folder(folder: Path, file: str) -> None:
    (folder / file).unlink()
    (folder / file).mkdir()


DAMAGES = {
    "missing": lambda folder, file: (folder / file).unlink(),
    "cut": lambda folder, file: (folder / file).write_bytes((folder / file).read_bytes()[:-1]),
    "flipped": flip,
    "other tensors": lambda folder, file: edit_tensors(
        folder, file, lambda tensors: tensors.update(more=torch.zeros(1))
    ),
    "no digest": unrecord,
    "a folder": make_folder,
}


class TestAgreement:
    @pytest.mark.parametrize(
        ("model", "kind"),
        [
            pytest.param(model, kind, marks=[pytest.mark.slow] if kind == "universal" and model in SLOW else [])
            for model in MODELS
            for kind in ("universal", "inside only")
        ],
    )
    def test_models(self, target, clone_folder, inside_only, model, kind):
        found = agreed(MODELS[model](copy.deepcopy(target)), clone_folder if kind == "universal" else inside_only)
        problem = {
            "no head": NoClassifierError,
            "traced": TargetError,
            "DataParallel": TargetError,
            "no model": TargetError,
            "two of the names": ClassCollisionError,
        }.get(model)
        if model in ("other weights", "on the meta device", "another architecture", "grey images"):
            problem = None if kind == "universal" else FingerprintMismatchError
            assert found.universal is (True if kind == "universal" else None)
        assert type(found.problem) is (problem or type(None))

    def test_numbers_beyond_the_models_precision(self, target, clone_folder):
        def enlarge(tensors: dict) -> None:
            next(value for name, value in tensors.items() if name.endswith("running_var")).view(-1)[0] = 1e6

        edit_tensors(clone_folder, "model.safetensors", enlarge)
        assert isinstance(agreed(copy.deepcopy(target).half(), clone_folder).problem, TargetError)
        assert agreed(copy.deepcopy(target).bfloat16(), clone_folder).attaches

    def test_a_later_adapter_that_could_not_be_used(self, tmp_path):
        vit = tiny_model("vit")
        folder = tiny_clone(tiny_model("resnet"), vit, universal=False).save_pretrained(tmp_path / "clone")

        def add(config: dict) -> None:
            (first,) = config["adapters"]
            insertion = {**first["insertion"], "grid": [2, 8]}
            later = {**first, "name": "later", "insertion": insertion}
            config["adapters"].append(later)

        shutil.copy(next((folder / "adapters").iterdir()), folder / "adapters" / "later.safetensors")
        edit(folder, add)
        found = agreed(vit, folder)
        assert found.attaches
        assert "have an adapter made for this model" in found.others["later"]

    def test_attached_already(self, target, clone_folder):
        with pnc_hub.attach(target, clone_folder):
            found = agreed(target, clone_folder)
            assert found.collisions == ("ant", "bee", "wasp")
        assert agreed(target, clone_folder).collisions == ()

    @pytest.mark.parametrize("universal", [False, pytest.param(True, marks=pytest.mark.slow)])
    @pytest.mark.parametrize("file", ["model", "adapter", "trunk", "probe"])
    @pytest.mark.parametrize("damage", ["missing", "cut", "flipped", "other tensors", "no digest", "a folder"])
    def test_files(self, target, clone_folder, file, damage, universal):
        used = Clone.from_pretrained(clone_folder).config.adapters[-1 if universal else 0]
        name = used.file if file == "adapter" else f"{file}.safetensors"
        DAMAGES[damage](clone_folder, name)
        found = agreed(tiny_model("vit") if universal else target, clone_folder)
        needed = {"model", "adapter", "trunk"} if universal else {"model", "adapter"}
        assert found.attaches is (file not in needed)
        if not found.attaches:
            assert found.problem.file == name

    @pytest.mark.parametrize(
        ("change", "problem"),
        [
            (lambda config: config["source"].update(architecture="resnet18x"), MalformedArtifactError),
            (lambda config: config["source"].update(architecture="resnet34"), MalformedArtifactError),
            (lambda config: config.update(cut="layer9"), MalformedArtifactError),
            (lambda config: config["classes"][0].update(source_index=99), MalformedArtifactError),
            (lambda config: config["classes"].append({"label": "x", "source_index": 0}), MalformedArtifactError),
            (lambda config: config["adapters"][0]["insertion"].update(channels=7), MalformedArtifactError),
            (lambda config: config["adapters"][0]["insertion"].update(name="blocks.9"), type(None)),
            (lambda config: config["adapters"][0]["target"]["fingerprint"].update(float32="0" * 32), type(None)),
            (lambda config: config["adapters"].reverse(), type(None)),
        ],
    )
    def test_configurations(self, target, clone_folder, change, problem):
        edit(clone_folder, change)
        assert type(agreed(target, clone_folder).problem) is problem

    def test_a_clone_in_memory(self, target):
        clone = tiny_clone(tiny_model("resnet"), target, keep=0.4)
        assert agreed(target, clone).download == 0
        assert agreed(tiny_model("swin"), clone).universal

    @pytest.mark.parametrize("content", [b"", b"{}", b'{"library_name": "pnc-hub", "format_version": 9}', None])
    def test_where_there_is_no_clone_both_say_so(self, target, clone_folder, content):
        if content is None:
            shutil.rmtree(clone_folder)
        else:
            (clone_folder / "config.json").write_bytes(content)
        with pytest.raises(PncHubError) as checked:
            pnc_hub.check(target, clone_folder)
        with pytest.raises(type(checked.value)) as attached:
            pnc_hub.attach(target, clone_folder)
        assert str(checked.value) == str(attached.value)


class TestAnswer:
    def test_every_number_is_that_of_the_modules(self, target, clone_folder):
        clone = Clone.from_pretrained(clone_folder)
        for model, adapter in ((target, clone.config.adapters[0]), (tiny_model("vit"), clone.config.adapters[1])):
            found = pnc_hub.check(model, clone_folder)
            module, _ = clone.build(adapter, Preprocess.of(model))
            assert found.macs == macs(module, empty(adapter.insertion)) > 0
            read = {"model.safetensors", adapter.file} | ({"trunk.safetensors"} if found.universal else set())
            assert found.bytes == sum((clone_folder / name).stat().st_size for name in read)
            assert found.download == 0

    def test_why_the_others_are_not_used(self, target, clone_folder):
        made_for, universal = (adapter.name for adapter in Clone.from_pretrained(clone_folder).config.adapters)
        assert pnc_hub.check(target, clone_folder).others == {
            universal: "it would fit too; the one that is used comes first"
        }
        other = pnc_hub.check(tiny_model("resnet"), clone_folder)
        assert other.adapter == universal
        assert list(other.others) == [made_for]
        assert "was made for mobilenetv2_035" in other.others[made_for]
        assert "resnet18 up to the insertion point are others" in other.others[made_for]

    def test_collisions_do_not_hide_the_rest(self, target, clone_folder):
        found = pnc_hub.check(MODELS["two of the names"](copy.deepcopy(target)), clone_folder)
        assert found.collisions == ("ant", "bee")
        assert not found.attaches
        assert found.macs
        (clone_folder / "model.safetensors").unlink()
        assert isinstance(
            pnc_hub.check(MODELS["two of the names"](copy.deepcopy(target)), clone_folder).problem, ClassCollisionError
        )

    def test_what_was_measured(self, target, clone_folder):
        measured = {"tar": 0.875, "auroc": None, "mine": 3}
        edit(clone_folder, lambda config: config["adapters"][0].update(metrics=measured))
        found = pnc_hub.check(target, clone_folder)
        assert found.metrics == measured
        for text in ("87.5 %", "not measured", "yes", "3 classes: ant, bee, wasp", f"{found.macs:,}"):
            assert text in str(found)

    @pytest.mark.parametrize(("regime", "whose"), [("R2", "images of other classes"), ("R4", "target images")])
    def test_whose_images_were_diverted(self, target, clone_folder, regime, whose):
        measured = {"diverted": 0.0625, "regime": regime}
        edit(clone_folder, lambda config: config["adapters"][0].update(metrics=measured))
        assert re.search(rf"{whose} diverted.* 6\.2 %", str(pnc_hub.check(target, clone_folder)))

    def test_it_can_be_written_as_json(self, target, clone_folder):
        found = pnc_hub.check(MODELS["two of the names"](copy.deepcopy(target)), clone_folder)
        told = json.loads(json.dumps(found.to_dict()))
        assert told["attaches"] is False
        assert told["problem"]["type"] == "ClassCollisionError"
        assert told["labels"] == ["ant", "bee", "wasp"]

    def test_in_inference_mode_nothing_is_left_behind(self, target, clone_folder):
        with torch.inference_mode():
            pnc_hub.check(target, clone_folder)
        with pnc_hub.attach(target, clone_folder) as attachment:
            logits = target(torch.zeros(1, 3, 32, 32, requires_grad=True))
            logits[:, attachment.logit_slice].sum().backward()


class TestHub:
    def test_no_weights_are_fetched(self, hub, repo, published, target, token, tmp_path, monkeypatch):
        options = {"token": token, "cache_dir": tmp_path}
        found = pnc_hub.check(target, repo, **options)
        assert (found.repo_id, found.revision) == (repo, published)
        assert found.download == found.bytes > 240_000
        weights = [record for record in hub.requests if record.method == "GET" and "config.json" not in record.path]
        assert weights
        assert all(record.range == "bytes=0-16383" for record in weights)
        assert sum(record.bytes for record in hub.requests) < 32_000
        agreed(target, repo, **options)
        hub.requests.clear()
        assert pnc_hub.check(target, f"{repo}@{published}", **options).download == 0
        assert hub.requests == []

    def test_the_token_is_for_the_hub_alone(self, hub, repo, published, target, token, tmp_path):
        pnc_hub.check(target, repo, token=token, cache_dir=tmp_path)
        assert {record.authenticated for record in hub.requests if record.path.startswith("/lfs/")} == {False}

    def test_long_headers(self, hub, repo, published, target, token, tmp_path, monkeypatch):
        monkeypatch.setattr("pnc_hub.hub.download._FIRST", 100)
        agreed(target, repo, token=token, cache_dir=tmp_path)
        ranges = [record.range for record in hub.requests if record.path.startswith("/lfs/") and record.range]
        assert len(ranges) == 4
        assert ranges[0] == "bytes=0-99"

    def test_servers_that_know_no_ranges(self, hub, repo, published, target, token, tmp_path, monkeypatch):
        monkeypatch.setattr("loopback_hub.cdn.content_response", _whole)
        agreed(target, repo, token=token, cache_dir=tmp_path)

    @pytest.mark.parametrize("damage", ["missing", "flipped", "not safetensors", "short"])
    def test_damaged_repositories(self, api, repo, published, target, saved_clone, token, tmp_path, damage):
        data = bytearray((saved_clone / "model.safetensors").read_bytes())
        data[-1] ^= 1
        content = {"flipped": bytes(data), "not safetensors": bytes(300), "short": b"x"}.get(damage)
        operation = CommitOperationAdd("model.safetensors", content) if content else None
        api.create_commit(repo, [operation or CommitOperationDelete("model.safetensors")], commit_message="damage it")
        found = agreed_in_kind(target, repo, token=token, cache_dir=tmp_path)
        assert type(found.problem) is (CloneNotFoundError if damage == "missing" else IntegrityError)
        assert (found.problem.file, found.problem.repo_id) == ("model.safetensors", repo)

    def test_numbers_that_are_not_here_are_not_looked_at(self, target, clone_folder, repo, token, tmp_path):
        edit_tensors(clone_folder, "model.safetensors", lambda tensors: tensors["head.bias"].fill_(float("nan")))
        assert "NaN" in str(agreed(target, clone_folder).problem)
        api = HfApi(token=token)
        api.create_repo(repo)
        api.upload_folder(repo_id=repo, folder_path=clone_folder)
        options = {"token": token, "cache_dir": tmp_path}
        assert pnc_hub.check(target, repo, **options).attaches
        with pytest.raises(MalformedArtifactError, match="NaN"):
            pnc_hub.attach(target, repo, **options)
        assert not agreed(target, repo, **options).attaches

    def test_offline(self, hub, repo, published, target, token, tmp_path):
        options = {"token": token, "cache_dir": tmp_path, "local_files_only": True}
        with pytest.raises(CloneNotFoundError, match="not in the local cache"):
            pnc_hub.check(target, repo, **options)
        Clone.from_pretrained(repo, token=token, cache_dir=tmp_path)
        hub.requests.clear()
        assert not agreed(target, repo, **options).attaches
        pnc_hub.attach(target, repo, token=token, cache_dir=tmp_path).detach()
        hub.requests.clear()
        assert agreed(target, repo, **options).attaches
        assert hub.requests == []

    @pytest.mark.parametrize(("request_", "status"), [("paths-info", 503), ("GET .*model.safetensors", 403)])
    def test_a_hub_that_fails_is_no_answer(
        self, hub, repo, published, target, token, tmp_path, impatient, request_, status
    ):
        with hub.fail(request_, status=status, times=100) as fault:
            with pytest.raises(HubError) as error:
                pnc_hub.check(target, repo, token=token, cache_dir=tmp_path)
            assert fault.remaining < 100
        assert (error.value.repo_id, error.value.revision) == (repo, published)
        assert error.value.file == "model.safetensors"

    def test_a_hub_that_fails_for_a_moment(self, hub, repo, published, target, token, tmp_path, impatient):
        with hub.fail("paths-info", status=503), hub.fail("GET .*model.safetensors", status=503):
            assert pnc_hub.check(target, repo, token=token, cache_dir=tmp_path).attaches


def agreed_in_kind(model, clone, **options) -> pnc_hub.Compatibility:
    """As ``agreed`` of a "no", where the words may be others: one looks at the Hub's record, one at what arrived."""
    found = pnc_hub.check(model, clone, **options)
    with pytest.raises(PncHubError) as error:
        pnc_hub.attach(model, clone, **options)
    assert type(found.problem) is type(error.value)
    return found


def _whole(request, content, *, etag, headers=None):
    from loopback_hub.messages import Response

    return Response(200, content, {"ETag": f'"{etag}"', **(headers or {})})


def test_multiply_accumulates_of_modules_and_functions():
    layer, image = nn.Conv2d(3, 3, 3, padding=1, bias=False), torch.zeros(1, 3, 10, 10)
    assert macs(layer, image) == 3 * 3 * 9 * 100
    assert macs(lambda given: layer(layer(given)), image) == 2 * 3 * 3 * 9 * 100
