"""What is kept comes back as it was, within bounds of memory and disk, and nothing is left behind."""

import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections import namedtuple

import pytest
import torch

from pnc_hub.cloning.images import kept
from pnc_hub.cloning.images.kept import PICTURE, SEGMENT, Kept

KEYS = ["first", "second", "third"]
ROWS = torch.randn(3, 5, 2)
PLACES = {"memory": {}, "file": {"memory": 0}, "both": {"memory": ROWS.nbytes}, "nowhere": {"memory": 0, "disk": 0}}


@pytest.fixture
def files(monkeypatch):
    """The temporary files that were made."""
    made, make = [], tempfile.TemporaryFile

    def temporary(*arguments, **options):
        made.append(make(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(tempfile, "TemporaryFile", temporary)
    return made


def sizes(files):
    return [os.fstat(file.fileno()).st_size for file in files]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32, torch.int64, torch.bool])
@pytest.mark.parametrize("place", ["memory", "file", "both"])
def test_what_is_kept_comes_back_equal(place, dtype):
    store, rows = Kept(**PLACES[place]), (10 * ROWS.abs()).to(dtype)
    for name in ("a", "b"):  # of "both" the second goes into the file
        assert store.put(name, KEYS, rows)
    for name in ("a", "b"):
        found = [store.get(name, key) for key in KEYS]
        assert all(map(torch.equal, found, rows))
        assert {row.dtype for row in found} == {dtype}
    assert store.has("a", "first")
    assert not store.has("a", "fourth")
    assert store.get("c", "first") is None


@pytest.mark.parametrize("place", ["memory", "file"])
def test_it_is_a_copy(place):
    store, rows = Kept(**PLACES[place]), ROWS.clone()
    store.put("a", KEYS, rows.transpose(1, 2))
    rows.zero_()
    assert torch.equal(store.get("a", "second"), ROWS[1].T)


def test_a_single_number_and_no_rows_at_all_can_be_kept():
    store = Kept(memory=0)
    assert store.put("a", KEYS, torch.tensor([1.0, 2.0, 3.0]))
    assert store.put("b", [], torch.empty(0, 4))
    assert store.get("a", "third") == 3.0


def test_memory_is_used_up_to_the_bound_and_the_file_beyond_it(files):
    store = Kept(memory=2 * ROWS.nbytes)
    for name in "ab":
        store.put(name, KEYS, ROWS)
    assert not files
    store.put("c", KEYS, ROWS)
    assert sizes(files) == [SEGMENT]


def test_the_file_grows_up_to_its_bound_and_beyond_it_nothing_is_kept(files):
    store = Kept(memory=0, disk=2 * SEGMENT)
    large = torch.ones(1, SEGMENT, dtype=torch.uint8)
    assert [store.put(name, ["one"], large) for name in "abc"] == [True, True, False]
    assert sizes(files) == [2 * SEGMENT]
    assert store.get("c", "one") is None
    assert all(torch.equal(store.get(name, "one"), large[0]) for name in "ab")


def test_rows_that_are_kept_already_take_no_room_again():
    store = Kept(memory=3 * ROWS.nbytes, disk=0)
    assert all(store.put("a", KEYS, ROWS) for _ in range(5))
    assert store.put("b", [*KEYS, *KEYS], torch.cat([ROWS, ROWS]))
    assert store.put("c", KEYS[:2], ROWS[:2])
    assert store.put("c", KEYS, ROWS)  # one is new
    assert all(torch.equal(store.get(name, key), row) for name in "abc" for key, row in zip(KEYS, ROWS, strict=True))
    assert not store.put("d", KEYS, ROWS)


def full(file):
    """A disk that takes some of what is written, and then no more."""

    class Full:
        def write(self, content):
            return file.write(content[: len(content) // 2])

        def __getattr__(self, name):
            return getattr(file, name)

    return Full()


def failing(file):
    class Failing:
        def write(self, content):
            file.write(content[: len(content) // 2])
            raise OSError(28, "No space left on device")

        def __getattr__(self, name):
            return getattr(file, name)

    return Failing()


@pytest.mark.parametrize("disk", [full, failing])
def test_a_full_disk_is_no_fault_and_what_was_written_last_is_given_back(files, disk):
    store = Kept(memory=0)
    large = torch.ones(1, SEGMENT, dtype=torch.uint8)
    assert store.put("a", ["one"], large)
    store._file = disk(store._file)
    assert [store.put(name, ["one"], large) for name in "bc"] == [False, False]
    assert torch.equal(store.get("a", "one"), large[0])
    assert sizes(files) == [SEGMENT]


def test_half_of_what_is_free_is_left_to_others(files, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(kept.shutil, "disk_usage", lambda _: usage(2 * SEGMENT - 1))
    assert not Kept(memory=0).put("a", KEYS, ROWS)
    assert sizes(files) == [0]


def test_without_a_folder_for_temporary_files_memory_has_to_do(monkeypatch):
    def none(**_):
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(tempfile, "TemporaryFile", none)
    store = Kept(memory=ROWS.nbytes)
    assert [store.put(name, KEYS, ROWS) for name in "ab"] == [True, False]


def test_a_copy_for_another_process_knows_which_pictures_are_there():
    store = Kept(memory=0)
    store.put(PICTURE, KEYS, ROWS)
    store.put("a", KEYS, ROWS)
    copy = pickle.loads(pickle.dumps(store))
    assert copy.has(PICTURE, "first")
    assert not copy.has(PICTURE, "fourth")
    assert len(pickle.dumps(store)) < ROWS.nbytes + 500


PROGRAM = """
import time, torch
from pnc_hub.cloning.images.kept import Kept
store = Kept(memory=0)
assert store.put("a", ["one"], torch.ones(1, 1000))
print("kept", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_no_file_is_left_however_the_process_ends(tmp_path, end):
    environment = {**os.environ, "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout.readline() == b"kept\n"
        assert not any(tmp_path.iterdir())  # not even now
        process.send_signal(end)
    assert process.returncode != 0
    assert not any(tmp_path.iterdir())
