"""Classes by mapping, name and index, and which labels of the data are which."""

import numpy as np
import pytest
import timm
from common import tiny_model
from torch.utils.data import Dataset

from pnc_hub.cloning.images.classes import relabel_cloned, relabel_target, resolve_classes
from pnc_hub.errors import DataError, SourceError

NAMES = ["ant", "bee", "cat", "dog", "elk", "fox", "gnu"]


class Listed(Dataset):
    """(item, label) pairs as given."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


@pytest.fixture(scope="module")
def nameless():
    return tiny_model("resnet")


@pytest.fixture(scope="module")
def named():
    model = timm.create_model("resnet18", num_classes=7, channels=(8, 8, 8, 8))
    model.pretrained_cfg = {**model.pretrained_cfg, "label_names": tuple(NAMES)}
    return model


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        ({"heron": 3, "coot": 0}, {"heron": 3, "coot": 0}),
        ({"heron": np.int64(3)}, {"heron": 3}),
        ([3, 0], {"3": 3, "0": 0}),
        (np.array([3, 0]), {"3": 3, "0": 0}),
    ],
    ids=["mapping", "mapping to numpy", "indices", "array"],
)
def test_classes_of_a_source_without_names(nameless, classes, expected):
    resolved = resolve_classes(classes, nameless)
    assert resolved == expected
    assert all(type(index) is int for index in resolved.values())


@pytest.mark.parametrize("classes", [["gnu", "cat"], ["GNU", "Cat"], [6, 2]])
def test_classes_of_a_source_with_names(named, classes):
    resolved = resolve_classes(classes, named)
    assert list(resolved.values()) == [6, 2]
    assert [label.lower() for label in resolved] == ["gnu", "cat"]


def test_the_datas_names_are_not_taken_for_the_sources(nameless):
    with pytest.raises(SourceError, match="does not record the names"):
        resolve_classes(["bee"], nameless)


@pytest.mark.parametrize(
    ("classes", "found"),
    [
        (["yak"], "names 0 of the 7 classes"),
        ([7], "0 to 6"),
        ([-1], "0 to 6"),
        ([True], "0 to 6"),
        ({"ant": 7}, "0 to 6"),
        ({"ant": "1"}, "0 to 6"),
        ({"ant": 1.0}, "0 to 6"),
        ([1.5], "received 1.5"),
        ([None], "received None"),
        ([], "at least one"),
        ({}, "at least one"),
        ([1, 1], "each once"),
        (["ant", "ANT"], "each once"),
        ({"ant": 1, "Ant": 2}, "own name"),
        ({"ant": 1, "bee": 1}, "each once"),
        ({"a\u202eb": 1}, "unprintable"),
        ({"": 1}, "1 to 200"),
        ({"x" * 201: 1}, "1 to 200"),
        ("ant", "give \\['ant'\\]"),
    ],
)
def test_what_is_no_class_of_the_source_is_refused(named, classes, found):
    with pytest.raises(SourceError, match=found):
        resolve_classes(classes, named)


def test_the_remedy_for_an_unknown_name_is_a_mapping(nameless):
    with pytest.raises(SourceError, match=r"classes=\{'heron': 131\}"):
        resolve_classes(["heron"], nameless)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (None, {4: 0, 2: 1}),
        (["cat", "elk", "gnu"], {1: 0, 0: 1}),
        (["Elk", "CAT"], {0: 0, 1: 1}),
        (["2", "4"], {1: 0, 0: 1}),
    ],
    ids=["indices", "names", "other case", "folders named by index"],
)
def test_labels_of_the_data_are_matched_to_the_cloned_classes(nameless, names, expected):
    data = Listed([])
    data.classes = names
    assert relabel_cloned({"elk": 4, "cat": 2}, nameless, data) == expected


def test_a_missing_class_is_named_with_the_folder_it_needs(nameless):
    data = Listed([])
    data.classes = ["cat", "dog"]
    with pytest.raises(DataError, match="Name its folder 'elk' or '4'"):
        relabel_cloned({"cat": 2, "elk": 4}, nameless, data)


def test_labels_of_the_targets_images(nameless, named):
    unnamed = Listed([])
    some, all_seven, others = Listed([]), Listed([]), Listed([])
    some.classes, all_seven.classes, others.classes = ["Dog", "bee"], NAMES[::-1], ["dog", "yak"]
    assert relabel_target(nameless, unnamed, []) == {index: index for index in range(7)}
    assert relabel_target(nameless, all_seven, []) == {index: index for index in range(7)}
    assert relabel_target(nameless, some, []) == {0: -1, 1: -1}  # which classes these are nobody says
    assert relabel_target(named, some, []) == {0: 3, 1: 1}
    assert relabel_target(named, all_seven, []) == {index: 6 - index for index in range(7)}
    assert relabel_target(named, others, []) == {0: -1, 1: -1}
    assert relabel_target(named, some, ["bee"]) == {0: 3}  # an image of a cloned class is no example of another
