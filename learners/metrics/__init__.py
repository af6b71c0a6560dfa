"""Progressive validation: figures of a model on a stream, per window and over all, with intervals of their differences."""

from learners.metrics.bootstrap import BUCKETS, DRAWN_FIGURES, Interval, UserBuckets, paired_intervals
from learners.metrics.figures import FIGURES, Reliability, as_json
from learners.metrics.progressive import MetricOptions, Metrics, Window
from learners.metrics.rows import BINS, MetricError, Rows, score_rows
from learners.metrics.slices import ALL, MetricSet

__all__ = [
    "ALL",
    "BINS",
    "BUCKETS",
    "DRAWN_FIGURES",
    "FIGURES",
    "Interval",
    "MetricError",
    "MetricOptions",
    "MetricSet",
    "Metrics",
    "Reliability",
    "Rows",
    "UserBuckets",
    "Window",
    "as_json",
    "paired_intervals",
    "score_rows",
]
