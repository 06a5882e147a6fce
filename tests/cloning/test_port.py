"""``pnc_hub.port`` as a whole, on tiny networks and images made of coloured squares."""

import hashlib

import pytest
import torch
from common import tiny_clone, tiny_model
from conftest import what_it_is
from torch import nn
from torch.utils.data import TensorDataset

from cloning.learning import CLASSES, OLD, squares, trained
from pnc_hub import attachment
from pnc_hub.artifact import files
from pnc_hub.cloning.learn import clone as learn_clone
from pnc_hub.cloning.port import Recalled, port
from pnc_hub.errors import DataError, InsertionPointError, NoClassifierError, SourceError, TargetError
from pnc_hub.hub.clone import Clone

NEW = squares(CLASSES.values(), 20, seed=4)
EVERYTHING = TensorDataset(torch.cat([NEW.tensors[0], OLD.tensors[0]]), torch.zeros(len(NEW) + len(OLD)))


@pytest.fixture(scope="module")
def made() -> Clone:
    """A clone of a trained source, with its first layers, made for a convnext."""
    torch.manual_seed(0)
    source = trained(tiny_model("resnet", seed=1), squares(range(7), 12, seed=5))
    return learn_clone(
        source,
        trained(tiny_model("convnext"), OLD),
        CLASSES,
        squares(CLASSES.values(), 12),
        target_data=OLD,
        insertion="stages.1",
        cut="layer2.1",
        keep=0.9,
        epochs=0,
        source_args={"channels": (8, 16, 24, 32), "stem_width": 8},
        device="cpu",
        progress=False,
    )


@pytest.fixture(scope="module")
def vit() -> nn.Module:
    torch.manual_seed(0)
    model = tiny_model("vit")
    convention = tiny_model("resnet").pretrained_cfg  # the squares are normalised for all of them alike
    model.pretrained_cfg = {**model.pretrained_cfg, "mean": convention["mean"], "std": convention["std"]}
    return trained(model, OLD)


def ported(made, target, images=NEW, **options):
    return port(made, target, images, **{"target_data": OLD, "device": "cpu", "progress": False, **options})


@pytest.fixture(scope="module")
def once(made, vit) -> Clone:
    return ported(made, vit)


def digests(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*.safetensors")
    }


def test_one_more_target_and_nothing_else_is_changed(made, vit, tmp_path):
    before, target_before = digests(made.save_pretrained(tmp_path / "before")), what_it_is(vit)
    result = ported(made, vit)
    after = digests(result.save_pretrained(tmp_path / "after"))
    first, second, universal = result.config.adapters
    assert after.pop(second.file)
    assert {name for name in after if after[name] != before[name]} == {files.PROBE}
    assert (first.metrics, universal.target) == (made.config.adapters[0].metrics, None)
    assert second.target.architecture == "vit_tiny_patch16_224"
    assert len(made.config.adapters) == 2
    assert digests(made.save_pretrained(tmp_path / "before")) == before
    assert what_it_is(vit) == target_before


def test_the_new_adapter_is_used_by_its_target_and_answers_as_the_source(made, once, vit, tmp_path):
    read = Clone.from_pretrained(once.save_pretrained(tmp_path / "clone"))
    held_out = squares(CLASSES.values(), 20, seed=9).tensors[0]
    with torch.inference_mode(), attachment.attach(vit, read) as joined:
        logits = vit(held_out)
        joined.verify()
        taught = Recalled(made, vit, torch.device("cpu")).teach(held_out).cloned.argmax(1)
        assert (logits.argmax(1) == taught + 7).float().mean() > 0.8
    for adapter in read.config.adapters:
        assert read.run_probe(adapter) == 0.0


def test_the_report_says_how_it_does_beside_the_source(made, once):
    result = once
    ((name, metrics),) = result.report.ported.items()
    assert name == result.config.adapters[1].name
    assert metrics["agreement_among_cloned"] > 0.8
    assert metrics["agreement"] > 0.7
    assert metrics["diverted"] < 0.3
    assert metrics["restored"] is True
    assert metrics["ori"] == pytest.approx(metrics["target_alone"], abs=0.3)
    assert metrics["adapter_bytes"] == result.nbytes(result.config.adapters[1].file)
    assert metrics["cut"] == "layer2.1"
    assert f"{100 * metrics['agreement']:.1f} %" in str(result.report)
    assert result.report.metrics == made.report.metrics


def test_images_without_labels_and_of_both_sides_are_enough(made, vit):
    """The gate is then fitted on what the source does not take for its own."""
    result = ported(made, vit, [image for image, _ in EVERYTHING], target_data=None)
    metrics = result.config.adapters[1].metrics
    assert metrics["agreement"] > 0.7
    assert metrics["auroc"] > 0.8
    assert metrics["ori"] is None


def test_images_of_the_cloned_classes_alone_promise_nothing_of_others(made, vit):
    sure = TensorDataset(*squares(CLASSES.values(), 12).tensors)  # the very images that the gate was made on
    with pytest.warns(UserWarning, match="nothing can be said"):
        metrics = ported(made, vit, sure, target_data=None).config.adapters[1].metrics
    assert (metrics["diverted"], metrics["auroc"]) == (None, None)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes(made, once, vit, tmp_path):
    torch.manual_seed(1)
    first = digests(once.save_pretrained(tmp_path / "first"))
    state = torch.random.get_rng_state()
    assert digests(ported(made, vit).save_pretrained(tmp_path / "again")) == first
    assert torch.equal(torch.random.get_rng_state(), state)


def test_two_ports_one_after_the_other_from_a_folder(once, vit, tmp_path):
    again = ported(once.save_pretrained(tmp_path / "once"), tiny_model("regnet"), name="mine", insertion="s2")
    assert [adapter.name for adapter in again.config.adapters][2:] == ["mine", "universal"]
    assert again.config.adapters[2].insertion.name == "s2"
    assert len(again.report.ported) == 2
    with torch.inference_mode(), attachment.attach(vit, again) as joined:
        joined.verify()


def test_published_in_the_same_place_it_is_one_small_commit(made, vit, api, repo, token):
    def held():
        return {file.rfilename: file.blob_id for file in api.model_info(repo, files_metadata=True).siblings}

    made.push_to_hub(repo, token=token)
    before, commits = held(), len(api.list_repo_commits(repo))
    result = ported(Clone.from_pretrained(repo, token=token), vit)
    result.push_to_hub(repo, token=token)
    after, name = held(), result.config.adapters[1].name
    changed = {path for path in after if after[path] != before.get(path)}
    new = {f"adapters/{name}.safetensors", f"figures/insertion-{name}.png", f"figures/gate-{name}.png"}
    assert changed == {"README.md", files.CONFIG, files.PROBE, *new}
    assert before.keys() < after.keys()
    assert len(api.list_repo_commits(repo)) == commits + 1
    with torch.inference_mode(), attachment.attach(vit, f"{repo}@main", token=token) as joined:
        joined.verify()
        assert vit(NEW.tensors[0][:2]).shape == (2, 10)


def test_a_locality_budget_is_calibrated_on_the_targets_images(made, once, vit):
    strict = ported(made, vit, locality_budget=0.15).config.adapters[1]
    assert strict.metrics["diverted"] <= once.config.adapters[1].metrics["diverted"]
    with pytest.raises(DataError, match="give them as target_data"):
        ported(made, vit, EVERYTHING, target_data=None, locality_budget=0.2)


def test_without_the_sources_first_layers_it_says_what_to_do(vit):
    bare = tiny_clone(tiny_model("resnet", seed=1), tiny_model("convnext"), universal=False)
    with pytest.raises(SourceError, match=r"trunk\.safetensors.*universal=True"):
        ported(bare, vit)


def test_a_target_that_has_an_adapter_already_is_refused(once, vit):
    with pytest.raises(TargetError, match=rf"already, '{once.config.adapters[1].name}'"):
        ported(once, vit)


@pytest.mark.parametrize(
    ("options", "error", "found"),
    [
        ({"insertion": "blocks.9"}, InsertionPointError, "blocks.9"),
        ({"insertion": "input"}, InsertionPointError, "interior"),
        ({"images": squares(range(10, 17), 4)}, DataError, "for a cloned class"),
        ({"images": "no/such/folder"}, DataError, "no/such/folder"),
        ({"name": "universal"}, ValueError, "universal"),
        ({"name": "../x"}, ValueError, "name='../x'"),
        ({"target_id": "no id"}, ValueError, "'no id' is no Hub id"),
        ({"locality_budget": 1.0}, ValueError, "locality_budget=1.0"),
        ({"held_out": 0.5}, ValueError, "held_out=0.5"),
        ({"batch_size": 0}, ValueError, "batch_size=0"),
    ],
)
def test_what_can_not_be_done_is_refused_and_nothing_is_changed(made, vit, options, error, found):
    before, config = what_it_is(vit), made.config.to_dict()
    with pytest.raises(error, match=found):
        ported(made, vit, **options)
    assert what_it_is(vit) == before
    assert made.config.to_dict() == config


def test_a_model_that_can_not_take_a_clone_is_refused(made):
    with pytest.raises(NoClassifierError, match="num_classes=0"):
        ported(made, tiny_model("vit", num_classes=0))
    with pytest.raises(TargetError, match="int"):
        ported(made, 7)
