"""B: configurations that are no JSON, no configuration, or ask for what cannot be built."""

import json
from collections.abc import Callable

import pytest
import timm
from common import slow, tiny_clone, tiny_model

import pnc_hub
from hostile.harness import (
    DELETE,
    bounded,
    by_number,
    change,
    few_calls,
    harmless,
    put,
    read_config,
    refused,
    sealed,
    untouched,
    without,
    write_config,
)
from pnc_hub import Clone
from pnc_hub.artifact.files import CONFIG, MAX_CONFIG_BYTES
from pnc_hub.errors import FingerprintMismatchError, FormatVersionError, IntegrityError, MalformedArtifactError

HEAD = "tail/shapes/head.weight"
LAYER = "tail/attributes/tail.layer3.0.conv1"
ARGUMENTS = "source/model_args"


def text(edit: Callable[[str], str | bytes]) -> Callable[[str], bytes]:
    """Change what the file says, whatever becomes of it as JSON."""

    def changed(written: str) -> bytes:
        edited = edit(written)
        assert edited != written
        return edited if isinstance(edited, bytes) else edited.encode("utf-8", "surrogatepass")

    return changed


def number(value: str) -> Callable[[str], bytes]:
    return text(lambda written: written.replace('"num_classes": 7', f'"num_classes": {value}'))


TEXTS = {
    "B45-null": text(lambda written: "null"),
    "B45-list": text(lambda written: f"[{written}]"),
    "B45-text": text(lambda written: '"pnc-hub"'),
    "B45-nothing": text(lambda written: ""),
    "B46-key twice": text(lambda written: written.replace('"kernel": 1', '"kernel": 1, "kernel": 1', 1)),
    "B46-whole object twice": text(lambda written: written.replace('"probe": {', '"probe": {}, "probe": {')),
    "B47-NaN": number("NaN"),
    "B47-Infinity": number("-Infinity"),
    "B47-1e999": number("1e999"),
    "B49-number of 100000 digits": number("7" * 10**5),
    "B50-nested lists": number("[" * 10**5 + "]" * 10**5),
    "B50-nested objects": number('{"a":' * 10**5 + "1" + "}" * 10**5),
    "B51-byte order mark": text(lambda written: "\ufeff" + written),
    "B51-UTF-16": text(lambda written: written.encode("utf-16")),
    "B52-lone surrogate": text(lambda written: written.replace("bee", "b\ud800e")),
    "B52-lone surrogate, escaped": text(lambda written: written.replace("bee", "b\\ud800e")),
    "B53-100 MB": text(lambda written: written + " " * (100 << 20)),
    "B53-one byte too many": text(lambda written: written + " " * (MAX_CONFIG_BYTES + 1 - len(written))),
    "B53-4 MB of numbers": number("[" + "1," * (2 << 20) + "1]"),
    "B53-4 MB of lists": number("[" + "[]," * (1 << 20) + "[]]"),
}

VALUES = {
    **{f"B48-{path}": (path, True) for path in (f"{ARGUMENTS}/num_classes/0", "classes/0/source_index", "probe/atol")},
    "B48-true for a size": ("preprocess/input_size/1", True),
    **{f"B55-channels {value!r}": ("adapters/0/insertion/channels", value) for value in (10**9, -1, 0, "64", 64.0, None)},
    **{f"B55-source channels {value!r}": (f"{ARGUMENTS}/channels/0", value) for value in (10**9, -1, 0, "64", 64.0, [8])},
    "B56-depth 10^6": (f"{ARGUMENTS}/layers", [10**6, 1, 1, 1]),
    "B56-deep in sum": (f"{ARGUMENTS}/layers", [30, 30, 30, 30]),
    "B56-many stages": (f"{ARGUMENTS}/channels", [8] * 10**4),
    "B57-groups that do not divide": (LAYER, {"groups": 3}),
    "B57-groups that do": (LAYER, {"groups": 2}),
    "B58-kernel 10^6": (LAYER, {"kernel_size": 10**6}),
    "B58-patches 10^6": (f"{ARGUMENTS}/patch_size", 10**6),
    "B59-maps of 10^12": ("adapters/0/insertion/grid", [10**6, 10**6]),
    "B59-product overflow": (HEAD, [2**20] * 4),
    "B59-2^63": (HEAD, [2**63 - 1, 2**63 - 1]),
    "B60-unknown argument": (f"{ARGUMENTS}/block", "evil"),
    "B60-unknown layer": (f"{ARGUMENTS}/norm_layer", "evil"),
    **{
        f"B61-{name}": (f"{ARGUMENTS}/norm_layer", name)
        for name in ("torch.nn.Linear", "os.system", "builtins.eval", "module:Class", "__import__('os')")
    },
    **{
        f"B62-{name}": ("source/architecture", name)
        for name in ("hf-hub:evil/x", "hf_hub:evil/x", "local-dir:/etc", "resnet18.a1_in1k", "no_such_net", "os.system", "")
    },
    **{
        f"B63-{key}": (f"{place}{key}", "evil.Model")
        for place in ("", "source/", f"{ARGUMENTS}/", "preprocess/", "adapters/0/", "adapters/0/insertion/")
        for key in ("auto_map", "trust_remote_code", "_attn_implementation_internal", "custom_load", "url")
    },
    "B63-pretrained": (f"{ARGUMENTS}/pretrained", True),
    "B63-checkpoint": (f"{ARGUMENTS}/checkpoint_path", "/etc/passwd"),
    **{
        f"B64-{name}": ("adapters/0/name", name)
        for name in ("../x", "/etc/passwd", "C:\\x", "\\\\host\\share", "..", "other/repo/x")
    },
    **{f"B64-files {name}": (f"files/{name}", "0" * 64) for name in ("evil.py", "x.pt", "C:\\x", "README.md")},
    **{f"B66-{value!r}": (f"{ARGUMENTS}/num_classes", value) for value in (3, 0, 10**8, -1, "7")},
    "B66-row beyond": ("classes/0/source_index", 7),
    "B66-target of none": ("adapters/0/target/num_classes", 0),
}  # fmt: skip


@by_number(TEXTS)
def test_texts_that_are_refused(clone_folder, target, case):
    path = clone_folder / CONFIG
    path.write_bytes(case(json.dumps(read_config(clone_folder))))
    refused(target, clone_folder, file=CONFIG)


@by_number(VALUES)
def test_values_that_are_refused(clone_folder, target, case):
    config = read_config(clone_folder)
    path, value = case
    if path == f"{ARGUMENTS}/num_classes/0":
        path = f"{ARGUMENTS}/num_classes"
    if path.startswith(HEAD):
        config = put(config, HEAD, [4, 32])
    write_config(clone_folder, put(config, path, value))
    refused(target, clone_folder, file=CONFIG)


@pytest.mark.parametrize("version", [0, 2, *map(slow, [99, -1, "1", None]), True], ids=lambda value: f"B54-{value!r}")
def test_other_format_versions(clone_folder, target, version):
    change(clone_folder, "format_version", version)
    refused(target, clone_folder, FormatVersionError, CONFIG)


@pytest.mark.parametrize("key", ["format_version", "library_name", "source", "files", "adapters"])
def test_b45_keys_that_are_missing(clone_folder, target, key):
    change(clone_folder, key, DELETE)
    refused(target, clone_folder, (FormatVersionError, MalformedArtifactError), CONFIG)


def test_b65_the_fingerprint_of_another_model(clone_folder, target):
    config = read_config(clone_folder)
    write_config(clone_folder, put(without(config, 1), "adapters/0/target/fingerprint/float32", "0" * 32))
    refused(target, clone_folder, FingerprintMismatchError)


class TestBudget:
    """What passes as a configuration may still ask for a lot."""

    @pytest.mark.parametrize(
        ("architecture", "arguments", "side"),
        [
            ("resnet50", {"layers": [25, 25, 25, 25]}, 32),
            slow("vit_tiny_patch16_224", {"depth": 100}, 224),
            slow("vit_tiny_patch16_224", {"img_size": 2048, "patch_size": 1}, 2048),
            slow("convnext_atto", {"depths": [25] * 4, "dims": [8192] * 4}, 32),
            slow("swin_tiny_patch4_window7_224", {"img_size": 2048, "patch_size": 1, "window_size": 128}, 2048),
            slow("maxvit_tiny_tf_224", {"depths": [25] * 4}, 224),
            slow("maxvit_xlarge_tf_512", {"img_size": 2048, "depths": [25] * 4}, 2048),
            slow("xcit_tiny_12_p8_224", {"depth": 100}, 224),
        ],
        ids=lambda value: f"B56-{value}" if isinstance(value, str) else "",
    )
    def test_the_largest_sources_that_may_be_asked_for(self, clone_folder, target, architecture, arguments, side):
        config = read_config(clone_folder)
        config["source"].update(architecture=architecture, model_args={"num_classes": 7, **arguments})
        config["preprocess"]["input_size"] = [3, side, side]
        write_config(clone_folder, sealed(config))
        with few_calls():
            refused(target, clone_folder)

    def test_the_largest_map_that_may_be_named(self, tmp_path, target):
        """Where a tail has indices they are checked, and nothing is computed for that."""
        clone = tiny_clone(tiny_model("swin"), target, family="swin")
        folder, large = clone.save_pretrained(tmp_path / "clone"), clone.save_pretrained(tmp_path / "large")
        change(large, "adapters/0/insertion/grid", [2048, 2048])
        harmless(target, large, folder)

    @pytest.mark.slow
    def test_as_many_adapters_as_there_may_be(self, tmp_path):
        """Each is for the weights of the target, but for the last byte of a digest: none of them is hashed twice."""
        model = timm.create_model("resnet50", num_classes=7).eval()
        clone = tiny_clone(tiny_model("resnet"), model, insertion="layer4.2", universal=False)
        folder = clone.save_pretrained(tmp_path / "clone")
        (adapter,) = read_config(folder)["adapters"]
        known = adapter["target"]["fingerprint"].items()
        prints = {name: digest[:-1] + ("1" if digest[-1] == "0" else "0") for name, digest in known}
        others = [{**adapter, "name": f"a{number}"} for number in range(200)]
        for other in others:
            other["target"] = {**adapter["target"], "fingerprint": prints}
        write_config(folder, sealed({**without(read_config(folder), 0), "adapters": others}))
        with few_calls():
            refused(model, folder, FingerprintMismatchError)
        with untouched(model), bounded(), few_calls():
            assert isinstance(pnc_hub.check(model, folder).problem, FingerprintMismatchError)

    @pytest.mark.parametrize(
        ("path", "value"),
        [
            ("adapters/0/target/trunk", ["a"] * 700_000),
            slow("tail/shapes", {f"t{place}": [1] for place in range(150_000)}),
            slow("tail/attributes", {f"t{place}": {} for place in range(150_000)}),
            slow("adapters/1/metrics", {f"m{place}": 1 for place in range(200_000)}),
            slow("classes", [{"label": f"c{place}", "source_index": place} for place in range(80_000)]),
        ],
        ids=["B53-trunk", "B53-shapes", "B53-attributes", "B53-metrics", "D81-classes"],
    )
    def test_long_lists(self, clone_folder, target, path, value):
        change(clone_folder, path, value)
        if path == "adapters/1/metrics":  # nothing is computed of them
            with untouched(target), bounded():
                assert len(Clone.from_pretrained(clone_folder).config.adapters[1].metrics) == len(value)
        else:
            refused(target, clone_folder) if "trunk" not in path else elsewhere(target, clone_folder)


def elsewhere(target, folder) -> None:
    """Not recognised by its weights, the target gets the adapter at the input."""
    with untouched(target), bounded(), pnc_hub.attach(target, folder) as attachment:
        assert attachment.insertion == "input"


class TestSeal:
    """The configuration records the sha256 of what it says itself."""

    @pytest.mark.parametrize(
        ("path", "value"),
        [
            ("classes/0/label", "wolf"),
            *(slow(*case) for case in (("preprocess/mean/0", 0.25), ("probe/atol", 0.5), ("source/license", "mit"))),
        ],
    )
    def test_a43_a_value_changed(self, clone_folder, target, path, value):
        config = read_config(clone_folder)
        seal = config["files"][CONFIG]
        config = put(config, path, value)
        write_config(clone_folder, put(config, path, value) | {"files": {**config["files"], CONFIG: seal}})
        refused(target, clone_folder, IntegrityError, CONFIG)

    def test_a43_no_seal(self, clone_folder, target):
        config = read_config(clone_folder)
        del config["files"][CONFIG]
        write_config(clone_folder, config)
        refused(target, clone_folder, IntegrityError, CONFIG)

    def test_what_says_the_same_is_the_same(self, clone_folder, saved_clone, target):
        """However it is written: order, spaces and escapes are no part of it."""
        config = read_config(clone_folder)
        turned = {key: config[key] for key in reversed(config)}
        (clone_folder / CONFIG).write_text(json.dumps(turned, separators=(" ,\n", "\t: ")))
        harmless(target, clone_folder, saved_clone)
