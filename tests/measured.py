"""A clone with everything that can be measured, made up."""

from pnc_hub.hub.clone import Clone
from pnc_hub.report.series import Histogram, Reliability, Table, class_table, curve_table, pair_table

RELIABILITY = Reliability.count([0.3 + 0.0068 * n for n in range(100)], [n % 9 > 2 for n in range(100)])


def metrics(count: int = 3) -> dict:
    """As they are recorded of a clone of ``count`` classes."""
    return {
        **{"ori": 0.91, "tar": 0.875, "avg": 0.9, "target_alone": 0.92, "source_alone": 0.99, "diverted": 0.02},
        **{"missed": 0.1, "auroc": 0.987, "kl": 0.01, "ece": RELIABILITY.ece, "kept_parameters": 62018},
        **{"source_parameters": 1168951, "insertion": "blocks.6.0", "cut": "layer2.0", "locality_budget": 0.03},
        **{"restored": True, "regime": "R4", "held_out.new": 20 * count, "held_out.old": 1234},
    }


def series(count: int = 3) -> dict[str, Table]:
    """As they are recorded of a clone of ``count`` classes."""
    labels = [label for label in range(count) for _ in range(20)]
    right = [place % 20 >= label % 7 for place, label in enumerate(labels)]
    missed = [not is_right and place % 2 == 0 for place, is_right in enumerate(right)]
    places = [
        {
            "insertion": f"blocks.{n}.0",
            "avg_u": 0.5 + 0.04 * n,
            "tar": 1.0,
            "auroc": 0.8 + 0.02 * n,
            "macs": 90_000 * (9 - n),
        }
        for n in range(8)
    ]
    return {
        "curve": curve_table(places),
        "gate": Histogram.count([0.1 * n - 0.4 for n in range(60)], [0.4 - 0.15 * n for n in range(60)]).table(),
        "calibration": RELIABILITY.table(),
        "class": class_table(labels, right, missed),
        "confused_new": pair_table([(0, 4), (0, 4), (1, 2)]),
        "confused_old": pair_table([(6, 1)]),
    }


def measured(clone: Clone) -> Clone:
    """``clone``, with the measurements above."""
    clone.config.adapters[0].metrics = metrics(len(clone.labels))
    clone.config.adapters[0].series = series(len(clone.labels))
    return clone
