"""A clone with everything that can be measured, made up."""

from pnc_hub.hub.clone import Clone
from pnc_hub.report.figures import curve_metrics
from pnc_hub.report.series import Histogram, Reliability, class_metrics, pair_metrics


def metrics(count: int = 3) -> dict:
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
    confidences = [0.3 + 0.0068 * n for n in range(100)]
    reliability = Reliability.count(confidences, [n % 9 > 2 for n in range(100)])
    return {
        **{
            "ori": 0.91,
            "tar": 0.875,
            "avg": 0.9,
            "target_alone": 0.92,
            "source_alone": 0.99,
            "diverted": 0.02,
            "missed": 0.1,
        },
        **{"auroc": 0.987, "kl": 0.01, "ece": reliability.ece, "kept_parameters": 62018, "source_parameters": 1168951},
        **{"insertion": "blocks.6.0", "cut": "layer2.0", "locality_budget": 0.03, "restored": True, "regime": "R4"},
        **{"held_out.new": 20 * count, "held_out.old": 1234},
        **curve_metrics(places),
        **Histogram.count([0.1 * n - 0.4 for n in range(60)], [0.4 - 0.15 * n for n in range(60)]).metrics(),
        **reliability.metrics(),
        **class_metrics(labels, right, missed),
        **pair_metrics("new", [(0, 4), (0, 4), (1, 2)]),
        **pair_metrics("old", [(6, 1)]),
    }


def measured(clone: Clone) -> Clone:
    """``clone``, with the metrics above."""
    clone.config.adapters[0].metrics = metrics(len(clone.labels))
    return clone
