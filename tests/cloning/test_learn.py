"""``pnc_hub.clone`` as a whole, on tiny networks and images made of coloured squares."""

import random

import numpy as np
import pytest
import timm
import torch
from common import images, source_args, tiny_clone, tiny_model
from conftest import what_it_is
from PIL import Image
from torch.utils.data import Dataset, TensorDataset

import pnc_hub
from cloning.learning import CLASSES, NEW, OLD, contents, learn, squares, target_images, trained
from pnc_hub import attachment
from pnc_hub.errors import DataError, InsertionPointError, NoClassifierError, SourceError, TargetError
from pnc_hub.hub.clone import Clone
from pnc_hub.report import figures


@pytest.fixture
def source():
    return tiny_model("resnet", seed=1)


@pytest.fixture
def target():
    return tiny_model("convnext")


def test_the_report_says_what_was_measured(models, refined):
    report = refined.report
    fractions = ("ori", "tar", "avg", "diverted", "auroc", "avg_u", "target_alone", "source_alone")
    assert all(0 <= report[name] <= 1 for name in fractions)
    assert report["kl"] >= 0
    assert report["restored"] is True
    assert (report["insertion"], report["cut"], report["regime"]) == ("stages.1", "layer3.1", "R3")
    assert report["source_parameters"] == sum(parameter.numel() for parameter in models[0].parameters())
    assert 4 * report["kept_parameters"] <= report["bytes"] < 5 * report["kept_parameters"]
    assert report["trunk_bytes"] > 0
    assert report["images"] == 3 * (10 - 1) + 7 * (8 - 1)  # all but those that only the report reads
    assert report["seconds"] > 0
    assert "Clone of 3 classes: ant, bee, wasp" in str(report)


def test_what_figures_need_survives_in_the_artifact_and_photos_are_not_part_of_it(refined, tmp_path):
    loaded = Clone.from_pretrained(refined.save_pretrained(tmp_path / "clone"))
    drawn, before = figures.drawings(loaded.config), figures.drawings(refined.config)
    assert {drawing.name.split("-")[0] for drawing in drawn} >= {"accuracy", "gate", "confusion", "reliability"}
    assert [drawing.name for drawing in drawn] == [drawing.name for drawing in before]
    assert loaded.report.metrics == refined.report.metrics
    assert [adapter.series for adapter in loaded.config.adapters] == [one.series for one in refined.config.adapters]
    assert refined.report.photos
    assert loaded.report.photos == ()
    assert "data:image" in refined.report.save(tmp_path / "report.html").read_text()
    written = b"".join(path.read_bytes() for path in (tmp_path / "clone").rglob("*") if path.is_file())
    assert not any(photo.picture in written for photo in refined.report.photos)


@pytest.mark.slow
def test_refinement_teaches_the_clone_what_the_source_knows(target):
    """A source that was trained on the squares; the clone then tells the same classes apart through the target."""
    source = trained(tiny_model("resnet", seed=1), squares(range(7), 12, seed=5))
    shown = {"data": squares(CLASSES.values(), 40), "target_data": target_images(40)}
    report = learn(source, target, epochs=12, flip=False, **shown).report
    assert report["source_alone"] > 0.85
    assert report["tar"] > 0.8
    assert report["diverted"] < 0.2
    assert report["auroc"] > 0.95


def test_the_same_seed_gives_the_same_clone_and_another_seed_another(source, target, refined, closed, tmp_path):
    torch.manual_seed(1)
    first = contents(refined, tmp_path / "first")
    assert contents(learn(source, target), tmp_path / "again") == first
    other = contents(learn(source, target, seed=1, epochs=0), tmp_path / "other")
    assert other["model.safetensors"] != contents(closed, tmp_path / "closed")["model.safetensors"]


@pytest.mark.slow
def test_the_same_seed_prunes_the_same(source, target, tmp_path):
    first, again = (contents(learn(source, target, keep=0.4), tmp_path / name) for name in ("first", "again"))
    assert first == again


def everything(*models):
    numpy = np.random.get_state()
    return [what_it_is(model) for model in models], random.getstate(), numpy[1].tolist(), numpy[2]


def test_the_callers_modes_and_random_state_change_nothing_and_are_left_as_they_were(source, target, refined, tmp_path):
    source.train()
    target.train()
    target.stem.requires_grad_(False)
    source.layer1.register_forward_hook(lambda *_: None)
    before = everything(source, target)
    with torch.inference_mode():
        learned = learn(source, target)
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()
    assert everything(source, target) == before
    assert contents(learned, tmp_path / "learned") == contents(refined, tmp_path / "refined")


class Interrupted(Dataset):
    """Raises when the ``after``-th image is read."""

    def __init__(self, dataset, after, error):
        self.dataset, self.targets, self.left, self.error = dataset, dataset.tensors[1], after, error

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        self.left -= 1
        if self.left < 0:
            raise self.error
        return self.dataset[index]


@pytest.mark.parametrize(("after", "error"), [(0, OSError), (12, KeyboardInterrupt), (28, KeyboardInterrupt)])
def test_an_interruption_leaves_everything_as_it_was(source, target, after, error):
    """Before anything is learned, in between, and where the finished clone is attached to be measured."""
    before = everything(source, target)
    with pytest.raises(error):
        learn(source, target, data=Interrupted(NEW, after, error))
    assert everything(source, target) == before
    assert torch.is_grad_enabled()


def test_a_universal_clone_fits_a_target_it_has_not_seen(closed):
    other = tiny_model("regnet")
    with pytest.warns(UserWarning, match="not calibrated"), pnc_hub.attach(other, closed):
        assert other(images()).shape == (4, 10)


ALL = {str(index): index for index in range(7)}


@pytest.mark.parametrize(
    ("classes", "with_target"),
    [
        ({"ant": 1}, False),
        (ALL, True),
        pytest.param({"ant": 1}, True, marks=pytest.mark.slow),
        pytest.param(ALL, False, marks=pytest.mark.slow),
    ],
)
@pytest.mark.filterwarnings("ignore:the gate has seen:UserWarning")
def test_one_class_or_all_of_the_sources_with_and_without_images_of_the_target(source, target, classes, with_target):
    data = squares(classes.values(), 6)
    learned = learn(source, target, classes, data, target_data=OLD if with_target else None, universal=with_target)
    assert 0 <= learned.report["tar"] <= 1
    assert learned.report["regime"] == ("R3" if with_target else "R1")
    measured = [learned.report[name] is not None for name in ("ori", "avg", "diverted", "auroc", "kl", "target_alone")]
    assert measured == [with_target] * 6
    (place,) = learned.curve
    assert [place[name] is not None for name in ("avg_u", "auroc")] == [with_target] * 2
    assert 0 <= place["tar"] <= 1
    if not with_target:
        with pytest.raises(pnc_hub.errors.FingerprintMismatchError):
            pnc_hub.attach(tiny_model("regnet"), learned)


def test_images_of_the_sources_other_classes_stand_in_for_the_targets(source, target):
    report = learn(source, target, {"bee": 2}, squares(range(7), 10), target_data=None, epochs=0).report
    assert (report["images"], report["regime"]) == (10 - 1 + 60 - 6, "R2")
    assert report["ori"] is None
    assert 0 <= report["diverted"] <= 1


def test_without_any_other_images_a_warning_says_that_nothing_is_promised(source, target):
    with pytest.warns(UserWarning, match="nothing can be said of what it does to others"):
        learn(source, target, {"bee": 2}, squares([2], 10), target_data=None, epochs=0)


def test_labels_that_do_not_fit_the_source_are_noticed(source, target):
    """The source says one thing of every image here, so the classes that it never says are recognised by chance at most."""
    wrong = next(index for index in range(7) if index != int(source(squares([3], 4).tensors[0]).mode().values.argmax()))
    with pytest.warns(UserWarning, match="no more than by chance"):
        learn(source, target, {"bee": wrong}, squares([wrong], 10), target_data=None, epochs=0)


def test_photos_in_folders(source, target, tmp_path):
    rng = np.random.RandomState(0)
    for side, names in (("new", ("bee", "4")), ("old", "abcdefg")):
        for name in names:
            (tmp_path / side / name).mkdir(parents=True)
            for number in range(4):
                Image.fromarray(rng.randint(0, 255, (40, 50, 3), np.uint8)).save(
                    tmp_path / side / name / f"{number}.png"
                )
    learned = learn(
        source, target, {"bee": 2, "wasp": 4}, tmp_path / "new", target_data=str(tmp_path / "old"), epochs=0
    )
    assert learned.labels == ("bee", "wasp")
    assert learned.report["ori"] is not None


@pytest.mark.parametrize(("size", "channels"), [(40, 1), pytest.param(48, 3, marks=pytest.mark.slow)])
def test_a_source_of_other_size_and_channels(target, size, channels):
    overlay = {"input_size": (channels, size, size), "mean": (0.3,) * channels, "std": (0.2,) * channels}
    own = source_args("resnet")
    source = timm.create_model(
        "resnet18", num_classes=7, in_chans=channels, pretrained_cfg_overlay=overlay, **own
    ).eval()
    learned = learn(source, target, epochs=0)
    assert learned.config.preprocess.input_size == (channels, size, size)
    with torch.inference_mode(), pnc_hub.attach(target, learned) as joined:
        assert target(images()).shape == (4, 10)
        joined.verify()


def test_a_grey_target_takes_a_colour_source(source):
    overlay = {"input_size": (1, 32, 32), "mean": (0.5,), "std": (0.5,)}
    own = {"dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1)}
    target = timm.create_model("convnext_atto", num_classes=7, in_chans=1, pretrained_cfg_overlay=overlay, **own).eval()
    new, old = squares(CLASSES.values(), channels=1), target_images(4, channels=1)
    learned = learn(source, target, data=new, target_data=old, epochs=0)
    with torch.inference_mode(), pnc_hub.attach(target, learned):
        assert target(images(channels=1)).shape == (4, 10)


@pytest.mark.parametrize("dtype", [torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.slow)])
def test_a_target_in_half_precision(source, target, dtype):
    target.to(dtype)
    learned = learn(source, target, epochs=0)
    with torch.inference_mode(), pnc_hub.attach(target, learned):
        assert target(images().to(dtype)).dtype == dtype


def test_clones_that_are_attached_already_stay_and_take_no_part(source, target, closed):
    extra = tiny_clone(tiny_model("resnet", seed=3), target, labels=("cat", "dog"), rows=(0, 1))
    of_source = tiny_clone(target, source, family="convnext", labels=("cat", "dog"), rows=(0, 1))
    with pnc_hub.attach(target, extra), pnc_hub.attach(source, of_source):
        again = learn(source, target, epochs=0)
        assert [len(attachment.attachments(model)) for model in (source, target)] == [1, 1]
        assert target(images()).shape == (4, 9)
        with pnc_hub.attach(target, again):
            assert target(images()).shape == (4, 12)
    assert again.config.to_dict()["source"] == closed.config.to_dict()["source"]
    assert again.config.adapters[0].target == closed.config.adapters[0].target
    found, expected = ({**clone.report.metrics, "seconds": 0} for clone in (again, closed))
    assert found == expected


def test_a_budget_is_kept_and_one_that_can_not_be_kept_is_refused(source, target, closed):
    learned = learn(source, target, locality_budget=0.125, epochs=0)
    assert learned.report["diverted"] <= closed.report["diverted"]
    with pytest.raises(DataError, match=r"0\.01 .* at least 99 images of the target.* has 7 .* at least 0\.125"):
        learn(source, target, locality_budget=0.01)
    with pytest.raises(DataError, match="give them as target_data"):
        learn(source, target, locality_budget=0.2, target_data=None)
    with pytest.raises(
        DataError, match="give them as target_data"
    ):  # those of the source's other classes are not the target's
        learn(source, target, locality_budget=0.2, target_data=None, data=squares(range(7)))


@pytest.mark.parametrize(
    ("options", "error", "found"),
    [
        ({"insertion": "stages.9"}, InsertionPointError, "stages.9"),
        ({"cut": "layer9"}, InsertionPointError, "layer9"),
        ({"keep": 0.001}, SourceError, "allow more with keep="),
        ({"source_args": None}, SourceError, "source_args="),
        ({"classes": {"ant": 1, "yak": 9}}, SourceError, "0 to 6"),
        ({"classes": {"ant": 1, "fox": 5}}, DataError, "no images of fox"),
        ({"data": "no/such/folder"}, DataError, "no/such/folder"),
        ({"data": squares([1, 2], 10)}, DataError, "no images of wasp"),
        ({"data": squares(CLASSES.values(), 3)}, DataError, "4 at least"),
        ({"target_data": TensorDataset(torch.zeros(4, 3, 32, 32), torch.full((4,), 50))}, DataError, "no images"),
        ({"data": squares(CLASSES.values(), side=48)}, pnc_hub.errors.ImageError, r"\[3, 32, 32\]"),
        ({"keep": 0.0}, ValueError, "keep=0.0"),
        ({"keep": 1.5}, ValueError, "keep=1.5"),
        ({"locality_budget": 0.0}, ValueError, "locality_budget=0.0"),
        ({"locality_budget": 1.0}, ValueError, "locality_budget=1.0"),
        ({"epochs": -1}, ValueError, "epochs=-1"),
    ],
)
def test_what_can_not_be_done_is_refused_and_nothing_is_changed(source, target, options, error, found):
    before = everything(source, target)
    with pytest.raises(error, match=found):
        learn(source, target, **options)
    assert everything(source, target) == before


@pytest.mark.parametrize("which", ["source", "target"])
def test_models_without_a_classifier_are_refused(source, target, which):
    models = {"source": source, "target": target}
    with pytest.raises(NoClassifierError, match=f"the {which} .*num_classes=0"):
        learn(**{**models, which: tiny_model("resnet", num_classes=0)})
    with pytest.raises(TargetError, match=f"the {which} is a timm model"):
        learn(**{**models, which: 7})
