"""Random changes of a valid artifact: each is refused with a typed error, or says the same."""

import json
import random
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pnc_hub
from hostile.harness import bounded, everything, file_of, harmless, read_config, replace, sealed, write_config
from pnc_hub import Clone
from pnc_hub.artifact.files import CONFIG, PROBE, TRUNK, WEIGHTS
from pnc_hub.errors import ArtifactError, PncHubError

EXAMPLES = 250
FILES = (WEIGHTS, TRUNK, PROBE, "adapters/mobilenetv2_035.safetensors", "adapters/universal.safetensors")
SETTINGS = settings(deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)


@pytest.fixture(scope="module")
def folder(saved_clone, tmp_path_factory):
    return shutil.copytree(saved_clone, tmp_path_factory.mktemp("mutated") / "clone")


@pytest.fixture(scope="module")
def was(_target):
    """What the target is before the first of many attempts."""
    torch.manual_seed(0)
    return everything(_target)


def mutate(data: bytes, kind: str, seed: int) -> bytes:
    """One change of ``kind`` at a random place; in the header or the body of a tensor file alike."""
    chance = random.Random(seed)
    place = chance.randrange(min(len(data), chance.choice([64, 4096, len(data)])))
    some = chance.randbytes(chance.choice([1, 2, 8, 100]))
    if kind == "flip":
        return data[:place] + bytes([data[place] ^ 1 << chance.randrange(8)]) + data[place + 1 :]
    if kind == "overwrite":
        return data[:place] + some + data[place + len(some) :]
    if kind == "insert":
        return data[:place] + some + data[place:]
    if kind == "remove":
        return data[:place] + data[place + len(some) :]
    if kind == "cut":
        return data[:place]
    return data[:place] + data[place : place + 50] * 2 + data[place + 50 :]


KINDS = st.sampled_from(["flip", "overwrite", "insert", "remove", "cut", "repeat"])


@pytest.mark.parametrize("kind", ["flip", "remove"])
@pytest.mark.parametrize("which", range(4))
def test_a_change_of_each_file(folder, saved_clone, target, was, which, kind):
    damaged(folder, saved_clone, target, was, which, kind, seed=which)


@pytest.mark.slow
@given(which=st.integers(0, 3), kind=KINDS, seed=st.integers(0, 2**32))
@settings(SETTINGS, max_examples=EXAMPLES)
def test_bytes_of_any_file(folder, saved_clone, target, was, which, kind, seed):
    damaged(folder, saved_clone, target, was, which, kind, seed)


def damaged(folder, saved_clone, target, was, which, kind, seed) -> None:
    """As damage does it: the digests are those of the files as they were."""
    file = [CONFIG, WEIGHTS, file_of(read_config(saved_clone)["adapters"][0]), "probe.safetensors"][which]
    data = (saved_clone / file).read_bytes()
    changed = mutate(data, kind, seed)
    (folder / file).write_bytes(changed)
    try:
        refused_or_the_same(target, was, folder, saved_clone, file, changed == data)
    finally:
        (folder / file).write_bytes(data)


def refused_or_the_same(target, was, folder, saved_clone, file, same) -> None:
    try:
        with bounded(), pnc_hub.attach(target, folder) as attachment:
            attachment.verify()
    except ArtifactError as error:
        told = error.repo_id, error.file
        assert told == (str(folder), file)
        assert not same
    else:
        assert same or (file == CONFIG and read_config(folder) == read_config(saved_clone))
        harmless(target, folder, saved_clone)
    assert everything(target) == was


@pytest.mark.slow
@given(kind=KINDS, seed=st.integers(0, 2**32))
@settings(SETTINGS, max_examples=EXAMPLES // 2)
def test_bytes_of_the_weights_with_their_digest(folder, saved_clone, target, was, kind, seed):
    """As malice does it: what is accepted has exactly the tensors that it must have, and all of them are finite."""
    data = (saved_clone / WEIGHTS).read_bytes()
    replace(folder, WEIGHTS, mutate(data, kind, seed))
    try:
        with bounded(), pnc_hub.attach(target, folder) as attachment:
            tensors = attachment.clone.all_tensors()[WEIGHTS]
        valid = Clone.from_pretrained(saved_clone).all_tensors()[WEIGHTS]
        assert {name: (value.shape, value.dtype) for name, value in tensors.items()} == {
            name: (value.shape, value.dtype) for name, value in valid.items()
        }
        assert all(bool(value.isfinite().all()) for value in tensors.values())
    except ArtifactError as error:
        told = error.repo_id, error.file
        assert told == (str(folder), WEIGHTS)
    finally:
        replace(folder, WEIGHTS, data)
    assert everything(target) == was


NUMBERS = st.one_of(st.booleans(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False))
JUNK = st.one_of(st.none(), NUMBERS, st.text(max_size=20), st.just([]), st.just({}))


def paths(value, at=()):
    """The place of every value inside ``value``."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield (*at, key)
        yield from paths(child, (*at, key))


# What a clone computes follows from these; another one that is valid is another clone.
COMPUTED = {"preprocess", "insertion", "trunk", "tail", "cut", "model_args", "architecture"}


@pytest.mark.slow
@given(data=st.data())
@settings(SETTINGS, max_examples=EXAMPLES // 2)
def test_values_of_the_configuration_with_its_digest(folder, saved_clone, target, was, data):
    """As malice does it: what is accepted is what the file says, to the last value, and the target answers as ever."""
    config = json.loads((saved_clone / CONFIG).read_text())
    place = data.draw(st.sampled_from(list(paths(config))))
    holder = config
    for key in place[:-1]:
        holder = holder[key]
    old = holder[place[-1]]
    near = st.integers(old - 2, old + 2) if type(old) is int else st.sampled_from([f"{old}x", f"{old}"[:-1]])
    holder[place[-1]] = data.draw(st.one_of(near, JUNK))
    write_config(folder, sealed(config))
    refusal = None
    try:
        with bounded(), pnc_hub.attach(target, folder) as attachment:
            assert attachment.clone.config.to_dict() == sealed(config)
            assert attachment.labels == tuple(entry["label"] for entry in config["classes"])
        if not COMPUTED.intersection(place):
            harmless(target, folder, saved_clone)
    except PncHubError as error:
        refusal = error
    finally:
        shutil.copy(saved_clone / CONFIG, folder / CONFIG)
    assert everything(target) == was
    if isinstance(refusal, ArtifactError):
        assert refusal.repo_id == str(folder)
        assert refusal.file in (CONFIG, *FILES)
    elif refusal is not None:  # it was made for another target, says the configuration
        assert place[0] == "adapters", refusal
