"""Errors keep what they know, and the builtin types under which they may already be caught."""

import copy
import inspect
import pickle

import pytest

from pnc_hub import errors
from pnc_hub.errors import ArtifactError, PncHubError, located

ALL = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if kind.__module__ == errors.__name__]
ARTIFACT = [kind for kind in ALL if issubclass(kind, ArtifactError)]


@pytest.mark.parametrize("kind", ALL)
def test_every_error_is_ours_and_says_what_it_means(kind):
    assert issubclass(kind, PncHubError)
    assert kind.__doc__


@pytest.mark.parametrize(
    ("kind", "base"),
    [
        ("CloneNotFoundError", FileNotFoundError),
        ("MalformedArtifactError", ValueError),
        ("IntegrityError", errors.MalformedArtifactError),
        ("InsertionPointError", LookupError),
        ("ClassCollisionError", ValueError),
        ("ImageError", ValueError),
        ("SourceError", ValueError),
        ("DataError", ValueError),
        ("NoClassifierError", errors.TargetError),
    ],
)
def test_builtin_bases(kind, base):
    assert issubclass(getattr(errors, kind), base)


def test_codes_are_different():
    assert len({kind.code for kind in ARTIFACT}) == len(ARTIFACT)


@pytest.mark.parametrize("kind", ARTIFACT)
@pytest.mark.parametrize("copied", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy, copy.deepcopy])
def test_copies_keep_everything(kind, copied):
    error = copied(kind("it is broken", repo_id="user/birds", revision="v1", file="config.json"))
    assert type(error) is kind
    assert (error.reason, error.repo_id, error.revision, error.file) == (
        "it is broken",
        "user/birds",
        "v1",
        "config.json",
    )
    assert error.code == kind.code
    assert str(error) == "user/birds@v1, config.json: it is broken"


@pytest.mark.parametrize("kind", ARTIFACT)
def test_what_is_not_known_is_not_said(kind):
    assert str(kind("it is broken")) == "it is broken"
    assert str(kind("it is broken", file="a")) == "a: it is broken"
    assert kind("it is broken").repo_id is None


def test_where_it_happened_is_added_once():
    with (
        pytest.raises(ArtifactError) as found,
        located(repo_id="other/name", file="b"),
        located(repo_id="user/birds", revision="v1"),
    ):
        raise ArtifactError("it is broken", file="a")
    assert str(found.value) == "user/birds@v1, a: it is broken"
    with pytest.raises(KeyError), located(repo_id="user/birds"):
        raise KeyError("not of an artifact")
