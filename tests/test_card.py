"""The Hub page says what the artifact is, in metadata that machines read and in text that nothing in it can become code."""

import getpass
import json
import re
import tempfile
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

import pnc_hub
from pnc_hub import Clone
from pnc_hub.errors import MalformedArtifactError

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
}
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
        (clone_folder / "config.json").write_text(json.dumps(config))
        clone = Clone.from_pretrained(clone_folder)
        return (clone.save_pretrained(clone_folder.parent / "again") / "README.md").read_text(encoding="utf-8")

    return render


def described(config: dict) -> None:
    config["source"]["hub_id"] = "timm/resnet18.a1_in1k"
    config["adapters"][0]["target"]["hub_id"] = "timm/mobilenetv2_035.ra"
    config["adapters"][0]["metrics"] = dict(METRICS)


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
            "metrics": ["accuracy"],
            "tags": [
                *("pnc-hub", "partial-network-cloning", "timm", "arxiv:2303.10597"),
                *("pnc-class:ant", "pnc-class:bee", "pnc-class:wasp", "pnc-target:mobilenetv2_035"),
            ],
        }

    def test_the_client_reads_it(self, page):
        card = ModelCard(page(described))
        assert card.data.library_name == "pnc-hub"
        assert [result.metric_value for result in card.data.eval_results] == [0.875, 0.9123]

    def test_what_is_not_known_is_left_out(self, page):
        found = metadata(page())
        assert not found.keys() & {"base_model", "base_model_relation", "model-index"}

    @pytest.mark.parametrize(
        ("written", "shown"),
        [("Apache-2.0", "apache-2.0"), ("mit", "mit"), ("unknown", "other"), ("cc-by-nc-4.0", "cc-by-nc-4.0")],
    )
    def test_licences(self, page, written, shown):
        assert metadata(page(lambda config: config["source"].update(license=written)))["license"] == shown

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
        assert len(re.findall(r"(?<!\\)\|", row)) == 3  # the table has as many cells as before
        assert not re.search(r"(?<!\\)[`*_{}\[\]<>()#!~$]", row)
        assert row.replace("\\", "") == f"| 0 | {text} |".replace("\\", "")

    @pytest.mark.parametrize("text", ["x\n---\nlibrary_name: evil", "x\r", "x\u2028y", "\u202eevil"])
    @pytest.mark.parametrize("place", ["label", "metric"])
    def test_what_could_leave_its_line_does_not_get_there(self, page, text, place):
        with pytest.raises(MalformedArtifactError):
            page(
                label(text) if place == "label" else lambda config: config["adapters"][0]["metrics"].update(regime=text)
            )

    def test_texts_among_the_measurements_stay_text(self, page):
        found = page(lambda config: config["adapters"][0]["metrics"].update(regime="<b>", cut="| x", tar="*all*"))
        assert "Regime: \\<b\\>." in found
        assert "| source cut after | \\| x |" in found
        assert "| \\*all\\* |" in found
        assert "model-index" not in metadata(found)

    def test_what_was_measured(self, page):
        found = page(described)
        for row in (
            "| with the clone, the cloned classes (Tar) | 87.5 % |",
            "| with the clone, the target's classes (Ori) | 91.2 % |",
            "| target images diverted to the clone | not measured |",
            "| gate AUROC | 0.987 |",
            "| parameters added | 62,018 |",
            "| universal | any timm classifier | `input` |",
        ):
            assert row in found
        assert f"Written by pnc_hub {pnc_hub.__version__}." in found

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


class TestReport:
    def test_it_prints_every_measurement(self, page, clone_folder):
        page(described)
        report = Clone.from_pretrained(clone_folder.parent / "again").report
        assert report["tar"] == 0.875
        assert str(report).splitlines()[0] == "Clone of 3 classes: ant, bee, wasp"
        for shown in ("87.5 %", "91.2 %", "not measured", "62,018", "0.987", "blocks.3.3"):
            assert shown in str(report)

    def test_text_where_a_number_is_usual_is_shown(self, page, clone_folder):
        page(lambda config: config["adapters"][0]["metrics"].update(tar="all", kept_parameters="few", auroc=""))
        assert "all" in str(Clone.from_pretrained(clone_folder.parent / "again").report)
