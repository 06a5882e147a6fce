"""``verify`` finds what is wrong with an artifact, file by file, and says what it could not look at."""

import json
import re

import pytest
import torch
from attachment.test_check import DAMAGES, edit_tensors
from common import tiny_clone, tiny_model
from hub_fixtures import edit
from huggingface_hub import CommitOperationAdd

from pnc_hub import Clone
from pnc_hub.artifact import files
from pnc_hub.errors import CloneNotFoundError, FormatVersionError, HubError, MalformedArtifactError
from pnc_hub.hub.verification import FAILED, OK, UNCHECKED, verify


def outcomes(found) -> dict[str, str]:
    assert len({finding.subject for finding in found.findings}) == len(found.findings)
    return {finding.subject: finding.outcome for finding in found.findings}


@pytest.fixture
def names(saved_clone) -> tuple[str, str]:
    """The adapter made for the target, and the universal one."""
    return tuple(adapter.name for adapter in Clone.from_pretrained(saved_clone).config.adapters)


def test_a_whole_artifact(saved_clone, names):
    found = verify(saved_clone)
    assert found.passed
    assert (found.repo_id, found.revision) == (str(saved_clone), None)
    weights = ["model.safetensors", "trunk.safetensors", *(f"adapters/{name}.safetensors" for name in names)]
    passed = ["config.json", *weights, *(f"probe of {name}" for name in names)]
    assert outcomes(found) == {
        **dict.fromkeys(passed, OK),
        **dict.fromkeys([f"feature of {names[0]}", "measurements", "other files"], UNCHECKED),
    }
    assert str(found).splitlines()[0] == f"{saved_clone}: passed"
    for subject in passed:
        assert subject in str(found)
    assert json.loads(json.dumps(found.to_dict()))["passed"] is True


def test_a_clone_in_memory(target):
    assert verify(tiny_clone(tiny_model("resnet"), target, keep=0.4)).passed


@pytest.mark.parametrize("file", ["model.safetensors", "trunk.safetensors", "adapters/{}.safetensors"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_each_damaged_file_is_named_and_the_others_are_checked(clone_folder, names, damage, file):
    name = file.format(names[0])
    whole = outcomes(verify(clone_folder))
    DAMAGES[damage](clone_folder, name)
    found = verify(clone_folder)
    assert not found.passed
    weights = {subject for subject in whole if subject.endswith("safetensors")}
    assert {subject: outcomes(found)[subject] for subject in weights} == {**dict.fromkeys(weights, OK), name: FAILED}
    assert outcomes(found)["probes"] == UNCHECKED
    assert "1 failed" in str(found)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_probe(clone_folder, names, damage):
    DAMAGES[damage](clone_folder, "probe.safetensors")
    found = outcomes(verify(clone_folder))
    assert [found[f"probe of {name}"] for name in names] == [FAILED, FAILED]
    assert found["model.safetensors"] == OK


def test_two_damaged_files(clone_folder, names):
    for name in ("model.safetensors", "trunk.safetensors"):
        DAMAGES["cut"](clone_folder, name)
    found = outcomes(verify(clone_folder))
    assert (found["model.safetensors"], found["trunk.safetensors"]) == (FAILED, FAILED)
    assert found[f"adapters/{names[0]}.safetensors"] == OK


@pytest.mark.parametrize(
    ("file", "tensor", "value", "said"),
    [
        ("model.safetensors", "head.bias", float("nan"), "NaN or infinity"),
        ("trunk.safetensors", "trunk.conv1.weight", float("inf"), "NaN or infinity"),
    ],
)
def test_numbers(clone_folder, file, tensor, value, said):
    edit_tensors(clone_folder, file, lambda tensors: tensors[tensor].fill_(value))
    found = next(finding for finding in verify(clone_folder).findings if finding.subject == file)
    assert found.outcome == FAILED
    assert said in found.detail


@pytest.mark.parametrize(
    ("file", "tensor", "missed"),
    [
        ("model.safetensors", "head.weight", [0, 1]),  # by both probes
        ("trunk.safetensors", "trunk.conv1.weight", [1]),
        ("adapters/{0}.safetensors", "adapter.map.weight", [0]),
        ("probe.safetensors", "{0}/logits", [0]),
        ("probe.safetensors", "{1}/feature", [1]),
    ],
)
def test_numbers_that_are_not_those_that_were_published(clone_folder, names, file, tensor, missed):
    """All that is recorded agrees, and the clone is another one all the same: the probe tells."""
    edit_tensors(clone_folder, file.format(*names), lambda tensors: tensors[tensor.format(*names)].mul_(1.5))
    found = outcomes(verify(clone_folder))
    assert [index for index in (0, 1) if found[f"probe of {names[index]}"] == FAILED] == missed
    assert FAILED not in {outcome for subject, outcome in found.items() if not subject.startswith("probe of")}


def test_a_configuration_that_nothing_can_be_built_from(clone_folder, names):
    edit(clone_folder, lambda config: config["source"].update(architecture="resnet18x"))
    found = outcomes(verify(clone_folder))
    assert [found[f"adapter {name}"] for name in names] == [FAILED, FAILED]
    assert found["probes"] == UNCHECKED


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"{", MalformedArtifactError),
        (b'{"library_name": "pnc-hub", "format_version": 2}', FormatVersionError),
        (None, CloneNotFoundError),
    ],
)
def test_what_is_no_clone(clone_folder, content, error):
    (clone_folder / "config.json").unlink()
    if content:
        (clone_folder / "config.json").write_bytes(content)
    with pytest.raises(error):
        verify(clone_folder)


def test_other_files_are_named_and_not_opened(clone_folder, tmp_path):
    (clone_folder / "run.py").write_text("raise SystemExit")
    (clone_folder / "adapters" / "old.safetensors").symlink_to(tmp_path / "nowhere")
    (clone_folder / "a\x1b[31mb").write_text("")
    found = next(finding for finding in verify(clone_folder).findings if finding.subject == "other files")
    assert found.outcome == UNCHECKED
    for name in ("'run.py'", "'adapters/old.safetensors'", "'README.md'", "'a\\x1b[31mb'"):
        assert name in found.detail


def test_the_callers_state_is_left_alone(saved_clone):
    before = torch.random.get_rng_state()
    with torch.inference_mode():
        assert verify(saved_clone).passed
    assert torch.equal(torch.random.get_rng_state(), before)


class TestHub:
    def test_all_of_it_is_fetched(self, hub, repo, published, token, tmp_path, names):
        found = verify(repo, token=token, cache_dir=tmp_path)
        assert found.passed
        assert (found.repo_id, found.revision) == (repo, published)
        assert len({record.path for record in hub.requests if re.fullmatch("/lfs/[0-9a-f]{64}", record.path)}) == 5
        assert "'.gitattributes', 'README.md'" in str(found)

    def test_a_damaged_repository(self, api, repo, published, saved_clone, token, tmp_path):
        data = (saved_clone / "model.safetensors").read_bytes()
        api.create_commit(repo, [CommitOperationAdd("model.safetensors", data[:-1])], commit_message="cut")
        found = outcomes(verify(repo, token=token, cache_dir=tmp_path))
        assert found["model.safetensors"] == FAILED
        assert found["trunk.safetensors"] == OK
        assert verify(repo, revision=published, token=token, cache_dir=tmp_path).passed

    @pytest.mark.parametrize("request_", ["GET /lfs/", "GET .*/tree/"])
    def test_a_hub_that_fails_is_no_outcome(self, hub, repo, published, token, tmp_path, impatient, request_):
        with hub.fail(request_, status=503, times=100), pytest.raises(HubError) as error:
            verify(repo, token=token, cache_dir=tmp_path)
        assert error.value.repo_id == repo


def test_the_probe_of_images_is_not_that_of_the_target_alone(clone_folder, names):
    """Where the first layers are there, the answer to an image is checked: all of the source that the clone holds."""
    shipped = files.safetensors.torch.load_file(clone_folder / "probe.safetensors")
    details = {finding.subject: finding.detail for finding in verify(clone_folder).findings}
    assert shipped[f"{names[1]}/feature"].dim() == 4
    assert details[f"probe of {names[1]}"].startswith("from image to logits")
    assert details[f"probe of {names[0]}"].startswith("from feature to logits")
