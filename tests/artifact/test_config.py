"""config.json is believed only where it says what it may, exactly as it may."""

import json
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
from hostile.harness import DELETE, put, sealed, without
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pnc_hub
from pnc_hub.artifact import checks, files
from pnc_hub.artifact.config import CloneConfig
from pnc_hub.artifact.contents import Contents
from pnc_hub.artifact.storage import Folder
from pnc_hub.errors import ArtifactError, CloneNotFoundError, FormatVersionError, MalformedArtifactError


@pytest.fixture(scope="module")
def valid(saved_clone) -> dict:
    """The configuration of a real clone; not to be changed."""
    return json.loads((saved_clone / "config.json").read_text())


@pytest.fixture(scope="module")
def folder(saved_clone, tmp_path_factory) -> Path:
    """The files of that clone; each test writes the configuration that it needs."""
    return Path(shutil.copytree(saved_clone, tmp_path_factory.mktemp("config") / "clone"))


def everything(clone: Contents) -> None:
    """All that an artifact's configuration is used for."""
    for adapter in clone.config.adapters:
        clone.build(adapter, clone.config.preprocess)


def refused(folder: Path, text: str | bytes, error=MalformedArtifactError) -> ArtifactError:
    """The typed error with which the clone in ``folder`` is refused that has ``text`` as its configuration."""
    (folder / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(error) as raised:
        everything(Contents.open(Folder(folder)))
    assert (raised.value.file, raised.value.repo_id) == ("config.json", str(folder))
    assert len(str(raised.value)) < 2000
    return raised.value


WRONG_TYPES = [
    ("classes/0/source_index", True),
    ("classes/0/source_index", "1"),
    ("classes/0/source_index", 1.0),
    ("classes/0/source_index", None),
    ("classes/0/label", 5),
    ("classes", {"label": "ant", "source_index": 1}),
    ("classes/0", "ant"),
    ("preprocess/input_size", "3x32x32"),
    ("preprocess/input_size/1", 32.0),
    ("preprocess/input_size/1", True),
    ("preprocess/mean/0", "0.5"),
    ("preprocess/crop_pct", "1.0"),
    ("source", []),
    ("source/architecture", None),
    ("source/model_args", []),
    ("source/model_args/num_classes", "7"),
    ("source/model_args/num_classes", 7.0),
    ("source/model_args/num_classes", None),
    ("source/model_args/channels", {"0": 8}),
    ("source/model_args/channels/0", [8]),
    ("source/fingerprint", "0" * 32),
    ("source/fingerprint/float32", 0),
    ("source/fingerprint/float32", "0" * 64),
    ("tail/shapes", []),
    ("tail/shapes/head.weight", [4, "32"]),
    ("tail/attributes/head", {"out_features": True}),
    ("tail/attributes/head", 4),
    ("adapters", None),
    ("adapters/0/target", "resnet18"),
    ("adapters/0/insertion/grid", 2),
    ("adapters/0/target/trunk", "conv_stem"),
    ("adapters/0/target/trunk/0", 1),
    ("adapters/0/insertion/channels", 8.0),
    ("adapters/0/insertion/channels", True),
    ("adapters/0/insertion/name", None),
    ("adapters/0/insertion/grid", {"0": 2}),
    ("adapters/0/insertion/grid/0", 2.0),
    ("adapters/0/insertion", "input"),
    ("adapters/0/kernel", True),
    ("adapters/0/kernel", 1.0),
    ("adapters/0/series", []),
    ("adapters/0/series/gate", [1, 2]),
    ("adapters/0/series/gate", {"new": 1}),
    ("adapters/0/series/gate", {"new": [[1]]}),
    ("cut", {"module": "layer2.0"}),
    ("preprocess", [3, 32, 32]),
    ("preprocess/mean", 0.5),
    ("preprocess/mean/0", 0),
    ("preprocess/interpolation", 2),
    ("adapters/0/metrics", []),
    ("adapters/0/metrics/tar", [0.5]),
    ("files/model.safetensors", None),
    ("probe/atol", 1),
    ("probe/atol", True),
    ("pnc_hub_version", 1),
]

OUT_OF_BOUNDS = [
    ("classes", []),
    ("classes/0/source_index", -1),
    ("classes/0/source_index", 10**9),
    ("preprocess/input_size/1", 0),
    ("preprocess/input_size/1", 10**6),
    ("preprocess/input_size/3", 3),
    ("preprocess/std/0", 0.0),
    ("preprocess/mean/3", 0.5),
    ("adapters/0/kernel", 0),
    ("adapters/0/kernel", 2),
    ("adapters/0/kernel", 7),
    ("adapters/1/kernel", 3),  # there is no adapter before the source's own trunk
    ("adapters/0/series/gate", {"new": [1, 2], "old": [1]}),
    ("adapters/0/series/gate", {}),
    ("adapters/0/series/gate", {"new": [1] * 101}),
    ("adapters/0/insertion/grid", [2, 2, 2]),
    ("adapters/0/insertion/reduction", 0),
    ("preprocess/input_size", [3, 32]),
    ("preprocess/crop_pct", 0.0),
    ("source/model_args/channels", [8] * 33),
    ("source/model_args/channels/0", 10**9),
    ("source/model_args/channels/0", -8),
    ("source/model_args/num_classes", 10**8),
    ("adapters", []),
    ("adapters/0/insertion/channels", 0),
    ("adapters/0/insertion/channels", 10**9),
    ("adapters/0/insertion/grid", [2]),
    ("adapters/0/insertion/grid", [10**6, 10**6]),
    ("adapters/0/insertion/prefix_tokens", 10**6),
    ("adapters/0/insertion/layout", "CHWN"),
    ("adapters/0/target/num_classes", 0),
    ("tail/shapes/head.weight", [0, 32]),
    ("tail/shapes/head.weight", [10**9, 32]),
    ("probe/rtol", 1e9),
]

NAMES = [
    *(("source/architecture", name) for name in ("hf-hub:evil/x", "hf_hub:evil/x", "local-dir:/etc", "a.b", "", "no_such_net")),
    *(("source/hub_id", name) for name in ("../x", "a/b/c", "a..b/c", "https://evil", "a/b\n", ".a/b")),
    *(("source/license", name) for name in ("", "mit\nx", "a b")),
    *(("source/revision", name) for name in ("main", "g" * 40, "0" * 41)),
    *(
        ("cut", name)
        for name in (
            *("__class__", "layer2.0.__class__", "__dict__", "_modules", "forward", "training", "weight", "conv1.weight"),
            *("", ".", "a..b", ".a", "a.", "layer 1", "layer1.0\n", "layer9", "*", "(a+)+$", "layer1.\u0661", "input.x"),
            *("a" * 10**5, "a." * 10**5 + "a"),
        )
    ),
    ("adapters/0/insertion/name", "../x"),
    ("adapters/0/target/trunk/0", "conv_stem/.."),
    *(("files", {name: "0" * 64}) for name in ("../x", "/etc/passwd", "adapters/../x", "adapters/no_such.safetensors")),
    *(
        ("adapters/0/name", name)
        for name in (
            *("", "../x", "a/b", "a\\b", "C:\\x", "\\\\host\\share", "/etc/passwd", ".hidden", "x" * 97),
            *("universal", "UNIVERSAL"),
        )
    ),
    ("files/model.safetensors", "0" * 63),
    ("adapters/0/target", None),
    ("files/evil.py", "0" * 64),
    ("files/..%2Fmodel.safetensors", "0" * 64),
    ("files/..\\model.safetensors", "0" * 64),
    ("preprocess/interpolation", "bicubic; rm"),
    ("pnc_hub_version", "1.0 <script>"),
    ("adapters/0/metrics/a b", 1.0),
    ("adapters/0/series/a b", {"new": [1]}),
    ("adapters/0/series/gate", {"a b": [1]}),
    ("adapters/0/series/gate", {"new": ["x\n---"]}),
    ("adapters/0/metrics/regime", "x\n---\nlibrary_name: evil"),
]  # fmt: skip

ARGUMENTS = [
    *("pretrained", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "scriptable", "features_only"),
    *("block", "auto_map", "trust_remote_code", "_attn_implementation_internal", "custom_load", "file", "url", "drop_rate"),
]  # fmt: skip

LABELS = [
    *("", " ant", "ant ", "a" * 201, "ant\n", "x\n---\nlibrary_name: evil", "tab\there", "nul\0", "\x1b[31mred", "\x7f"),
    *("\u202eevil", "\u2066x", "zero\u200bwidth", "\u2028", "\ud800", "\ufeffant", "\ue000", "\U000e0041"),
]  # fmt: skip

CONTRADICTIONS = [
    ("classes/0/source_index", 7),  # the source has seven classes
    ("source/model_args/num_classes", 3),
    ("source/model_args/num_classes", 0),
    ("source/model_args/no_such_argument", 1),
    ("source/model_args/depth", 2),  # no argument of a resnet
    ("source/model_args/channels", [8]),
    ("source/model_args/channels", []),
    ("source/model_args/layers", [1, 1, 1, 0]),
    ("source/model_args/norm_layer", "evil"),
    ("source/model_args/in_chans", 1),
    ("preprocess/input_size", [1, 32, 32]),
    ("source/architecture", "vit_tiny_patch16_224"),
    ("tail/shapes/head.weight", [5, 32]),
    ("tail/shapes/head.weight", [4]),
    ("tail/shapes/no.such.tensor", [1]),
    ("tail/shapes/__class__", [1]),
    ("tail/shapes/tail.layer3.0.conv1.weight", [1, 16, 3, 3]),  # and what reads it is as wide as before
    ("tail/attributes/head", {"out_features": 5}),
    ("tail/attributes/head", {"__class__": 1}),
    ("tail/attributes/head", {"training": 1}),
    ("tail/attributes/head", {"weight": 1}),
    ("tail/attributes/no.such.layer", {"in_features": 1}),
    ("tail/attributes/tail.layer3.0.conv1", {"kernel_size": 1}),
    ("tail/attributes/tail.layer3.0.conv1", {"in_channels": 17}),
    ("tail/attributes/tail.layer3.0.conv1", {"groups": 2}),
    ("adapters/0/insertion/name", "input"),
    ("adapters/1/insertion/channels", 4),
]


def named(case: tuple) -> str:
    return f"{case[0]}={case[1]!r:.30}"


class TestStrictness:
    @pytest.mark.parametrize("case", [*WRONG_TYPES, *OUT_OF_BOUNDS, *NAMES], ids=named)
    def test_wrong_values(self, folder, valid, case):
        config = valid
        if case[0].startswith("tail/shapes/"):
            config = put(config, "tail/shapes/head.weight", [4, 32])
        refused(folder, json.dumps(put(config, *case)))

    @pytest.mark.parametrize("case", CONTRADICTIONS, ids=named)
    def test_values_that_do_not_go_together(self, folder, valid, case):
        changed = put(valid, *case)
        if case[0].startswith("adapters/1"):
            changed = without(changed, 0)
        refused(folder, json.dumps(changed))

    @pytest.mark.parametrize("argument", ARGUMENTS)
    @pytest.mark.parametrize("value", [True, "hf_hub"])
    def test_model_arguments_that_reach_further(self, folder, valid, argument, value):
        error = refused(folder, json.dumps(put(valid, f"source/model_args/{argument}", value)))
        assert argument in error.reason

    def test_every_key_is_needed_and_no_other_allowed(self, folder, valid):
        def objects(value, path=""):
            if isinstance(value, dict):
                yield path, value
            children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
            for key, child in children:
                yield from objects(child, f"{path}{key}/")

        free = ("fingerprint/", "model_args/", "metrics/", "series/", "files/", "shapes/", "attributes/")
        for path, value in objects(valid):
            if path.endswith(free):
                continue
            for changed in (
                put(valid, f"{path}auto_map", {"AutoModel": "evil.Model"}),
                *(put(valid, f"{path}{name}", DELETE) for name in value),
            ):
                with pytest.raises((MalformedArtifactError, FormatVersionError)):
                    CloneConfig.from_dict(changed)

    @pytest.mark.parametrize("label", LABELS, ids=ascii)
    def test_labels_that_can_not_be_shown_as_they_are(self, folder, valid, label):
        refused(folder, json.dumps(put(valid, "classes/0/label", label)))

    @pytest.mark.parametrize("twin", ["bee", "BEE", "\uff42\uff45\uff45", "be\u1d49"])
    def test_labels_that_read_the_same(self, folder, valid, twin):
        assert "same labels" in refused(folder, json.dumps(put(valid, "classes/0/label", twin))).reason

    def test_a_row_twice(self, folder, valid):
        assert "source indices" in refused(folder, json.dumps(put(valid, "classes/0/source_index", 2))).reason

    @pytest.mark.parametrize("label", ["Zürich", "日本語", "it's *a* | {b} <script> [x](y)", "a: b", "- 1", "🐝"])
    def test_labels_of_any_language(self, folder, valid, label):
        config = CloneConfig.from_dict(put(valid, "classes/0/label", label))
        assert config.labels[0] == label

    @pytest.mark.parametrize("version", [0, 2, 99, "1", None, True, -1, 1.5, [1]])
    def test_other_format_versions(self, folder, valid, version):
        error = refused(folder, json.dumps(put(valid, "format_version", version)), FormatVersionError)
        assert "pip install -U pnc-hub" in error.reason

    def test_a_real_number_is_no_version(self, folder, valid):
        refused(folder, json.dumps(put(valid, "format_version", 1.0)))

    @pytest.mark.parametrize("name", ["timm", None, 5, "PNC-HUB"])
    def test_other_libraries(self, folder, valid, name):
        assert "not a clone" in refused(folder, json.dumps(put(valid, "library_name", name))).reason

    def test_what_the_architecture_allows_is_accepted(self, folder, valid):
        (folder / "config.json").write_text(json.dumps(valid))
        everything(Contents.open(Folder(folder)))

    @pytest.mark.parametrize(
        ("architecture", "arguments"),
        [
            ("vit_tiny_patch16_224", {"num_heads": 0}),
            ("vit_tiny_patch16_224", {"norm_layer": "evil"}),
            ("hiera_tiny_224", {"img_size": 2048}),
            ("levit_128s", {}),
            ("eva02_tiny_patch14_224", {}),
            ("gemma4_vit_sofar_unknown", {}),
        ],
    )
    def test_sources_that_timm_or_we_can_not_build(self, folder, valid, architecture, arguments):
        """timm's constructors fail with errors of many types, as ZeroDivisionError and AttributeError here."""
        changed = put(valid, "source/architecture", architecture)
        changed["source"]["model_args"] = {"num_classes": 7, **arguments}
        refused(folder, json.dumps(changed))


class TestText:
    @pytest.mark.parametrize(
        "change",
        [
            lambda text: "",
            lambda text: "null",
            lambda text: "[]",
            lambda text: '"pnc-hub"',
            lambda text: text[:-3],
            lambda text: text + "{}",
            lambda text: text.replace('"kernel": 1', '"kernel": 1, "kernel": 1', 1),
            lambda text: text.replace('"crop_pct": 0.95', '"crop_pct": NaN'),
            lambda text: text.replace('"crop_pct": 0.95', '"crop_pct": Infinity'),
            lambda text: text.replace('"crop_pct": 0.95', '"crop_pct": 1e999'),
            lambda text: text.replace('"num_classes": 7', '"num_classes": ' + "7" * 10**5),
            lambda text: text.replace('"num_classes": 7', '"num_classes": ' + "[" * 10**5 + "]" * 10**5),
            lambda text: text.replace('"shapes": {}', '"shapes": ' + '{"a":' * 10**5 + "1" + "}" * 10**5),
            lambda text: "\ufeff" + text,
            lambda text: text.encode("utf-16"),
            lambda text: text.encode() + b"\xff",
            lambda text: text.replace("bee", "b\x01e"),
            lambda text: text + " " * files.MAX_CONFIG_BYTES,
        ],
        ids=range(18),
    )  # fmt: skip
    def test_what_is_no_strict_json(self, folder, valid, change):
        text = json.dumps(valid)
        assert change(text) != text
        refused(folder, change(text))

    def test_who_attaches_it_is_told_the_same(self, clone_folder, target, valid):
        (clone_folder / "config.json").write_text(json.dumps(put(valid, "cut", "a..b")))
        with pytest.raises(MalformedArtifactError) as error:
            pnc_hub.attach(target, clone_folder)
        assert (error.value.file, error.value.repo_id) == ("config.json", str(clone_folder))

    def test_nothing_there(self, clone_folder, target):
        (clone_folder / "config.json").unlink()
        with pytest.raises(CloneNotFoundError) as error:
            pnc_hub.attach(target, clone_folder)
        assert (error.value.file, error.value.repo_id) == ("config.json", str(clone_folder))


class TestBudget:
    """An artifact chooses sizes only within what takes a moment to build without weights (``hostile``: how much that is)."""

    @pytest.mark.parametrize("name", ["depth", "depths", "layers"])
    @pytest.mark.parametrize("value", [101, [128] * 32, [26, 25, 25, 25], ["100"]])
    def test_deeper_sources_are_not_built(self, folder, valid, name, value):
        refused(folder, json.dumps(put(valid, f"source/model_args/{name}", value)))

    def test_timms_deepest_architectures_fit(self):
        checks.model_args({"depths": [8, 16, 48, 24], "img_size": 1024, "num_classes": 21841})


def mutated(value):
    """A strategy: ``value`` with something changed somewhere, or nothing."""
    junk = st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**70), 2**70),
        st.floats(allow_nan=False),
        st.text(max_size=20),
        st.just([]),
        st.just({}),
    )
    if isinstance(value, dict) and value:
        key = st.sampled_from(sorted(value))
        return st.one_of(
            key.flatmap(lambda k: mutated(value[k]).map(lambda changed: {**value, k: changed})),
            key.flatmap(lambda k: mutated(value[k]).map(lambda changed: {**value, k: changed})),
            key.map(lambda k: {name: item for name, item in value.items() if name != k}),
            st.tuples(st.text(max_size=10), junk).map(lambda pair: {**value, pair[0]: pair[1]}),
            junk,
        )
    if isinstance(value, list) and value:
        position = st.integers(0, len(value) - 1)
        return st.one_of(
            position.flatmap(lambda i: mutated(value[i]).map(lambda changed: [*value[:i], changed, *value[i + 1 :]])),
            position.map(lambda i: value[:i] + value[i + 1 :]),
            position.map(lambda i: [*value, value[i]]),
            junk,
        )
    near = [st.integers(value - 2, value + 2)] if isinstance(value, int) else []
    near += [st.just(value + "x"), st.just(value[:-1])] if isinstance(value, str) else []
    return st.one_of(st.just(value), junk, *near)


class TestAnyMutation:
    @given(data=st.data())
    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    def test_it_is_parsed_to_the_same_or_refused(self, saved_clone, valid, data):
        config = data.draw(st.one_of(mutated(valid), mutated(valid).flatmap(mutated)))
        config = sealed(config) if isinstance(config, dict) else config
        try:
            parsed = CloneConfig.from_dict(config)
        except ArtifactError:
            return
        assert parsed.to_dict() == config
        with suppress(ArtifactError):
            everything(Contents(parsed, {}, storage=Folder(saved_clone)))
