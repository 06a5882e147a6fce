"""What figures are drawn from survives as tables, and what anybody else wrote there does no harm."""

import json
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pnc_hub.artifact import checks
from pnc_hub.report import series
from pnc_hub.report.series import Confusion, Curve, Histogram, Reliability, Row, class_table, curve_table, pair_table

ANY = st.one_of(
    st.none(), st.text(max_size=5), st.integers(), st.integers(0, 6), st.floats(allow_nan=False, allow_infinity=False)
)
COLUMNS = {
    "curve": ("name", "accuracy", "auroc", "macs"),
    "gate": ("low", "high", "new", "old"),
    "calibration": ("images", "accuracy"),
    "class": ("index", "tar", "missed"),
    "confused_new": ("shown", "answered", "images"),
    "confused_old": ("shown", "answered", "images"),
}
TABLES = {
    name: st.lists(st.tuples(*[ANY] * len(columns)), max_size=100).map(
        lambda rows, columns=columns: {column: [row[at] for row in rows] for at, column in enumerate(columns)}
    )
    for name, columns in COLUMNS.items()
}


def stored(name, table):
    """As an artifact has it."""
    checks.series({name: table})
    assert tuple(table) == COLUMNS[name]
    return json.loads(json.dumps({name: table}))


class TestCurve:
    PLACES = (
        {"insertion": "blocks.10", "avg_u": 0.9, "tar": 1.0, "auroc": 0.99, "macs": 300},
        {"insertion": "blocks.2", "avg_u": 0.8, "tar": 1.0, "auroc": 0.9, "macs": 200},
        {"insertion": "blocks.10", "avg_u": 0.7, "tar": 1.0, "auroc": 0.5, "macs": 100},
        {"insertion": "stem", "avg_u": 0.4, "tar": 1.0, "auroc": None, "macs": 50},
    )

    def test_points_come_back_in_the_networks_order_each_with_its_best_cut(self):
        curve = Curve.of(stored("curve", curve_table(self.PLACES)), "blocks.2")
        assert curve == Curve(
            (
                series.Place("stem", 0.4, None, 50),
                series.Place("blocks.2", 0.8, 0.9, 200),
                series.Place("blocks.10", 0.9, 0.99, 300),
            ),
            "blocks.2",
        )

    def test_an_insertion_point_that_is_not_on_it_is_not_marked(self):
        assert Curve.of(stored("curve", curve_table(self.PLACES)), "head").chosen is None

    def test_one_point_is_no_choice(self):
        assert Curve.of(stored("curve", curve_table(self.PLACES[:1])), "blocks.10") is None

    def test_without_images_of_others_it_is_the_accuracy_of_the_cloned_classes(self):
        places = [{"insertion": "a", "avg_u": None, "tar": value} for value in (0.2, 0.9, 0.4)]
        assert curve_table(places) == {"name": ["a"], "accuracy": [0.9], "auroc": [None], "macs": [None]}

    def test_of_many_points_the_best_are_kept_and_the_chosen_one(self):
        places = [{"insertion": f"blocks.{n}", "avg_u": n / 100, "tar": 1.0} for n in range(100)]
        curve = Curve.of(stored("curve", curve_table(places, "blocks.0")), "blocks.0")
        assert len(curve.places) == series.MOST_POINTS
        assert (curve.chosen, curve.places[0].name, curve.places[1].name) == ("blocks.0", "blocks.0", "blocks.71")


class TestHistogram:
    @given(st.lists(st.floats(-50, 50)), st.lists(st.floats(-50, 50)))
    def test_every_image_is_counted_on_its_side_of_the_threshold(self, new, old):
        histogram = Histogram.count(new, old)
        assert len(histogram.new) == len(histogram.old) <= series.BINS + 2
        for counts, values in ((histogram.new, new), (histogram.old, old)):
            assert sum(counts) == len(values)
            half = (histogram.edges[1] - histogram.edges[0]) / 2
            above = sum(count for count, low in zip(counts, histogram.edges, strict=False) if low > -half)
            assert above == sum(value >= 0 for value in values) or any(abs(value) < 1e-6 for value in values)

    @given(st.lists(st.floats(-50, 50), min_size=1), st.lists(st.floats(-50, 50)))
    def test_it_comes_back(self, new, old):
        written = Histogram.count(new, old)
        assert Histogram.of(stored("gate", written.table())) == written

    def test_what_is_far_out_is_in_the_outermost_bins(self):
        rng = random.Random(0)
        margins = [rng.gauss(0, 1) for _ in range(1000)]
        histogram = Histogram.count([*margins, 1e6, math.inf], [-math.inf])
        assert histogram.edges[1] - histogram.edges[0] < 1
        assert histogram.old[0] == 1
        assert histogram.new[-1] >= 2

    def test_nothing_counted(self):
        assert Histogram.of({"gate": Histogram.count([], []).table()}) is None
        assert Histogram.of({}) is None

    @pytest.mark.parametrize(
        ("low", "high"), [([0, 1], [1, 1]), ([0, 2], [1, 3]), ([1, 0], [2, 1]), ([0, "1"], [1, 2])]
    )
    def test_bins_that_do_not_follow_one_another(self, low, high):
        found = Histogram.of({"gate": {"low": low, "high": high, "new": [1, 2], "old": [0, 1]}})
        assert found is None or found.edges == (0, 1)  # what is no row is left out


class TestReliability:
    def test_ece_is_the_mean_gap_by_images(self):
        """0.9 sure and half right, four times; 0.1 sure and never right, once."""
        found = Reliability.count([0.9] * 4 + [0.1], [True, True, False, False, False])
        assert found.ece == pytest.approx((4 * 0.4 + 0.1) / 5)
        assert found.bins[13] == (4, 0.5)
        assert found.bins[1] == (1, 0.0)

    def test_opposite_gaps_of_one_bin_cancel_and_those_of_two_do_not(self):
        assert Reliability.count([0.5, 0.5], [True, False]).ece == pytest.approx(0)
        assert Reliability.count([0.4, 0.6], [True, False]).ece == pytest.approx(0.6)

    @given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1))
    def test_it_comes_back(self, answers):
        written = Reliability.count(*zip(*answers, strict=True))
        assert Reliability.of(stored("calibration", written.table()), written.ece) == written

    def test_nothing_measured(self):
        assert Reliability.of({}, 0.1) is None
        assert Reliability.of({"calibration": {"images": [1] * 14, "accuracy": [0.5] * 14}}, 0.1) is None


class TestConfusion:
    def test_rows_add_up(self):
        found = Confusion.of({"ori": 0.9, "diverted": 0.04, "tar": 0.7, "missed": 0.2}, {}, 3)
        assert found.old == Row(0.9, pytest.approx(0.06), 0.04)
        assert found.new == Row(0.7, pytest.approx(0.1), 0.2)

    def test_of_images_without_a_class_it_is_known_that_they_stayed(self):
        assert Confusion.of({"diverted": 0.25, "tar": 1.0, "missed": 0.0}, {}, 3).old == Row(None, 0.75, 0.25)

    def test_without_images_of_others_there_is_one_side(self):
        assert Confusion.of({"tar": 1.0, "missed": 0.0, "diverted": None}, {}, 3).old is None

    def test_classes_that_do_worst_are_kept(self):
        labels = [label for label in range(40) for _ in range(40)]
        right = [n >= label for label in range(40) for n in range(40)]
        series_ = stored("class", class_table(labels, right, [False] * len(labels)))
        worst = Confusion.of({"tar": 0.5, "missed": 0.5}, series_, 40).classes
        assert [at for at, _ in worst] == list(range(39, 39 - series.MOST_CLASSES, -1))
        assert worst[0][1] == Row(pytest.approx(1 / 40), pytest.approx(39 / 40), 0.0)

    def test_the_most_frequent_pairs_are_kept_by_direction(self):
        new = [(1, n) for n in range(20) for _ in range(n)]
        pairs = stored("confused_new", pair_table(new)) | stored("confused_old", pair_table([(9, 2)]))
        found = Confusion.of({"tar": 0.5, "missed": 0.5}, pairs, 3)
        assert found.new_to_old == tuple((1, n, n) for n in range(19, 19 - series.MOST_PAIRS, -1))
        assert found.old_to_new == ((9, 2, 1),)

    def test_classes_that_the_clone_does_not_have_are_not_believed(self):
        tables = {
            "class": {"index": [7], "tar": [1], "missed": [0]},
            "confused_new": {"shown": [7], "answered": [1], "images": [2]},
            "confused_old": {"shown": [1], "answered": [3], "images": [2]},
        }
        found = Confusion.of({"tar": 1, "missed": 0}, tables, 3)
        assert (found.classes, found.new_to_old, found.old_to_new) == ((), (), ())


@given(
    st.fixed_dictionaries({}, optional=TABLES),
    st.dictionaries(st.sampled_from(("ori", "tar", "missed", "diverted", "ece")), ANY),
)
def test_whatever_is_there_nothing_fails(tables, metrics):
    for read in (lambda: Curve.of(tables, "a"), lambda: Histogram.of(tables), lambda: Reliability.of(tables, 0.1)):
        read()
    confusion = Confusion.of(metrics, tables, 5)
    assert confusion is None or all(index < 5 for index, _ in confusion.classes)
