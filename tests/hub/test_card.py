"""The Hub page says what the artifact is, in metadata that machines read and in text that nothing in it can become code."""

import getpass
import hashlib
import json
import re
import tempfile
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

import pnc_hub
from pnc_hub import Clone
from pnc_hub.artifact.config import seal
from pnc_hub.errors import MalformedArtifactError
from pnc_hub.hub import card

METRICS = {
    "ori": 0.9123456,
    "tar": 0.875,
    "avg": 0.8936728,
    "target_alone": 0.92,
    "source_alone": 1.0,
    "diverted": None,
    "auroc": 0.987,
    "kept_parameters": 62018,
    "source_parameters": 11689512,
    "bytes": 248072,
    "seconds": 31.4,
    "insertion": "blocks.3.3",
    "cut": "layer2.0",
    "regime": "images of both sides",
    "kl": 0.0123,
    "macs": 1234567,
    "target_license": "cc-by-nc-4.0",
    "datasets": "ILSVRC/imagenet-1k, photos of my own",
}
CURVE = {
    "name": ["blocks.2.0", "blocks.3.3", "blocks.10.0"],
    "accuracy": [0.5, 0.9, 0.7],
    "auroc": [None, 0.9, 0.8],
    "macs": [None, 100, 200],
}
PORTED = {"target_alone": 0.8, "ori": 0.79, "agreement": 0.95, "diverted": 0.02, "insertion": "blocks.4.0"}
NASTY = [
    "*a* | {b} <script> [x](y)",
    "`code` $x$ ~s~ #1",
    "![i](http://evil)",
    "a: b",
    "- item",
    "{{ jinja }}",
    "!!python/object",
]


@pytest.fixture
def page(clone_folder):
    """A function that returns the page of the clone with some of its configuration changed."""

    def render(change=lambda config: None) -> str:
        config = json.loads((clone_folder / "config.json").read_text())
        change(config)
        (clone_folder / "config.json").write_text(json.dumps(seal(config)))
        clone = Clone.from_pretrained(clone_folder)
        return (clone.save_pretrained(clone_folder.parent / "again") / "README.md").read_text(encoding="utf-8")

    return render


def described(config: dict) -> None:
    config["source"]["hub_id"] = "timm/resnet18.a1_in1k"
    config["adapters"][0]["target"]["hub_id"] = "timm/mobilenetv2_035.ra"
    config["adapters"][0].update(metrics=dict(METRICS), series={"curve": CURVE})


def label(text: str):
    return lambda config: config["classes"][0].update(label=text)


def metadata(page: str) -> dict:
    _, text, _ = page.split("---\n", 2)
    return yaml.safe_load(text)


class TestMetadata:
    def test_all_of_it(self, page):
        found = metadata(page(described))
        assert found.pop("model-index") == [
            {
                "name": "Clone of resnet18",
                "results": [
                    {
                        "task": {"type": "image-classification"},
                        "dataset": {"type": f"held-out-{kind}", "name": f"held-out images of the {what}"},
                        "metrics": [{"type": "accuracy", "value": value, "name": f"accuracy of the {what}"}],
                    }
                    for kind, what, value in (
                        ("cloned", "cloned classes", 0.875),
                        ("target", "target's classes", 0.9123),
                    )
                ],
            }
        ]
        assert found == {
            "library_name": "pnc-hub",
            "pipeline_tag": "image-classification",
            "license": "apache-2.0",
            "base_model": ["timm/resnet18.a1_in1k", "timm/mobilenetv2_035.ra"],
            "base_model_relation": "adapter",
            "datasets": ["ILSVRC/imagenet-1k"],
            "metrics": ["accuracy"],
            "tags": [
                *("pnc-hub", "partial-network-cloning", "timm", "arxiv:2303.10597"),
                *("pnc-class:ant", "pnc-class:bee", "pnc-class:wasp"),
                *("pnc-source:timm/resnet18.a1_in1k", "pnc-target:mobilenetv2_035", "pnc-target:any"),
            ],
        }

    def test_the_client_reads_it(self, page):
        card = ModelCard(page(described))
        assert card.data.library_name == "pnc-hub"
        assert [result.metric_value for result in card.data.eval_results] == [0.875, 0.9123]

    def test_what_is_not_known_is_left_out(self, page):
        found = metadata(page())
        assert not found.keys() & {"base_model", "base_model_relation", "model-index", "datasets", "license_name"}

    @pytest.mark.parametrize(
        ("written", "shown"),
        [("Apache-2.0", "apache-2.0"), ("mit", "mit"), ("unknown", "other"), ("cc-by-nc-4.0", "cc-by-nc-4.0")],
    )
    def test_licences(self, page, written, shown):
        found = metadata(page(lambda config: config["source"].update(license=written)))
        assert found["license"] == shown
        assert found.get("license_name") == (written if shown == "other" else None)

    @pytest.mark.parametrize(
        "text", [*NASTY, "Zürich 日本語 🐝", "yes", "null", "1.0", "'quoted\"", "a" * 200, "%TAG", "@x"]
    )
    def test_any_label_comes_back_as_it_is(self, page, text):
        found = metadata(page(label(text)))
        assert found["tags"][4] == f"pnc-class:{text}"
        assert found["library_name"] == "pnc-hub"


class TestBody:
    @pytest.mark.parametrize("text", NASTY)
    def test_labels_stay_text(self, page, text):
        row = next(line for line in page(label(text)).splitlines() if line.startswith("| 0 |"))
        assert len(re.findall(r"(?<!\\)\|", row)) == 4  # the table has as many cells as before
        assert not re.search(r"(?<!\\)[`*_{}\[\]<>()#!~$]", row)
        assert row.replace("\\", "") == f"| 0 | {text} | 1 |".replace("\\", "")

    @pytest.mark.parametrize(
        "text", [*NASTY, "www.evil.com", "https://evil.com", "a@b.cd", "&lt;b&gt;", "a\\|b", "![x"]
    )
    def test_a_reader_sees_them_as_they_are_and_nothing_else(self, page, text):
        markdown = pytest.importorskip("markdown_it").MarkdownIt("commonmark").enable(["table", "strikethrough"])
        plain, nasty = (
            [
                token
                for block in markdown.parse(ModelCard(page(label(name))).text)
                for token in block.children or [block]
            ]
            for name in ("plain", text)
        )
        assert [token.type for token in nasty if token.type != "text_special"] == [
            token.type for token in plain if token.type != "text_special"
        ]
        assert text in "".join(token.content for token in nasty)

    @pytest.mark.parametrize("text", ["x\n---\nlibrary_name: evil", "x\r", "x\u2028y", "\u202eevil"])
    @pytest.mark.parametrize("place", ["label", "metric"])
    def test_what_could_leave_its_line_does_not_get_there(self, page, text, place):
        with pytest.raises(MalformedArtifactError):
            page(
                label(text) if place == "label" else lambda config: config["adapters"][0]["metrics"].update(regime=text)
            )

    @pytest.mark.parametrize("text", ["x\n---\nlibrary_name: evil", "\u202eevil", "a\x00b\x1b[31m"])
    def test_nor_where_it_was_put_in_memory(self, clone_folder, text):
        clone = Clone.from_pretrained(clone_folder)
        clone.config.adapters[0].metrics["regime"] = text
        found = card.render(clone.config)
        assert all(character.isprintable() or character == "\n" for character in found)
        assert ModelCard(found).data.library_name == "pnc-hub"
        assert len(found.splitlines()) == len(page_of(clone_folder).splitlines())

    def test_texts_among_the_measurements_stay_text(self, page):
        found = page(lambda config: config["adapters"][0]["metrics"].update(regime="<b>", cut="| x", tar="*all*"))
        assert "Regime: \\<b\\>." in found
        assert "| source cut after | \\| x |" in found
        assert "\\*all\\* |" in found
        assert "model-index" not in metadata(found)

    def test_what_was_measured(self, page):
        found = page(described)
        for row in (
            "| the target's classes | 92.0 % | 91.2 % |",
            "| the cloned classes (alone: among them only) | 100.0 % | 87.5 % |",
            "| the cloned classes (alone: among all the source's) | not measured | 87.5 % |",
            "| both, weighted by numbers of classes | not measured | 89.4 % |",
            "| target images diverted to the clone | not measured |",
            "| change of the target's answers (KL, nats) | 0.012 |",
            "| gate AUROC | 0.987 |",
            "| parameters added | 62,018 |",
            "| multiply-accumulates added per image | 1,234,567 |",
        ):
            assert row in found
        assert f"Written by pnc_hub {pnc_hub.__version__}." in found

    def test_one_class_is_not_several_and_the_source_alone_has_no_choice(self, clone_folder):
        clone = Clone.from_pretrained(clone_folder)
        assert "# 3 classes cloned from" in card.render(clone.config)
        clone.config.adapters[0].metrics = dict(METRICS)
        clone.config.classes = clone.config.classes[:1]
        assert "# 1 class cloned from" in card.render(clone.config)
        assert "| the cloned classes (alone: among them only) | nothing to choose among | 87.5 % |" in card.render(
            clone.config
        )

    def test_in_regime_r2_other_images_are_called_that(self, clone_folder):
        clone = Clone.from_pretrained(clone_folder)
        clone.config.adapters[0].metrics = {**METRICS, "missed": 0.1, "diverted": 0.062, "regime": "R2", "ori": None}
        assert "| images of other classes diverted to clone | 6.2 % |" in card.render(clone.config)
        assert "6.2 % of other images get a new class." in card.render(clone.config)

    def test_where_it_fits_and_whose_licences(self, page):
        def change(config):
            described(config)
            config["adapters"][1]["metrics"] = dict(PORTED)

        found = page(change)
        for row in (
            "| universal | any timm classifier | `input` | 80.0 % | 79.0 % | 95.0 % as the source | 2.0 % |",
            "| source | timm/resnet18.a1\\_in1k | apache-2.0 |",
            "| target | timm/mobilenetv2\\_035.ra | cc-by-nc-4.0 |",
        ):
            assert row in found
        assert "Training data of the source: ILSVRC/imagenet-1k, photos of my own." in found

    def test_how_to_attach_it(self, page, clone_folder):
        assert 'timm.create_model("hf-hub:timm/mobilenetv2_035.ra", pretrained=True)' in page(described)
        clone = Clone.from_pretrained(clone_folder)
        made_for = clone.config.adapters[0].target
        made_for.hub_id = None
        assert (
            f"model = ...  # the {made_for.architecture} with {made_for.num_classes} classes that this clone was made for; its"
            " weights are not on the Hub\n"
        ) in card.render(clone.config)
        assert "timm.create_model" not in card.render(clone.config)
        assert 'pnc_hub.attach(model, "user/name@<commit>")' in card.render(clone.config)
        assert 'pnc_hub.attach(model, "ann/birds@<commit>")' in card.render(clone.config, "ann/birds")
        for file, digest in clone.recorded.items():
            assert f"| `{file}` | `{digest}` |" in card.render(clone.config)
            assert hashlib.sha256((clone_folder / file).read_bytes()).hexdigest() == digest

    def test_figures_are_shown_where_there_are_any(self, page, clone_folder):
        shown = re.findall(r"!\[[^]]*\]\(([^)]*)\)", page(described))
        name = Clone.from_pretrained(clone_folder).config.adapters[0].name
        assert shown == ["figures/accuracy.png", f"figures/insertion-{name}.png"]
        assert "](figures" not in page(lambda config: config["adapters"][0].update(metrics={}, series={}))

    def test_no_path_of_this_machine(self, page, clone_folder):
        found = page(described)
        for place in (
            str(clone_folder),
            tempfile.gettempdir(),
            str(Path.home()) + "/",
            f"/{getpass.getuser()}/",
            str(Path.cwd()),
        ):
            assert place not in found


class TestDatasets:
    def test_they_are_recorded_in_the_configuration_that_is_published(self, clone_folder):
        config = Clone.from_pretrained(clone_folder).config
        named = card.with_datasets(config, ["user/birds", "ILSVRC/imagenet-1k"])
        assert card.metadata(named).datasets == ["user/birds", "ILSVRC/imagenet-1k"]
        assert "datasets" not in config.adapters[0].metrics

    @pytest.mark.parametrize("names", [["a, b"], [], ["x\ny"], ["a" * 150, "b" * 150]])
    def test_what_can_not_be_recorded_is_refused(self, clone_folder, names):
        with pytest.raises(ValueError, match=r"commas|characters|unprintable"):
            card.with_datasets(Clone.from_pretrained(clone_folder).config, names)


def page_of(folder: Path) -> str:
    return card.render(Clone.from_pretrained(folder).config)
