"""A safetensors file is read only if it is, to the byte, what it should be."""

import json
import os
import pickle
import struct
import threading

import pytest
import torch
from common import sha256

from pnc_hub.artifact import files
from pnc_hub.errors import ArtifactError, CloneNotFoundError, IntegrityError, MalformedArtifactError

FILE = "model.safetensors"
TENSORS = {"a": torch.arange(4.0), "b": torch.ones(2, 3)}
EXPECTED = files.specs(TENSORS.items())


def container(header, body: bytes = b"\0" * 40, length: int | None = None) -> bytes:
    """The bytes of a safetensors file; ``header`` is text, bytes or what becomes JSON."""
    if not isinstance(header, (str, bytes)):
        header = json.dumps(header)
    header = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(header) if length is None else length) + header + body


def entry(shape, start: int, stop: int, dtype="F32", **more) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop], **more}


A, B = entry([4], 0, 16), entry([2, 3], 16, 40)
VALID = container({"a": A, "b": B})
TWICE = f'{{"a": {json.dumps(A)}, "a": {json.dumps(A)}, "b": {json.dumps(B)}}}'

NO_SAFETENSORS = {
    "empty": b"",
    "seven bytes": b"\x08" + b"\0" * 6,
    "eight bytes": b"\0" * 8,
    "pickle": pickle.dumps({"a": [0.0] * 100}),
    "zip": b"PK\x03\x04" + b"\0" * 100,
    "header of 2^63": container({"a": A}, length=2**63),
    "header of 2^64-1": container({"a": A}, length=2**64 - 1),
    "header of 99 MB in 100 bytes": container({}, length=99 << 20),
    "header longer than the file": container({"a": A, "b": B}, body=b"", length=10**4),
    "header too long": container(" " * (files.MAX_HEADER_BYTES + 1), body=b""),
    "no JSON": container("{a: 1}"),
    "no UTF-8": container(b'{"\xff": 1}'),
    "list": container([A, B]),
    "null": container("null"),
    "NULs after the header": container(json.dumps({"a": A, "b": B}) + "\0\0"),
    "deep nesting": container("[" * 10**5 + "]" * 10**5),
    "NaN in the header": container('{"a": {"dtype": "F32", "shape": [4], "data_offsets": [NaN, 16]}}'),
    "duplicate tensor": container(TWICE),
    "one byte less": VALID[:-1],
    "one byte more": VALID + b"\0",
    "offsets past the end": container({"a": A, "b": entry([2, 3], 1016, 1040)}),
    "overlap": container({"a": A, "b": entry([2, 3], 0, 24)}, b"\0" * 24),
    "partial overlap": container({"a": A, "b": entry([2, 3], 8, 32)}, b"\0" * 32),
    "hole": container({"a": A, "b": entry([2, 3], 20, 44)}, b"\0" * 44),
    "hole at the start": container({"a": entry([4], 4, 20)}, b"\0" * 20),
    "begins after it ends": container({"a": entry([4], 16, 0)}),
    "negative offset": container({"a": entry([4], -16, 0)}),
    "negative shape": container({"a": entry([-2, -2], 0, 16)}),
    "real shape": container({"a": entry([4.0], 0, 16), "b": B}),
    "bool shape": container({"a": entry([True, 4], 0, 16)}),
    "text shape": container({"a": entry("4", 0, 16)}),
    "shape too small": container({"a": entry([3], 0, 16), "b": B}),
    "2^32 x 2^32": container({"a": entry([2**32, 2**32], 0, 16)}),
    "0 x 2^62": container({"a": entry([0, 2**62], 0, 0)}, b""),
    "many dimensions": container({"a": entry([1] * 10**4, 0, 4)}, b"\0" * 4),
    "three offsets": container({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8, 16]}}),
    "unknown dtype": container({"a": entry([4], 0, 16, "F33")}),
    "dtype of no kind": container({"a": entry([4], 0, 16, ["F32"])}),
    "complex": container({"a": entry([2], 0, 16, "C64")}),
    "missing field": container({"a": {"dtype": "F32", "shape": [4]}}),
    "no object": container({"a": 5}),
    "long name": container({"a" * 10**6: A}),
}

HARMLESS = {
    "extra field": container({"a": {**A, "url": "http://evil"}, "b": B}),
    "metadata that are no text": container({"__metadata__": {"a": 1}, "a": A, "b": B}),
    "metadata that are no object": container({"__metadata__": [], "a": A, "b": B}),
}

OTHER_TENSORS = {
    "missing": {"a": TENSORS["a"]},
    "surplus": {**TENSORS, "c": torch.zeros(1)},
    "renamed": {"a": TENSORS["a"], "B": TENSORS["b"]},
    "transposed": {**TENSORS, "b": torch.ones(3, 2)},
    "flattened": {**TENSORS, "b": torch.ones(6)},
    **{
        str(dtype): {**TENSORS, "a": torch.zeros(4, dtype=dtype)}
        for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.bool)
    },
    **{
        f"{value} in {name}": {**TENSORS, name: torch.full(TENSORS[name].shape, value)}
        for name in TENSORS
        for value in (float("nan"), float("inf"), float("-inf"))
    },
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / FILE


def read(path, digest: str | None = None) -> dict[str, torch.Tensor]:
    return files.read_tensors(path, EXPECTED, digest or sha256(path), FILE)


class TestTensors:
    def test_what_was_written_is_read(self, path):
        path.write_bytes(files.tensor_bytes(TENSORS))
        found = read(path)
        assert found.keys() == TENSORS.keys()
        assert all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)
        assert files.read_header(path, FILE).tensors == EXPECTED

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("bad", [None, float("nan"), float("inf"), float("-inf")], ids=str)
    def test_tensors_of_every_dtype_are_finite(self, path, dtype, bad):
        tensors = {
            "a": torch.randn(3, 5).to(dtype),
            "empty": torch.zeros(0, 3).to(dtype),
            "one": torch.ones(()).to(dtype),
        }
        if bad is not None:
            tensors["a"][1, 2] = bad
        path.write_bytes(files.tensor_bytes(tensors))
        expected, digest = files.specs(tensors.items()), sha256(path)
        if bad is None:
            found = files.read_tensors(path, expected, digest, FILE)
            assert all(torch.equal(found[name], tensors[name]) for name in tensors)
            return
        with pytest.raises(MalformedArtifactError, match="'a' holds NaN or infinity"):
            files.read_tensors(path, expected, digest, FILE)

    @pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.bool], ids=str)
    def test_whole_numbers_and_truth_values(self, path, dtype):
        tensors = {"a": torch.tensor([[1, 0, 1]]).to(dtype), "one": torch.ones(()).to(dtype)}
        path.write_bytes(files.tensor_bytes(tensors))
        found = files.read_tensors(path, files.specs(tensors.items()), sha256(path), FILE)
        assert all(torch.equal(found[name], tensors[name]) for name in tensors)

    def test_tensors_are_read_to_the_cpu_whatever_the_default_device(self, path):
        path.write_bytes(files.tensor_bytes(TENSORS))
        with torch.device("meta"):
            found = read(path)
        assert all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)

    def test_every_tensor_has_memory_of_its_own(self, path):
        """None keeps a whole file in memory, and what is done to one does nothing to another."""
        path.write_bytes(files.tensor_bytes(TENSORS))
        found = read(path)
        assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in found.values())
        assert all(tensor.data_ptr() % 16 == 0 for tensor in found.values())

    def test_the_same_tensors_give_the_same_bytes(self, path, tmp_path):
        path.write_bytes(files.tensor_bytes(TENSORS))
        views = {"b": torch.ones(3, 2).t(), "a": torch.arange(8.0)[:4]}
        assert files.tensor_bytes(views) == path.read_bytes()

    def test_the_crafted_files_differ_from_a_good_one_in_what_they_say_alone(self, path):
        path.write_bytes(VALID)
        assert files.read_header(path, FILE).tensors == EXPECTED
        assert not read(path)["a"].any()

    @pytest.mark.parametrize("data", NO_SAFETENSORS.values(), ids=NO_SAFETENSORS)
    def test_what_is_no_safetensors_file(self, path, data):
        path.write_bytes(data)
        with pytest.raises(MalformedArtifactError) as error:
            read(path)
        assert error.value.file == FILE
        assert len(str(error.value)) < 1000

    @pytest.mark.parametrize("data", HARMLESS.values(), ids=HARMLESS)
    def test_what_says_the_same_in_other_words(self, path, data):
        path.write_bytes(data)
        found = read(path)
        assert files.specs(found.items()) == EXPECTED
        assert not any(bool(tensor.any()) for tensor in found.values())

    @pytest.mark.parametrize("tensors", OTHER_TENSORS.values(), ids=OTHER_TENSORS)
    def test_other_tensors_than_expected(self, path, tensors):
        path.write_bytes(files.tensor_bytes(tensors))
        with pytest.raises(MalformedArtifactError) as error:
            read(path)
        assert error.value.file == FILE

    def test_names_that_would_reach_elsewhere_are_just_surplus(self, path):
        for name in ("", "nul\0", "../../x", "__class__.__init__", "__metadata"):
            path.write_bytes(container({name: A, "b": B}))
            with pytest.raises(MalformedArtifactError, match="surplus"):
                read(path)

    def test_the_digest_comes_first(self, path):
        path.write_bytes(VALID)
        digest = sha256(path)
        for data in (VALID[:-1] + b"\1", b"", VALID + b"\0"):
            path.write_bytes(data)
            with pytest.raises(IntegrityError, match="sha256") as error:
                read(path, digest)
            assert (error.value.file, error.value.code) == (FILE, "integrity")


class TestOpening:
    @pytest.mark.parametrize(
        "function",
        [
            lambda path: read(path, "0" * 64),
            lambda path: files.read_header(path, FILE),
            lambda path: files.read_json(path, FILE),
        ],
    )
    def test_what_is_no_regular_file_is_not_opened(self, tmp_path, function):
        (tmp_path / "folder").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "folder")
        (tmp_path / "loop").symlink_to(tmp_path / "loop")
        os.mkfifo(tmp_path / "fifo")

        def attempts():
            for name in ("folder", "link", "loop", "fifo"):
                with pytest.raises(ArtifactError) as error:
                    function(tmp_path / name)
                assert isinstance(error.value, MalformedArtifactError)
                assert error.value.file == FILE
            done.append(True)

        done = []
        thread = threading.Thread(target=attempts, daemon=True)
        thread.start()
        thread.join(10)  # opening a FIFO waits for a writer that never comes
        assert done

    @pytest.mark.parametrize("name", ["missing", "file/below", "broken-link"])
    def test_what_is_not_there(self, tmp_path, name):
        (tmp_path / "file").write_text("")
        (tmp_path / "broken-link").symlink_to(tmp_path / "nowhere")
        with pytest.raises(CloneNotFoundError, match="no such file") as error:
            read(tmp_path / name, "0" * 64)
        assert error.value.file == FILE

    def test_too_large_a_file_is_not_read(self, path):
        with path.open("wb") as file:
            file.truncate(files.MAX_FILE_BYTES + 1)  # sparse
        with pytest.raises(MalformedArtifactError, match="more than the"):
            read(path, "0" * 64)
        with pytest.raises(MalformedArtifactError, match="more than the"):
            files.read_json(path, FILE)

    def test_links_to_files_are_followed(self, path, tmp_path):
        """The Hub's cache consists of them."""
        (tmp_path / "blob").write_bytes(VALID)
        path.symlink_to(tmp_path / "blob")
        assert read(path).keys() == TENSORS.keys()


class TestJson:
    def test_text_of_any_language_is_kept(self, path):
        value = {"label": "日本語 🐝", "numbers": [1, -2.5, True, None]}
        path.write_bytes(files.json_bytes(value))
        assert files.read_json(path, FILE) == value
        assert "日本語" in path.read_text(encoding="utf-8")

    @pytest.mark.parametrize(
        "text",
        [
            '{"a": 1, "a": 1}',
            '{"b": {"a": 1, "a": 2}}',
            "NaN",
            "[Infinity]",
            "[-Infinity]",
            "1e999",
            "9" * 20,
            "",
            "{",
            "'a'",
        ],
    )
    def test_json_that_is_read_in_more_than_one_way(self, path, text):
        path.write_text(text)
        with pytest.raises(MalformedArtifactError, match="not valid JSON"):
            files.read_json(path, FILE)
