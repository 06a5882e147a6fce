"""``pnc_hub.clone`` as a whole, on tiny networks and images made of coloured squares."""

import json
import random

import numpy as np
import pytest
import timm
import torch
from common import images, source_args, tiny_clone, tiny_model
from conftest import what_it_is
from PIL import Image
from torch import nn
from torch.utils.data import Dataset, TensorDataset

import pnc_hub
from pnc_hub import attachment
from pnc_hub.errors import DataError, InsertionPointError, NoClassifierError, SourceError, TargetError
from pnc_hub.hub.clone import Clone
from pnc_hub.report import figures

CLASSES = {"ant": 1, "bee": 2, "wasp": 4}
PLACE = {"insertion": "stages.1", "cut": "layer3.1"}


def squares(classes, each=10, seed=0, channels=3, side=32):
    """Images of 4x4 coloured squares with noise; each class has its own squares."""
    centres = torch.randn(20, channels, 4, 4, generator=torch.Generator().manual_seed(99))
    labels = torch.tensor(list(classes)).repeat_interleave(each)
    noise = torch.randn(len(labels), channels, side, side, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(nn.functional.interpolate(centres[labels], size=(side, side)) + 0.3 * noise, labels)


def target_images(each=10, **options):
    shifted = squares(range(10, 17), each, **options)
    return TensorDataset(shifted.tensors[0], shifted.tensors[1] - 10)


NEW, OLD = squares(CLASSES.values()), target_images(8)


@pytest.fixture
def source():
    return tiny_model("resnet", seed=1)


@pytest.fixture
def target():
    return tiny_model("convnext")


def learn(source, target, classes=CLASSES, data=NEW, **options):
    """Quickly: at a fixed place, unpruned, and one pass, unless asked otherwise."""
    quick = {**PLACE, "keep": 1.0, "epochs": 1, "target_data": OLD, "source_args": source_args("resnet")}
    return pnc_hub.clone(source, target, classes, data, **{**quick, "device": "cpu", "progress": False, **options})


def contents(clone, folder):
    """File -> bytes; of the configuration what does not tell the time."""
    clone.save_pretrained(folder)
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.safetensors")}
    config = json.loads((folder / "config.json").read_text())
    del config["files"]["config.json"]  # its seal, which differs where the seconds do
    for adapter in config["adapters"]:
        adapter["metrics"].pop("seconds", None)
    return {**found, "config": config}


def test_the_whole_search_gives_a_clone_that_saves_loads_and_attaches(source, target, tmp_path):
    learned = learn(source, target, insertion=None, cut=None, keep=0.5)
    report = learned.report
    assert report["kept_parameters"] <= 0.5 * report["source_parameters"]
    assert report["insertion"] in {point.name for point in pnc_hub.insertion_points(target)}
    before, expected = what_it_is(target), target(images())
    loaded = Clone.from_pretrained(learned.save_pretrained(tmp_path / "clone"))
    assert loaded.labels == tuple(CLASSES)
    with torch.inference_mode(), pnc_hub.attach(target, loaded) as joined:
        assert target(images()).shape == (4, 10)
        assert torch.equal(target(images())[:, :7], expected)
        joined.verify()
    assert what_it_is(target) == before


def test_the_report_says_what_was_measured(source, target):
    report = learn(source, target).report
    fractions = ("ori", "tar", "avg", "diverted", "auroc", "avg_u", "target_alone", "source_alone")
    assert all(0 <= report[name] <= 1 for name in fractions)
    assert report["kl"] >= 0
    assert report["restored"] is True
    assert (report["insertion"], report["cut"], report["regime"]) == ("stages.1", "layer3.1", "R3")
    assert report["source_parameters"] == sum(parameter.numel() for parameter in source.parameters())
    assert 4 * report["kept_parameters"] <= report["bytes"] < 5 * report["kept_parameters"]
    assert report["trunk_bytes"] > 0
    assert report["images"] == 3 * (10 - 1) + 7 * (8 - 1)  # all but those that only the report reads
    assert report["seconds"] > 0
    assert "Clone of 3 classes: ant, bee, wasp" in str(report)


def test_the_figures_survive_in_the_artifact_and_photos_are_not_part_of_it(source, target, tmp_path):
    learned = learn(source, target)
    loaded = Clone.from_pretrained(learned.save_pretrained(tmp_path / "clone"))
    drawn, before = figures.drawings(loaded.config), figures.drawings(learned.config)
    assert {drawing.name.split("-")[0] for drawing in drawn} >= {"accuracy", "gate", "confusion", "reliability"}
    assert [drawing.png() for drawing in drawn] == [drawing.png() for drawing in before]
    assert loaded.report["ece"] == learned.report["ece"]
    assert learned.report.photos
    assert loaded.report.photos == ()
    pages = [one.report.save(tmp_path / "report.html").read_text() for one in (learned, loaded)]
    assert ["data:image" in page for page in pages] == [True, False]
    written = b"".join(path.read_bytes() for path in (tmp_path / "clone").rglob("*") if path.is_file())
    assert not any(photo.picture in written for photo in learned.report.photos)


@pytest.mark.slow
def test_refinement_teaches_the_clone_what_the_source_knows(target):
    """A source that was trained on the squares; the clone then tells the same classes apart through the target."""
    source = tiny_model("resnet", seed=1)
    x, y = squares(range(7), 12, seed=5).tensors
    optimizer = torch.optim.Adam(source.parameters(), 3e-3)
    source.train()
    for _ in range(25):
        nn.functional.cross_entropy(source(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    source.eval()
    shown = {"data": squares(CLASSES.values(), 40), "target_data": target_images(40)}
    report = learn(source, target, epochs=12, flip=False, **shown).report
    assert report["source_alone"] > 0.85
    assert report["tar"] > 0.8
    assert report["diverted"] < 0.2
    assert report["auroc"] > 0.95


@pytest.mark.parametrize("options", [{}, pytest.param({"keep": 0.4}, marks=pytest.mark.slow)])
def test_the_same_seed_gives_the_same_clone_and_another_seed_another(source, target, tmp_path, options):
    torch.manual_seed(1)
    first = contents(learn(source, target, **options), tmp_path / "first")
    torch.manual_seed(2)
    again = contents(learn(source, target, **options), tmp_path / "again")
    other = contents(learn(source, target, seed=1, **options), tmp_path / "other")
    assert first == again
    assert first["model.safetensors"] != other["model.safetensors"]


def everything(*models):
    numpy = np.random.get_state()
    return [what_it_is(model) for model in models], random.getstate(), numpy[1].tolist(), numpy[2]


@pytest.mark.parametrize("training", [False, True])
def test_the_callers_models_and_random_state_are_untouched(source, target, training):
    source.train(training)
    target.train(training)
    target.stem.requires_grad_(False)
    source.layer1.register_forward_hook(lambda *_: None)
    before = everything(source, target)
    learn(source, target)
    assert everything(source, target) == before
    assert torch.is_grad_enabled()


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


@pytest.mark.parametrize(("after", "error"), [(0, OSError), (60, KeyboardInterrupt), (200, KeyboardInterrupt)])
def test_an_interruption_leaves_everything_as_it_was(source, target, after, error):
    before = everything(source, target)
    with pytest.raises(error):
        learn(source, target, data=Interrupted(NEW, after, error), epochs=5)
    assert everything(source, target) == before
    assert torch.is_grad_enabled()


def test_where_gradients_are_switched_off_it_learns_all_the_same(source, target, tmp_path):
    expected = contents(learn(source, target), tmp_path / "expected")
    with torch.inference_mode():
        found = contents(learn(source, target), tmp_path / "found")
        assert not torch.is_grad_enabled()
    assert found == expected


@pytest.mark.parametrize("universal", [True, False])
def test_a_universal_clone_fits_a_target_it_has_not_seen(source, target, universal):
    learned = learn(source, target, universal=universal, epochs=0)
    other = tiny_model("regnet")
    if universal:
        with pytest.warns(UserWarning, match="not calibrated"), pnc_hub.attach(other, learned):
            assert other(images()).shape == (4, 10)
    else:
        with pytest.raises(pnc_hub.errors.FingerprintMismatchError):
            pnc_hub.attach(other, learned)


@pytest.mark.parametrize("classes", [{"ant": 1}, {str(index): index for index in range(7)}], ids=["one", "all"])
@pytest.mark.parametrize("with_target", [True, False])
def test_one_class_or_all_of_the_sources_with_and_without_images_of_the_target(source, target, classes, with_target):
    data = squares(classes.values(), 6)
    report = learn(source, target, classes, data, target_data=OLD if with_target else None).report
    assert 0 <= report["tar"] <= 1
    assert report["regime"] == ("R3" if with_target else "R1")
    measured = [report[name] is not None for name in ("ori", "avg", "diverted", "auroc", "kl", "target_alone")]
    assert measured == [with_target] * 6


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
    learned = learn(source, target, {"bee": 2, "wasp": 4}, tmp_path / "new", target_data=str(tmp_path / "old"))
    assert learned.labels == ("bee", "wasp")
    assert learned.report["ori"] is not None


@pytest.mark.parametrize(("size", "channels"), [(48, 3), (32, 1), (40, 1)])
def test_a_source_of_other_size_and_channels(target, size, channels):
    overlay = {"input_size": (channels, size, size), "mean": (0.3,) * channels, "std": (0.2,) * channels}
    own = source_args("resnet")
    source = timm.create_model(
        "resnet18", num_classes=7, in_chans=channels, pretrained_cfg_overlay=overlay, **own
    ).eval()
    learned = learn(source, target)
    assert learned.config.preprocess.input_size == [channels, size, size]
    with torch.inference_mode(), pnc_hub.attach(target, learned) as joined:
        assert target(images()).shape == (4, 10)
        joined.verify()


def test_a_grey_target_takes_a_colour_source(source):
    overlay = {"input_size": (1, 32, 32), "mean": (0.5,), "std": (0.5,)}
    own = {"dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1)}
    target = timm.create_model("convnext_atto", num_classes=7, in_chans=1, pretrained_cfg_overlay=overlay, **own).eval()
    new, old = squares(CLASSES.values(), channels=1), target_images(4, channels=1)
    learned = learn(source, target, data=new, target_data=old)
    with torch.inference_mode(), pnc_hub.attach(target, learned):
        assert target(images(channels=1)).shape == (4, 10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_target_in_half_precision(source, target, dtype):
    target.to(dtype)
    learned = learn(source, target, epochs=0)
    with torch.inference_mode(), pnc_hub.attach(target, learned):
        assert target(images().to(dtype)).dtype == dtype


def test_clones_that_are_attached_already_stay_and_take_no_part(source, target):
    plain = learn(source, target, epochs=0)
    extra = tiny_clone(tiny_model("resnet", seed=3), target, labels=("cat", "dog"), rows=(0, 1))
    of_source = tiny_clone(target, source, family="convnext", labels=("cat", "dog"), rows=(0, 1))
    with pnc_hub.attach(target, extra), pnc_hub.attach(source, of_source):
        again = learn(source, target, epochs=0)
        assert [len(attachment.attachments(model)) for model in (source, target)] == [1, 1]
        assert target(images()).shape == (4, 9)
        with pnc_hub.attach(target, again):
            assert target(images()).shape == (4, 12)
    assert again.config.to_dict()["source"] == plain.config.to_dict()["source"]
    assert again.config.adapters[0].target == plain.config.adapters[0].target
    found, expected = ({**clone.report.metrics, "seconds": 0} for clone in (again, plain))
    assert found == expected


def test_a_budget_is_kept_and_one_that_can_not_be_kept_is_refused(source, target):
    learned = learn(source, target, locality_budget=0.125, epochs=0)
    assert learned.report["diverted"] <= learn(source, target, epochs=0).report["diverted"]
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
