"""Progressive validation: figures of a model on a stream, per window and over all, with intervals of their differences."""

from learners.metrics.bootstrap import BUCKETS, DRAWN_FIGURES, Interval, UserBuckets, paired_intervals
from learners.metrics.breakdown import CELL_FIGURES, Breakdown
from learners.metrics.cells import VALUES, Cell, CellIds, SliceCells, SliceOptions
from learners.metrics.drawn import DrawnHits
from learners.metrics.figures import FIGURES, Reliability, as_json
from learners.metrics.fingerprint import Fingerprint
from learners.metrics.progressive import MetricOptions, Metrics, Window
from learners.metrics.rows import BINS, MetricError, Rows, kept_rows, score_rows
from learners.metrics.slices import ALL, MetricSet

__all__ = [
    "ALL",
    "BINS",
    "BUCKETS",
    "CELL_FIGURES",
    "DRAWN_FIGURES",
    "FIGURES",
    "VALUES",
    "Breakdown",
    "Cell",
    "CellIds",
    "DrawnHits",
    "Fingerprint",
    "Interval",
    "MetricError",
    "MetricOptions",
    "MetricSet",
    "Metrics",
    "Reliability",
    "Rows",
    "SliceCells",
    "SliceOptions",
    "UserBuckets",
    "Window",
    "as_json",
    "kept_rows",
    "paired_intervals",
    "score_rows",
]
