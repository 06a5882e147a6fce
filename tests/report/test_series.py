"""What figures are drawn from survives as flat metrics, and what anybody else wrote there does no harm."""

import json
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pnc_hub.artifact import checks
from pnc_hub.report import series
from pnc_hub.report.series import (
    Confusion,
    Curve,
    Histogram,
    Reliability,
    Row,
    class_metrics,
    curve_metrics,
    pair_metrics,
)

ANY = st.one_of(st.none(), st.text(max_size=5), st.integers(), st.floats(allow_nan=False, allow_infinity=False))
PLAIN = ("insertion", "ori", "tar", "missed", "diverted", "ece", "gate.low", "gate.step", "curve.a", "curve_macs.a")
BY_NUMBER = r"(curve|gate\.new|gate\.old|class|calibration)\.\d{1,8}(\.tar|\.missed|\.images|\.accuracy)?"
NAMES = st.one_of(
    st.sampled_from(PLAIN),
    st.from_regex(BY_NUMBER, fullmatch=True),
    st.from_regex(r"confusion\.(new|old)\.\d{1,8}\.(new|old)\.\d{1,8}", fullmatch=True),
)


def stored(metrics):
    """As an artifact has them."""
    checks.metrics(metrics)
    return json.loads(json.dumps(metrics))


class TestCurve:
    PLACES = (
        {"insertion": "blocks.10", "avg_u": 0.9, "tar": 1.0, "auroc": 0.99, "macs": 300},
        {"insertion": "blocks.2", "avg_u": 0.8, "tar": 1.0, "auroc": 0.9, "macs": 200},
        {"insertion": "blocks.10", "avg_u": 0.7, "tar": 1.0, "auroc": 0.5, "macs": 100},
        {"insertion": "stem", "avg_u": 0.4, "tar": 1.0, "auroc": None, "macs": 50},
    )

    def test_points_come_back_in_the_networks_order_each_with_its_best_cut(self):
        curve = Curve.of(stored({**curve_metrics(self.PLACES), "insertion": "blocks.2"}))
        assert curve == Curve(
            (
                series.Place("stem", 0.4, None, 50),
                series.Place("blocks.2", 0.8, 0.9, 200),
                series.Place("blocks.10", 0.9, 0.99, 300),
            ),
            "blocks.2",
        )

    def test_an_insertion_point_that_is_not_on_it_is_not_marked(self):
        assert Curve.of({**curve_metrics(self.PLACES), "insertion": "head"}).chosen is None

    def test_one_point_is_no_choice(self):
        assert Curve.of(curve_metrics(self.PLACES[:1])) is None

    def test_without_images_of_others_it_is_the_accuracy_of_the_cloned_classes(self):
        places = [{"insertion": "a", "avg_u": None, "tar": value} for value in (0.2, 0.9, 0.4)]
        assert curve_metrics([*places, {"insertion": "b" * 80, "avg_u": 1.0, "tar": 1.0}]) == {"curve.a": 0.9}

    def test_of_many_points_the_best_are_kept_and_the_chosen_one(self):
        places = [{"insertion": f"blocks.{n}", "avg_u": n / 100, "tar": 1.0} for n in range(100)]
        curve = Curve.of({**curve_metrics(places, "blocks.0"), "insertion": "blocks.0"})
        assert len(curve.places) == series.MOST_POINTS
        assert (curve.chosen, curve.places[0].name, curve.places[1].name) == ("blocks.0", "blocks.0", "blocks.71")


class TestHistogram:
    @given(st.lists(st.floats(-50, 50)), st.lists(st.floats(-50, 50)))
    def test_every_image_is_counted_on_its_side_of_the_threshold(self, new, old):
        histogram = Histogram.count(new, old)
        assert len(histogram.new) == len(histogram.old) <= series.BINS + 2
        for counts, values in ((histogram.new, new), (histogram.old, old)):
            assert sum(counts) == len(values)
            above = sum(
                count for count, low in zip(counts, histogram.edges(), strict=False) if low > -histogram.step / 2
            )
            assert above == sum(value >= 0 for value in values) or any(abs(value) < 1e-6 for value in values)

    @given(st.lists(st.floats(-50, 50), min_size=1), st.lists(st.floats(-50, 50)))
    def test_it_comes_back(self, new, old):
        written = Histogram.count(new, old)
        read = Histogram.of(stored(written.metrics()))
        assert (read.low, read.step) == (written.low, written.step)
        assert [*read.new, *[0] * 22][:22] == [*written.new, *[0] * 22][:22]
        assert [*read.old, *[0] * 22][:22] == [*written.old, *[0] * 22][:22]

    def test_what_is_far_out_is_in_the_outermost_bins(self):
        rng = random.Random(0)
        margins = [rng.gauss(0, 1) for _ in range(1000)]
        histogram = Histogram.count([*margins, 1e6, math.inf], [-math.inf])
        assert histogram.step < 1
        assert histogram.old[0] == 1
        assert histogram.new[-1] >= 2

    def test_nothing_counted(self):
        assert Histogram.of(Histogram.count([], []).metrics()) is None
        assert Histogram.of({}) is None


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
        assert Reliability.of(stored({**written.metrics(), "ece": written.ece})) == written

    def test_nothing_measured(self):
        assert Reliability.of({"ece": 0.1}) is None


class TestConfusion:
    def test_rows_add_up(self):
        found = Confusion.of({"ori": 0.9, "diverted": 0.04, "tar": 0.7, "missed": 0.2}, 3)
        assert found.old == Row(0.9, pytest.approx(0.06), 0.04)
        assert found.new == Row(0.7, pytest.approx(0.1), 0.2)

    def test_of_images_without_a_class_it_is_known_that_they_stayed(self):
        assert Confusion.of({"diverted": 0.25, "tar": 1.0, "missed": 0.0}, 3).old == Row(None, 0.75, 0.25)

    def test_without_images_of_others_there_is_one_side(self):
        assert Confusion.of({"tar": 1.0, "missed": 0.0, "diverted": None}, 3).old is None

    def test_classes_that_do_worst_are_kept(self):
        labels = [label for label in range(40) for _ in range(40)]
        right = [n >= label for label in range(40) for n in range(40)]
        metrics = stored({"tar": 0.5, "missed": 0.5, **class_metrics(labels, right, [False] * len(labels))})
        worst = Confusion.of(metrics, 40).classes
        assert [at for at, _ in worst] == list(range(39, 39 - series.MOST_CLASSES, -1))
        assert worst[0][1] == Row(pytest.approx(1 / 40), pytest.approx(39 / 40), 0.0)

    def test_the_most_frequent_pairs_are_kept_by_direction(self):
        new = [(1, n) for n in range(20) for _ in range(n)]
        metrics = {"tar": 0.5, "missed": 0.5, **pair_metrics("new", new), **pair_metrics("old", [(9, 2)])}
        found = Confusion.of(stored(metrics), 3)
        assert found.new_to_old == tuple((1, n, n) for n in range(19, 19 - series.MOST_PAIRS, -1))
        assert found.old_to_new == ((9, 2, 1),)

    def test_classes_that_the_clone_does_not_have_are_not_believed(self):
        metrics = {"tar": 1, "missed": 0, "class.7.tar": 1, "class.7.missed": 0, "confusion.new.7.old.1": 2}
        found = Confusion.of({**metrics, "confusion.old.1.new.3": 2}, 3)
        assert (found.classes, found.new_to_old, found.old_to_new) == ((), (), ())


@given(st.dictionaries(NAMES, ANY))
def test_whatever_is_there_nothing_fails_and_nothing_is_large(metrics):
    for read in (Curve.of, Histogram.of, Reliability.of, lambda found: Confusion.of(found, 5)):
        found = read(metrics)
        assert found is None or len(str(found)) < 20_000
