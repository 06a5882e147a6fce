"""The insertion curve: what is said of each place before anything is trained."""

import pytest
import torch
from accelerate import Accelerator
from common import images, tiny_model
from torch.utils.data import TensorDataset

from pnc_hub.cloning.fitting.stitch import Stitches
from pnc_hub.cloning.images.batches import Batches, Split
from pnc_hub.cloning.images.data import Images
from pnc_hub.cloning.networks import Networks
from pnc_hub.cloning.search.curve import SHORTLIST, Judged, _ranked, insertion_curve
from pnc_hub.models.cost import macs
from pnc_hub.models.insertion import InsertionPoint, empty
from pnc_hub.module import CloneModule

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def networks():
    model = tiny_model("resnet", seed=1)
    return Networks(model, model, [1, 2, 4], CPU)


def split(networks, images, labels):
    return Split.of(Images(TensorDataset(images, labels), networks.target.preprocess, {k: k for k in range(7)}), 0)


@pytest.fixture(scope="module")
def prepared(networks):
    """Images that the source itself takes for one of the cloned classes, and images that look different."""
    candidates = images(400, 1)
    likes = networks.teach(candidates).cloned.argmax(1)
    chosen = torch.cat([torch.nonzero(likes == label)[:20, 0] for label in range(3)])
    other = images(120, 2) * 0.2 + 1
    known = networks.target(other)[0].argmax(1)
    usual = known == known.mode().values
    sides = split(networks, candidates[chosen], likes[chosen]), split(networks, other[usual], known[usual])
    return Batches(*sides, Accelerator(cpu=True), 16, 0, 0)


def curve(networks, prepared, pairs=None):
    points, cuts = networks.target.skeleton.points, networks.cuts()
    pairs = pairs or [("layer1.1", "layer1.1"), ("layer1.1", "layer3.1"), ("layer3.1", "layer3.1")]
    stitches = Stitches(networks, prepared, [(points[target], cuts[source]) for target, source in pairs], 250)
    head = networks.head_rows((torch.zeros(1, networks.width), torch.zeros(1)))

    def whole(candidate):
        return CloneModule(candidate.adapter, networks.tail(candidate.cut.name), head)

    promised = []
    found = insertion_curve(networks, prepared, stitches, whole, promised.append)
    assert promised[0].candidate in [place.candidate for place in found]
    return found


def test_the_same_place_of_the_same_network_is_best(networks, prepared):
    places = curve(networks, prepared)
    assert places == _ranked(places[::-1], len(prepared.cloned.choose))
    by_name = {(row["insertion"], row["cut"]): row for row in (place.row() for place in places)}
    for name in ("layer1.1", "layer3.1"):
        row = by_name[name, name]
        assert row["match"] > 0.99
        assert row["tar"] == 1.0  # it says what the source says, and the labels are that
        assert row["auroc"] > 0.9
        assert row["avg_u"] > 0.8
    assert by_name["layer1.1", "layer3.1"]["match"] < 0.95


def test_accuracies_within_their_error_are_the_same_and_the_gate_decides_then_the_cost():
    def place(avg_u, auroc, macs):
        return Judged(None, 0.5, 0.5, avg_u, auroc, 0, macs)

    best, alike, cheaper, worse = place(0.9, 0.8, 5), place(0.88, 0.9, 5), place(0.88, 0.9, 4), place(0.8, 0.99, 1)
    places = [worse, best, alike, cheaper]
    assert _ranked(places, 100) == [cheaper, alike, best, worse]
    assert _ranked(places, 100_000) == [best, cheaper, alike, worse]


def test_where_few_images_tell_nothing_the_better_match_comes_first():
    def place(match, macs):
        return Judged(None, match, 1.0, 1.0, 1.0, 0, macs)

    poor, good, cheaper = place(0.25, 1), place(0.94, 9), place(0.91, 5)
    assert _ranked([poor, good, cheaper], 9) == [cheaper, good, poor]


def test_without_images_of_others_only_the_cloned_classes_are_judged(networks, prepared):
    alone = Batches(prepared.cloned, None, prepared.accelerator, 16, 0, 0)
    for place in curve(networks, alone):
        assert place.avg_u is None
        assert place.auroc is None
        assert place.score == (place.tar, place.match)


def test_cost_is_that_of_adapter_tail_and_head(networks, prepared):
    early, late = (next(iter(curve(networks, prepared, [(name, name)]))) for name in ("layer1.1", "layer4.1"))
    assert early.parameters > late.parameters
    assert early.macs > late.macs
    tail = networks.tail("layer4.1")
    width = networks.width
    assert late.parameters == sum(p.numel() for p in tail.parameters()) + width * (width + 1) + 4 * (width + 1)


def test_macs_of_a_linear_layer_are_its_weights():
    point = InsertionPoint("pooled", 5, 32, "NC", (1, 1))
    assert macs(torch.nn.Linear(5, 7), empty(point)) == 35


def test_a_long_list_of_pairs_is_not_looked_at_whole_and_the_best_is_found(networks, prepared):
    """Places that match perfectly lie on a line: those of the same network."""
    points = [name for name, point in networks.cuts().items() if point.layout == "NCHW"]
    pairs = [(early, late) for early in points for late in points if early <= late]
    found = curve(networks, prepared, pairs)
    assert SHORTLIST < len(found) < len(pairs)
    assert found[0].match > 0.99
