"""A: files that are no safetensors, or hold other tensors than they must."""

import copy
import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable

import pytest
import safetensors.torch
import torch
from common import images, slow, tiny_clone, tiny_model

import pnc_hub
from hostile.harness import (
    by_number,
    change,
    file_of,
    harmless,
    read_config,
    refused,
    replace,
    reseal,
    untouched,
    without,
    write_config,
)
from pnc_hub.artifact.files import MAX_HEADER_BYTES, TRUNK, WEIGHTS
from pnc_hub.errors import IntegrityError, MalformedArtifactError, ProbeError, TargetError

Change = Callable[[bytes], bytes]


def split(data: bytes) -> tuple[dict, bytes]:
    """Header and body of a safetensors file."""
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(header: dict | bytes, body: bytes, length: int | None = None) -> bytes:
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + body


def with_header(edit: Callable[[dict], dict | bytes | None], body: bytes = b"") -> Change:
    """Change the header, which ``edit`` does in place or by returning another; ``body`` goes behind what is there."""

    def changed(data: bytes) -> bytes:
        header, old = split(data)
        return joined(edit(header) or header, old + body)

    return changed


def entry(**changes: object) -> Change:
    """Change what the header says of its first tensor."""
    return with_header(lambda header: first(header).update(changes))


def first(header: dict) -> dict:
    return header[min(name for name in header if name != "__metadata__")]


def shifted(header: dict, start: int, stop: int) -> None:
    begin, end = first(header)["data_offsets"]
    first(header)["data_offsets"] = [begin + start, end + stop]


def length(value: int, body: bytes = b"{}") -> Change:
    return lambda data: struct.pack("<Q", value) + body


def twice(data: bytes) -> bytes:
    header, body = split(data)
    text = json.dumps(header)
    name = min(name for name in header if name != "__metadata__")
    return joined(f"{{{json.dumps(name)}: {json.dumps(header[name])}, {text[1:]}".encode(), body)


def renamed(name: str) -> Change:
    def edit(header: dict) -> None:
        header[name] = header.pop(min(key for key in header if key != "__metadata__"))

    return with_header(edit)


def zipped(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"a": 1}))
    return buffer.getvalue()


def tensors(edit: Callable[[dict[str, torch.Tensor]], object]) -> Change:
    """Change the tensors, which ``edit`` does in place."""

    def changed(data: bytes) -> bytes:
        loaded = safetensors.torch.load(data)
        edit(loaded)
        return safetensors.torch.save(loaded, metadata={"format": "pt"})

    return changed


def some(loaded: dict[str, torch.Tensor], ending: str = "weight") -> str:
    """A convolution's weight that is not square, or the first of another ending."""
    found = (name for name in sorted(loaded) if name.endswith(ending))
    return next(
        name for name in found if ending != "weight" or loaded[name].shape[0] != loaded[name].shape[1:2].numel()
    )


def cast(dtype: torch.dtype) -> Change:
    return tensors(lambda loaded: loaded.update({some(loaded): loaded[some(loaded)].to(dtype)}))


def filled(value: float, ending: str = "weight") -> Change:
    return tensors(lambda loaded: loaded[some(loaded, ending)].view(-1)[0].fill_(value))


MANY = {f"tensor{place}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for place in range(40_000)}

REFUSED = {
    "A01-empty": lambda data: b"",
    "A02-seven bytes": lambda data: b"\x08" + b"\0" * 6,
    "A03-pickle": lambda data: pickle.dumps({"state_dict": [0.0] * 100}),
    "A03-pickle that would run": lambda data: b"cos\nsystem\n(S'touch /tmp/pwned'\ntR." + data,
    "A04-zip": zipped,
    "A05-header of 2^63": length(2**63),
    "A06-header of 2^64-1": length(2**64 - 1),
    "A07-header of 100 MB and 1": lambda data: joined(b"{}" + b" " * (100 << 20), b""),
    "A07-header beyond our limit": lambda data: joined(b"{}" + b" " * MAX_HEADER_BYTES, b""),
    "A08-header of 99 MB in 100 bytes": length(99 << 20, b" " * 92),
    "A09-no JSON": lambda data: joined(b"{a: 1}", b""),
    "A10-list": lambda data: joined(b"[]", b""),
    "A11-no UTF-8": lambda data: joined(b'{"\xff": 1}', b""),
    "A12-NULs behind the header": lambda data: joined(json.dumps(split(data)[0]).encode() + b"\0\0", split(data)[1]),
    "A13-deep nesting": lambda data: joined(b"[" * 10**5 + b"]" * 10**5, b""),
    "A14-offsets past the end": with_header(lambda header: shifted(header, 1 << 30, 1 << 30)),
    "A15-one byte less": lambda data: data[:-1],
    "A16-one byte more": lambda data: data + b"\0",
    "A17-overlap": with_header(lambda header: [one.update(first(header)) for one in list(header.values())[1:]] and None),
    "A18-partial overlap": with_header(lambda header: shifted(header, 4, 4)),
    "A19-hole": with_header(lambda header: shifted(header, 1 << 20, 1 << 20), b"\0" * (1 << 20)),
    "A20-begins after it ends": with_header(lambda header: first(header)["data_offsets"].reverse()),
    "A21-negative shape": entry(shape=[-4, -1]),
    "A22-negative offset": entry(data_offsets=[-16, 0]),
    "A23-real shape": entry(shape=[4.5]),
    "A23-real shape of the same size": with_header(
        lambda header: first(header).update(shape=[*map(float, first(header)["shape"])])
    ),
    "A24-2^32 x 2^32": entry(shape=[2**32, 2**32]),
    "A25-0 x 2^62": entry(shape=[0, 2**62]),
    "A26-100000 dimensions": entry(shape=[1] * 100_000),
    "A27-unknown dtype": entry(dtype="F33"),
    **{f"A28-{dtype}": cast(dtype) for dtype in (torch.float64, torch.int64, torch.bool, torch.complex64, torch.float16)},
    **{f"A28-{dtype}": entry(dtype=dtype) for dtype in ("F8_E4M3", "F4", "F6_E2M3")},
    "A29-tensor twice": twice,
    "A31-empty tensors at one place": with_header(
        lambda header: header.update({name: MANY[name] for name in ("tensor0", "tensor1")})
    ),
    **{f"A32-name {name!r:.20}": renamed(name) for name in ("nul\0", "", "../../x", "__class__.__init__", "a" * 10**6)},
    "A33-900000 tensors": lambda data: joined(json.dumps(MANY).encode() * 22, b""),
    "A33-40000 tensors": lambda data: joined(MANY, b""),
    "A34-99 MB of metadata": with_header(lambda header: header.update(__metadata__={"a": " " * (99 << 20)})),
    "A35-NaN": filled(float("nan")),
    "A36-infinity": filled(float("inf")),
    "A36-minus infinity": filled(float("-inf")),
    "A37-overflow in the file": tensors(lambda loaded: loaded[some(loaded)].view(-1)[0].fill_(3e38).mul_(10)),
    "A38-negative variance": filled(-0.1, "running_var"),
    "A39-missing tensor": tensors(lambda loaded: loaded.pop(some(loaded))),
    "A40-surplus tensor": tensors(lambda loaded: loaded.update(more=torch.zeros(1))),
    "A41-transposed": tensors(lambda loaded: loaded.update({some(loaded): loaded[some(loaded)].transpose(0, 1).contiguous()})),
    "A41-flattened": tensors(lambda loaded: loaded.update({some(loaded): loaded[some(loaded)].flatten()})),
    "A42-the adapter's tensor too": tensors(lambda loaded: loaded.update({"adapter.map.bias": torch.zeros(1)})),
}  # fmt: skip

HARMLESS = {
    "A30-extra field": entry(url="https://example.org"),
    "A30-space before the header": lambda data: joined(b"  " + json.dumps(split(data)[0]).encode(), split(data)[1]),
    "A34-3 MB of metadata": with_header(lambda header: header.update(__metadata__={"a": " " * (3 << 20)})),
}


@by_number(REFUSED)
def test_weights_that_are_refused(clone_folder, target, case):
    replace(clone_folder, WEIGHTS, case((clone_folder / WEIGHTS).read_bytes()))
    refused(target, clone_folder, file=WEIGHTS)


@by_number(
    {name: REFUSED[name] for name in REFUSED if name[:3] in ("A01", "A03", "A05", "A15", "A20", "A29", "A35", "A40")}
)
@pytest.mark.parametrize("which", ["adapter", *map(slow, ["trunk", "probe"])])
def test_other_files_are_read_as_strictly(clone_folder, target, case, which):
    config = read_config(clone_folder)
    file = file_of(config["adapters"][0]) if which == "adapter" else f"{which}.safetensors"
    data = (clone_folder / file).read_bytes()
    try:
        replace(clone_folder, file, case(data))
    except StopIteration:  # no map among its tensors
        pytest.skip("nothing of the kind in this file")
    if which == "trunk":
        write_config(clone_folder, without(config, 0))
        reseal(clone_folder, file)
    act = verify if which == "probe" else pnc_hub.attach
    refused(target, clone_folder, file=file, act=act)


@pytest.mark.parametrize("count", ["a", None, 2.0, 2.5, True, [2]])
def test_a23_sizes_that_are_no_whole_numbers(clone_folder, target, count):
    """Of the probe: its first sizes are its own affair, and are computed with."""
    path = clone_folder / "probe.safetensors"
    header, content = split(path.read_bytes())
    image = next(name for name in header if name.endswith("/image"))
    header[image]["shape"][0] = count
    replace(clone_folder, path.name, joined(json.dumps(header).encode(), content))
    refused(target, clone_folder, file=path.name, act=verify)


def verify(model, clone):
    with pnc_hub.attach(model, clone) as attachment:
        attachment.verify()


@by_number(HARMLESS)
def test_weights_that_say_the_same(clone_folder, saved_clone, target, case):
    replace(clone_folder, WEIGHTS, case((clone_folder / WEIGHTS).read_bytes()))
    harmless(target, clone_folder, saved_clone)


class TestNumbers:
    """Finite numbers of the right shape."""

    def test_a37_weights_that_half_precision_can_not_hold(self, clone_folder, target):
        """A channel whose variance became infinite would answer, and wrongly."""
        replace(clone_folder, WEIGHTS, filled(1e6, "running_var")((clone_folder / WEIGHTS).read_bytes()))
        half = copy.deepcopy(target).half()
        refused(half, clone_folder, TargetError)
        with pnc_hub.attach(copy.deepcopy(target).bfloat16(), clone_folder):
            pass
        with pnc_hub.attach(half.float(), clone_folder), pytest.raises(TargetError, match="bfloat16"):
            half.half()(images().half())

    def test_a37_activations_that_half_precision_can_not_hold(self, target):
        """The target's answer stands, and the probe tells."""
        half = copy.deepcopy(target).half()
        clone = tiny_clone(tiny_model("resnet"), target)
        for tensor in clone.tensors[WEIGHTS].values():
            if tensor.dim() == 4:
                tensor.mul_(2e3)
        alone = half(images().half())
        with untouched(half), pnc_hub.attach(half, clone) as attachment:
            logits = half(images().half())
            assert torch.equal(logits[:, : alone.shape[1]], alone)
            assert bool(logits[:, attachment.logit_slice].isneginf().all())
            clone.tensors["probe.safetensors"].update(expected_logits(clone))
            with pytest.raises(ProbeError, match="bfloat16"):
                attachment.verify()

    @pytest.mark.parametrize("value", [1e-42, 0.0])
    def test_a37_a38_numbers_next_to_nothing(self, clone_folder, target, value):
        replace(clone_folder, WEIGHTS, filled(value, "running_var")((clone_folder / WEIGHTS).read_bytes()))
        for model in (copy.deepcopy(target), copy.deepcopy(target).half()):
            with untouched(model), pnc_hub.attach(model, clone_folder):
                assert bool(model(images().to(next(model.parameters()))).isfinite().all())

    @pytest.mark.parametrize("value", [10**6, *map(slow, [-(10**6), 2**62])])
    def test_a28_indices_that_point_elsewhere(self, tmp_path, target, value):
        """Window attention looks its biases up; an index out of range stops a GPU for the whole process."""
        folder = tiny_clone(tiny_model("swin"), target, family="swin").save_pretrained(tmp_path / "clone")
        edit = tensors(lambda loaded: loaded[indices(loaded)].view(-1)[0].fill_(value))
        replace(folder, WEIGHTS, edit((folder / WEIGHTS).read_bytes()))
        refused(target, folder, file=WEIGHTS)


def expected_logits(clone) -> dict[str, torch.Tensor]:
    """What the clone answers its probe in float32."""
    adapter = clone.config.adapters[0]
    module, _ = clone.build(adapter, clone.config.preprocess)
    return {f"{adapter.name}/logits": module(clone.probe(adapter)["feature"])[0]}


def indices(loaded: dict[str, torch.Tensor]) -> str:
    return next(name for name, tensor in loaded.items() if tensor.dtype == torch.int64 and tensor.dim())


class TestDigests:
    def test_a43_one_byte_of_the_same_size(self, clone_folder, target):
        for file in (WEIGHTS, file_of(read_config(clone_folder)["adapters"][0])):
            data = (clone_folder / file).read_bytes()
            (clone_folder / file).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
            refused(target, clone_folder, IntegrityError, file)
            (clone_folder / file).write_bytes(data)

    def test_a44_the_digest_of_another_file(self, clone_folder, target):
        change(clone_folder, f"files/{WEIGHTS}", read_config(clone_folder)["files"][TRUNK])
        refused(target, clone_folder, IntegrityError, WEIGHTS)

    def test_a44_files_that_changed_places(self, clone_folder, target):
        data = {file: (clone_folder / file).read_bytes() for file in (WEIGHTS, TRUNK)}
        replace(clone_folder, WEIGHTS, data[TRUNK])
        replace(clone_folder, TRUNK, data[WEIGHTS])
        refused(target, clone_folder, MalformedArtifactError, WEIGHTS)

    def test_a93_four_sparse_gigabytes_are_not_even_hashed(self, clone_folder, target):
        with (clone_folder / WEIGHTS).open("r+b") as file:
            file.truncate(4 << 30)
        refused(target, clone_folder, file=WEIGHTS)
