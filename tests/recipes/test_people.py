"""Recipes that a person follows with photos: pictures of coloured squares stand in for them."""

import numpy as np
import pytest
import timm
import torch
from common import source_args, tiny_model
from made_up import painted
from PIL import Image
from timm.data import ImageNetInfo
from timm.models._hub import save_for_hf

import pnc_hub
from pnc_hub.errors import DataError
from pnc_hub.models.fingerprint import state_digest
from pnc_hub.models.preprocess import Preprocess
from recipes.frame.reading import HALF, MissingDataError, Raw, TensorImages
from recipes.people import birds, own_photos, photos, taught

SIZE = Preprocess((3, 32, 32), HALF, HALF, "bilinear", 1.0)


def saved(folder, family, names=None, count=7, seed=0):
    """A tiny network as timm saves it; its name."""
    model = tiny_model(family, len(names) if names else count, seed)
    arguments = {name: list(v) if isinstance(v, tuple) else v for name, v in source_args(family).items()}
    config = {"label_names": list(names)} if names else {}
    save_for_hf(model, str(folder), model_config=config, model_args=arguments, safe_serialization=True)
    return f"local-dir:{folder}"


@pytest.fixture
def folders(tmp_path):
    return painted(tmp_path / "new", ["fox", "owl"], seed=1), painted(tmp_path / "old", ["cup", "pen", "shoe"], seed=2)


def run(folders, output, *arguments):
    return own_photos.main(["--new", str(folders[0]), "--old", str(folders[1]), "--output", str(output), *arguments])


class TestReading:
    def test_every_photo_is_read_once_and_one_in_five_is_kept_back(self, tmp_path):
        read = photos.read(painted(tmp_path / "p", ["a", "b"], each=15), SIZE)
        assert read.classes == ["a", "b"]
        assert sorted(read.test.targets) == [0] * 3 + [1] * 3
        assert sorted(read.learn.targets) == [0] * 12 + [1] * 12
        assert [path.parent.name for path in read.files] == [read.classes[label] for label in read.test.targets]
        with Image.open(read.files[0]) as image:
            whole = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR))
        assert np.abs(read.test.images[read.test.indices[0]].permute(1, 2, 0).numpy() - whole.astype(int)).max() <= 1

    def test_photos_are_turned_as_the_camera_was_held(self, tmp_path):
        pixels = np.zeros((32, 32, 3), np.uint8)
        pixels[:16] = 255
        for number in range(10):
            exif = Image.Exif()
            exif[0x0112] = 6  # shown turned by a quarter, clockwise: what is stored on top is on the right
            Image.fromarray(pixels).save(tmp_path / f"{number}.jpg", exif=exif, quality=100)
        image = photos.read(tmp_path, SIZE).learn.images[0].float()
        assert image[:, :, 20:].mean() > 250
        assert image[:, :, :12].mean() < 5

    def test_a_folder_without_folders_is_one_class(self, tmp_path):
        assert photos.read(painted(tmp_path, ["heron"]) / "heron", SIZE).classes == ["heron"]

    def test_of_many_photos_some_of_each_class_are_drawn(self, tmp_path):
        read = photos.read(painted(tmp_path / "p", ["a", "b"], each=14), SIZE, most=20)
        assert [(read.learn.targets + read.test.targets).count(label) for label in (0, 1)] == [10, 10]

    def test_files_that_are_no_photos_are_told(self, tmp_path):
        folder = painted(tmp_path / "p", ["a"])
        (folder / "a" / "broken.jpg").write_text("no photo")
        with pytest.warns(UserWarning, match=r"1 of 13 files .*broken\.jpg"):
            assert len(photos.read(folder, SIZE).learn) == 9

    def test_too_few_photos_and_no_folder_are_refused(self, tmp_path):
        with pytest.raises(DataError, match=r"at least 10 photos .* fewer of 'a' \(9\)"):
            photos.read(painted(tmp_path / "p", ["a"], each=9), SIZE)
        with pytest.raises(DataError, match="is no folder"):
            photos.read(tmp_path / "nothing", SIZE)


class TestNetworks:
    def test_a_last_layer_is_learned_on_frozen_features(self, tmp_path):
        read = photos.read(painted(tmp_path / "p", ["a", "b", "c"], each=20), SIZE)
        model = tiny_model("resnet")
        before = state_digest(model)
        for count in (3, 2):
            data = read.learn.relabelled({label: label for label in range(count)})
            own = taught.with_head(model, model, data, count)
            features = [name for name in own.state_dict() if not name.startswith("fc.")]
            assert all(torch.equal(own.state_dict()[name], model.state_dict()[name]) for name in features)
            images, labels = data.batch(range(len(data)))
            assert (own(images).argmax(1) == labels).float().mean() > 0.9
        assert state_digest(model) == before

    def test_classes_are_found_by_the_names_of_folders(self, tmp_path):
        network = taught.named(saved(tmp_path / "m", "resnet", ["Great Tit", "owl", "fox"]), None, None)
        assert network.rows(["great_tit", "fox"]) == {"great_tit": 0, "fox": 2}
        assert network.arguments["channels"] == [8, 16, 24, 32]

    def test_a_name_that_is_not_known_is_told_with_what_is_close(self, tmp_path, capsys):
        network = taught.named(saved(tmp_path / "m", "resnet", ["great tit", "owl", "fox"]), None, None)
        assert network.rows(["graet tit"]) is None
        assert "no class (or several) named 'graet tit'; close are great tit" in capsys.readouterr().out

    def test_a_checkpoint_keeps_its_classes(self, tmp_path):
        torch.save(timm.create_model("resnet10t", num_classes=3).state_dict(), tmp_path / "own.pth")
        network = taught.named("resnet10t", tmp_path / "own.pth", None)
        assert network.rows(["a", "b", "c"]) == {"a": 0, "b": 1, "c": 2}
        with pytest.raises(DataError, match="--target-classes"):
            network.rows(["a", "b"])
        (tmp_path / "names.txt").write_text("a\nb\nc\n", encoding="utf-8")
        assert taught.named("resnet10t", tmp_path / "own.pth", tmp_path / "names.txt").rows(["c"]) == {"c": 2}
        with pytest.raises(DataError, match=r"own\.pth is no checkpoint of resnet26t"):
            taught.named("resnet26t", tmp_path / "own.pth", None)


class TestOwnPhotos:
    @pytest.mark.slow  # .ci/recipes runs it as well
    def test_two_folders_become_a_clone_that_is_attached(self, tmp_path, folders, capsys):
        names = saved(tmp_path / "source", "resnet", seed=1), saved(tmp_path / "target", "convnext")
        options = "--source", names[0], "--target", names[1]
        clone = run(folders, tmp_path / "out", *options)
        said = capsys.readouterr().out
        assert clone.labels == ("fox", "owl")
        assert "target with the clone (told nothing)" in said
        assert "Detached, the target is what it was, bit for bit." in said
        assert (tmp_path / "out" / "report.html").read_text(encoding="utf-8").startswith("<!")
        target = timm.create_model(f"local-dir:{tmp_path / 'out' / 'target'}", pretrained=True).eval()
        with pnc_hub.attach(target, tmp_path / "out" / "clone") as attached:
            assert attached.logit_slice == slice(3, 5)
            attached.verify()
        found = photos.before_and_after(*_parts(folders, names, clone))
        assert found["restored"]
        assert found["tar"] > 0.6  # of five classes
        run(folders, tmp_path / "out", *options)
        assert "was learned from the same photos" in capsys.readouterr().out
        painted(folders[0], ["newt"], seed=5)
        assert run(folders, tmp_path / "out", *options).labels == ("fox", "newt", "owl")

    @pytest.mark.slow
    def test_networks_that_know_the_classes_keep_them(self, tmp_path, folders, capsys):
        clone = run(
            folders,
            tmp_path / "out",
            *("--source", saved(tmp_path / "source", "resnet", ["yak", "owl", "fox"], seed=1)),
            *("--target", saved(tmp_path / "target", "convnext", ["cup", "hat", "pen", "shoe"])),
        )
        assert [(entry.label, entry.source_index) for entry in clone.config.classes] == [("fox", 2), ("owl", 1)]
        assert clone.config.adapters[0].target.num_classes == 4
        assert "is trained on" not in capsys.readouterr().out
        assert not (tmp_path / "out" / "target").exists()

    @pytest.mark.slow
    def test_without_weights_small_networks_are_trained(self, tmp_path, folders, monkeypatch):
        monkeypatch.setattr(taught, "SMALL_EPOCHS", 1)
        assert run(folders, tmp_path / "out", "--scratch").labels == ("fox", "owl")

    def test_weights_that_can_not_be_had_are_an_error_with_the_ways_out(self, tmp_path, folders):
        with pytest.raises(SystemExit, match=r"cannot make .*--target-checkpoint.*--scratch"):
            run(folders, tmp_path / "out", "--source", f"local-dir:{tmp_path / 'nothing'}")

    @pytest.mark.slow
    def test_photos_without_labels_stand_for_what_the_target_sees(self, tmp_path, folders):
        target = saved(tmp_path / "target", "convnext")
        clone = run((folders[0], folders[1] / "cup"), tmp_path / "out", "--source", target, "--target", target)
        assert clone.config.adapters[0].target.num_classes == 7
        assert clone.report["ori"] is None
        assert clone.report["diverted"] is not None


class TestBirds:
    KNOWN = (
        birds.Bird(0, "Passerina cyanea", "Indigo Bunting"),
        birds.Bird(1, "Passerina ciris", "Painted Bunting"),
        birds.Bird(2, "Corvus corax", "Common Raven"),
    )

    def test_the_rows_of_birds_are_those_of_imagenet(self):
        imagenet = ImageNetInfo("imagenet-1k")
        named = [imagenet.index_to_description(index).split(", ")[0] for index in range(1000)]
        assert len(birds.IMAGENET_BIRDS) == 59
        first_and_last = [(named[part[0]], named[part[-1]]) for part in _runs(birds.IMAGENET_BIRDS)]
        assert first_and_last == [
            ("cock", "great grey owl"),
            ("black grouse", "black swan"),
            ("white stork", "albatross"),
        ]
        neighbours = [named[index] for index in (6, 25, 79, 101, 126, 147)]
        assert neighbours == ["stingray", "European fire salamander", "centipede", "tusker", "isopod", "grey whale"]

    def test_labels_are_read_with_both_names(self, tmp_path):
        (tmp_path / "weights").mkdir()
        lines = "Pica nuttalli (Yellow-billed Magpie)\nCircus hudsonius (Harrier (American))\nStrix\nbackground\n"
        (tmp_path / "weights" / "inat_bird_labels.txt").write_text(lines, encoding="utf-8")
        found = birds.birds(tmp_path)
        assert [(bird.index, bird.scientific, bird.common) for bird in found] == [
            (0, "Pica nuttalli", "Yellow-billed Magpie"),
            (1, "Circus hudsonius", "Harrier (American)"),
            (2, "Strix", "Strix"),
        ]
        with pytest.raises(MissingDataError, match="--data"):
            birds.birds(tmp_path / "elsewhere")

    @pytest.mark.parametrize("name", ["indigo_bunting", "Passerina cyanea", "0", "Indigo Bunting (Passerina cyanea)"])
    def test_a_bird_is_found_by_each_of_its_names(self, name):
        assert birds.find([name], self.KNOWN)[name].index == 0

    def test_an_unknown_bird_is_told_with_those_that_are_close(self):
        with pytest.raises(DataError, match=r"no bird named 'painted buntin'; close .*Painted Bunting.*--list"):
            birds.find(["painted buntin"], self.KNOWN)

    def test_a_part_of_a_name_lists_birds(self):
        assert birds.listed("bunting", self.KNOWN).splitlines() == [
            "   0  Indigo Bunting (Passerina cyanea)",
            "   1  Painted Bunting (Passerina ciris)",
        ]

    def test_photos_are_those_of_the_birds_that_were_asked_for(self, tmp_path):
        folder, target = painted(tmp_path / "p", ["corvus corax", "indigo bunting"]), tiny_model("mobilenet")
        read, wanted = birds.own(folder, ["Indigo Bunting"], self.KNOWN, target)
        assert [bird.index for bird in wanted] == [0]
        assert read.classes == ["Indigo Bunting"]
        assert {path.parent.name for path in read.files} == {"indigo bunting"}
        assert len(read.files) == len(read.test)
        assert set(read.learn.targets) == {0}
        with pytest.raises(DataError, match="no folder of Painted Bunting"):
            birds.own(folder, ["painted bunting"], self.KNOWN, target)
        painted(folder, ["Passerina cyanea"])
        with pytest.raises(DataError, match="two folders"):
            birds.own(folder, None, self.KNOWN, target)

    def test_without_photos_it_says_what_it_needs(self, tmp_path):
        with pytest.raises(SystemExit, match=r"--photos FOLDER.*--list bunting.*--rehearse"):
            birds.main(["--data", str(tmp_path)])

    @pytest.mark.slow
    def test_a_clone_that_repeats_the_source_agrees_with_it(self):
        source = tiny_model("resnet", seed=1)
        noise = torch.randint(0, 256, (60, 3, 32, 32), dtype=torch.uint8)
        mean, std = (Preprocess.of(source).mean, Preprocess.of(source).std)
        images = TensorImages.of(Raw(noise, torch.arange(60) % 3, []), mean, std)
        same = pnc_hub.clone(
            *(source, source, {"a": 0, "b": 1, "c": 2}, images),
            **{"source_args": source_args("resnet"), "keep": 1.0, "epochs": 0, "progress": False, "device": "cpu"},
            **{"insertion": "layer3.1", "cut": "layer3.1", "target_data": images},
        )
        found = birds.agreement(source, source, same, images)
        assert found["same"] == 1.0
        assert found["explained"] > 0.99


def _parts(folders, names, clone):
    """What ``before_and_after`` takes, with the networks that a run made."""
    source, target = (taught.named(name, None, None) for name in names)
    new, old = (photos.read(folder, Preprocess.of(target.model)) for folder in folders)
    receives, rows = own_photos.as_target(target, new, old, 0)
    gives, _ = own_photos.as_source(source, receives, new, old, 0)
    return gives, receives, clone, new.test, own_photos.labelled(old, rows)[1]


def _runs(indices):
    """Parts of a list of numbers in which each is followed by the next."""
    parts = [[indices[0]]]
    for index in indices[1:]:
        if index == parts[-1][-1] + 1:
            parts[-1].append(index)
        else:
            parts.append([index])
    return parts
