"""Sums that add up and the figures that come out of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from learners.metrics.ranking import AUC, HIT_1, HIT_3, HIT_5, RECIPROCAL_RANK
from learners.metrics.rows import BINS, Rows
from negative_queues.kernels import kernel

FIGURES = (
    "auc",
    "gauc",
    "gauc_user",
    "log_loss",
    "ne",
    "mrr",
    "hr@1",
    "hr@3",
    "hr@5",
    "calibration",
    "impressions",
    "requests",
    "positives",
)
"""Names of all figures, in the order of reports."""

RELIABILITY_BINS = 64
(
    LOSS,
    PREDICTED,
    IMPRESSIONS,
    REQUESTS,
    POSITIVES,
    AUC_SUM,
    AUC_IMPRESSIONS,
    USER_AUC_SUM,
    USER_IMPRESSIONS,
    RANKED,
    RECIPROCAL_SUM,
    HITS_1,
    HITS_3,
    HITS_5,
    N_COUNTS,
) = range(15)

Floats = npt.NDArray[np.float64]


class Reliability(NamedTuple):
    """Predicted against observed, per score bin that holds anything: float64 ``[N]`` each, by rising score."""

    weight: Floats
    predicted: Floats
    observed: Floats


class Sums:
    """All that figures need, in one array, so that merging is adding. 66 KB.

    Args:
        flat: the array of another ``Sums`` (its state); None starts from nothing.
    """

    __slots__ = ("counts", "flat", "histogram", "predicted")

    SIZE = 2 * BINS + RELIABILITY_BINS + N_COUNTS

    def __init__(self, flat: Floats | None = None) -> None:
        self.flat = np.zeros(self.SIZE) if flat is None else flat
        self.histogram = self.flat[: 2 * BINS].reshape(2, BINS)  # weights of negatives, of positives
        self.predicted = self.flat[2 * BINS : 2 * BINS + RELIABILITY_BINS]  # weight x score
        self.counts = self.flat[-N_COUNTS:]

    def add(self, rows: Rows, start: int, stop: int) -> None:
        """Add requests ``start`` to ``stop`` (exclusive)."""
        first, last = rows.offsets[start], rows.offsets[stop]
        _add_rows(rows.scores, rows.labels, rows.weights, rows.bins, rows.losses, first, last, *self._parts())
        _add_requests(rows.ranking, rows.offsets, start, stop, self.counts)

    def _parts(self) -> tuple[Floats, Floats, Floats]:
        return self.histogram, self.predicted, self.counts

    @property
    def n_requests(self) -> int:
        """Requests counted so far."""
        return int(self.counts[REQUESTS])

    def figures(self) -> dict[str, float]:
        """Return every figure of :data:`FIGURES`; NaN where it is not defined (no positive, no negative, no request)."""
        counts, (negative, positive) = self.counts, self.histogram.sum(axis=1)
        weight = negative + positive
        log_loss = _ratio(counts[LOSS], weight)
        values = (
            histogram_auc(self.histogram),
            _ratio(counts[AUC_SUM], counts[AUC_IMPRESSIONS]),
            _ratio(counts[USER_AUC_SUM], counts[USER_IMPRESSIONS]),
            log_loss,
            _ratio(log_loss, entropy(_ratio(positive, weight))),
            *(_ratio(counts[at], counts[RANKED]) for at in (RECIPROCAL_SUM, HITS_1, HITS_3, HITS_5)),
            _ratio(counts[PREDICTED], positive),
            *(float(counts[at]) for at in (IMPRESSIONS, REQUESTS, POSITIVES)),
        )
        return dict(zip(FIGURES, values, strict=True))

    def reliability(self) -> Reliability:
        """Return mean score and share of positives per coarse bin (0.64 of a logit wide)."""
        negative, positive = self.histogram.reshape(2, RELIABILITY_BINS, -1).sum(axis=2)
        weight = negative + positive
        some = weight > 0
        return Reliability(weight[some], self.predicted[some] / weight[some], positive[some] / weight[some])


def histogram_auc(histogram: Floats) -> float:
    """Return the AUC of a score histogram, two scores of one bin counting as a tie; NaN without both labels.

    Against the exact AUC, bins 0.01 of a logit wide err by under 1e-4 where logits spread by 0.5 or more, by 2e-4 at 0.1, and
    by 2e-3 only at 0.03, whatever the base rate (400,000 rows, 40,000 of them positive).

    Args:
        histogram: weights of negatives and of positives by rising score, float64 ``[2, bins]``.
    """
    negative, positive = histogram
    pairs = negative.sum() * positive.sum()
    return _ratio(float((positive * (np.cumsum(negative) - 0.5 * negative)).sum()), float(pairs))


def entropy(rate: float) -> float:
    """Return the log loss in nats of always predicting ``rate`` where ``rate`` of the labels are 1; 0 for 0 and 1."""
    if not 0.0 < rate < 1.0:
        return 0.0
    return -rate * math.log(rate) - (1.0 - rate) * math.log1p(-rate)


def as_json(figures: Mapping[str, float]) -> dict[str, Any]:
    """Return figures for a JSON file: NaN, which JSON has not, becomes null."""
    return {name: float(value) if math.isfinite(value) else None for name, value in figures.items()}


def _ratio(over: float, under: float) -> float:
    return float(over) / float(under) if under > 0 else math.nan


@kernel
def _add_rows(
    scores: npt.NDArray[np.float32],
    labels: npt.NDArray[np.uint8],
    weights: Floats,
    bins: npt.NDArray[np.int16],
    losses: Floats,
    first: int,
    last: int,
    histogram: Floats,
    predicted: Floats,
    counts: Floats,
) -> None:
    coarse = BINS // RELIABILITY_BINS
    for i in range(first, last):
        score = weights[i] * scores[i]
        histogram[labels[i], bins[i]] += weights[i]
        predicted[bins[i] // coarse] += score
        counts[PREDICTED] += score
        counts[LOSS] += weights[i] * losses[i]
        counts[POSITIVES] += labels[i]
    counts[IMPRESSIONS] += last - first


@kernel
def _add_requests(ranking: Floats, offsets: npt.NDArray[np.int64], start: int, stop: int, counts: Floats) -> None:
    for r in range(start, stop):
        if not np.isnan(ranking[r, AUC]):
            impressions = offsets[r + 1] - offsets[r]
            counts[AUC_SUM] += impressions * ranking[r, AUC]
            counts[AUC_IMPRESSIONS] += impressions
        if not np.isnan(ranking[r, RECIPROCAL_RANK]):
            counts[RANKED] += 1
            counts[RECIPROCAL_SUM] += ranking[r, RECIPROCAL_RANK]
            counts[HITS_1] += ranking[r, HIT_1]
            counts[HITS_3] += ranking[r, HIT_3]
            counts[HITS_5] += ranking[r, HIT_5]
    counts[REQUESTS] += stop - start
