"""Paired bootstrap by user of the difference between two models, on a stream.

The plain bootstrap draws users with replacement and would need every row again. Here users are hashed into :data:`BUCKETS`
fixed buckets, each bucket keeps the sums that the figures need, and buckets are drawn instead (a cluster bootstrap whose
clusters are random sets of users; Efron and Tibshirani, An Introduction to the Bootstrap, 1993, ch. 8 and 13). A user is never
split, so the dependence of one user's rows is kept, and all models get the same draws, so what they share cancels in the
difference.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from learners.metrics.ranking import AUC, RECIPROCAL_RANK
from learners.metrics.rows import BINS, MetricError, Rows, score_rows
from negative_queues.kernels import kernel

BUCKETS = 256
BUCKET_BINS = 1024
"""Score bins per bucket, four of :data:`learners.metrics.BINS` each: AUC errs by under 1e-3 if logits spread by 0.2 or more."""
DRAWN_FIGURES = ("auc", "log_loss", "gauc", "mrr")
LOSS, WEIGHT, AUC_SUM, AUC_IMPRESSIONS, RECIPROCAL_SUM, RANKED, IMPRESSIONS, REQUESTS, POSITIVES, N_SUMS = range(10)

_PER_BUCKET_BIN = BINS // BUCKET_BINS
_CHUNK = 125  # replicates at a time: 2 MB of histograms

Floats = npt.NDArray[np.float64]


class Interval(NamedTuple):
    """A figure's difference to the first model, and its percentile interval."""

    difference: float
    low: float
    high: float


class UserBuckets:
    """What a paired bootstrap needs of one model: 4.2 MB, however long the stream."""

    def __init__(self) -> None:
        self.histogram = np.zeros((BUCKETS, 2, BUCKET_BINS))  # weights of negatives, of positives
        self.sums = np.zeros((BUCKETS, N_SUMS))

    def update(
        self,
        scores: npt.NDArray[np.float32],
        labels: npt.NDArray[np.float32],
        offsets: npt.NDArray[np.int64],
        users: npt.NDArray[np.int64],
        ts: npt.NDArray[np.int64],
        *,
        weights: npt.NDArray[np.float32] | None = None,
        mask: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        """Count requests; arguments and errors as in :func:`learners.metrics.score_rows`."""
        self.add(score_rows(scores, labels, offsets, users, ts, weights=weights, mask=mask))

    def add(self, rows: Rows) -> None:
        """Count requests that :func:`score_rows` has checked."""
        buckets = bucket_of(rows.users)
        _fill(buckets, rows.offsets, rows.labels, rows.weights, rows.bins, rows.losses, rows.ranking, self.histogram, self.sums)

    def merge(self, other: UserBuckets) -> None:
        """Add what ``other`` counted."""
        self.histogram += other.histogram
        self.sums += other.sums

    def replicates(self, draws: npt.NDArray[np.int64]) -> dict[str, Floats]:
        """Return each figure of :data:`DRAWN_FIGURES` per replicate, float64 ``[N]``; NaN where it is not defined.

        Args:
            draws: how often each bucket was drawn, int64 ``[N, BUCKETS]``.
        """
        times = draws.astype(np.float64)
        drawn = times @ self.sums  # [N, N_SUMS]
        flat = self.histogram.reshape(BUCKETS, -1)
        auc = np.concatenate([_aucs(times[at : at + _CHUNK] @ flat) for at in range(0, len(times), _CHUNK)])
        return {
            "auc": auc,
            "log_loss": _ratios(drawn[:, LOSS], drawn[:, WEIGHT]),
            "gauc": _ratios(drawn[:, AUC_SUM], drawn[:, AUC_IMPRESSIONS]),
            "mrr": _ratios(drawn[:, RECIPROCAL_SUM], drawn[:, RANKED]),
        }

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Return everything that must survive, as named arrays (views; copy before the next :meth:`update`)."""
        return {"histogram": self.histogram, "sums": self.sums}

    def load_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Become exactly the buckets that returned ``state``.

        Raises:
            MetricError: an array is missing, unknown or of another shape; nothing has changed then.
        """
        mine = self.state()
        found = {name: (array.dtype, array.shape) for name, array in state.items()}
        if found != {name: (array.dtype, array.shape) for name, array in mine.items()}:
            raise MetricError(f"bootstrap state does not fit this version: found {found}; start a new run")
        self.histogram, self.sums = np.array(state["histogram"]), np.array(state["sums"])


def paired_intervals(
    models: Mapping[str, UserBuckets], *, replicates: int = 1000, seed: int = 0, level: float = 0.95
) -> dict[str, dict[str, Interval]]:
    """Return the difference of every model to the first one, with its percentile interval, per figure.

    Draws come from Philox with key ``seed`` (Salmon et al., 2011): the same everywhere, and the same for all models.

    Args:
        models: buckets per model, fed with the same requests; the first is what others are compared to, and is left out.
        replicates: number of bootstrap replicates.
        seed: of the draws.
        level: share of the replicates inside the interval.

    Raises:
        MetricError: the models were not fed with the same requests.
    """
    names = list(models)
    for name in names[1:]:
        _check_same_rows(names[0], models[names[0]], name, models[name])
    draws = bucket_draws(replicates, seed)
    once = np.ones((1, BUCKETS), np.int64)
    drawn = {name: (buckets.replicates(once), buckets.replicates(draws)) for name, buckets in models.items()}
    first = drawn.pop(names[0]) if names else ({}, {})
    return {
        name: {
            figure: _interval(float(whole[figure][0] - first[0][figure][0]), sampled[figure] - first[1][figure], level)
            for figure in DRAWN_FIGURES
        }
        for name, (whole, sampled) in drawn.items()
    }


def bucket_of(users: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the bucket of each user, int64 ``[R]``: the low bits of the finaliser of SplitMix64."""
    bits = users.astype(np.int64).view(np.uint64)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((bits ^ (bits >> np.uint64(31))) % np.uint64(BUCKETS)).astype(np.int64)


def bucket_draws(replicates: int, seed: int) -> npt.NDArray[np.int64]:
    """Return how often each replicate draws each bucket, int64 ``[replicates, BUCKETS]``; rows sum to ``BUCKETS``."""
    # Raw words, because how NumPy turns words into bounded integers may change between versions.
    words = np.random.Philox(key=seed).random_raw(replicates * BUCKETS)
    drawn = (words % np.uint64(BUCKETS)).astype(np.int64).reshape(replicates, BUCKETS)
    flat = drawn + BUCKETS * np.arange(replicates)[:, None]
    return np.bincount(flat.ravel(), minlength=replicates * BUCKETS).reshape(replicates, BUCKETS).astype(np.int64)


def _check_same_rows(first: str, of_first: UserBuckets, name: str, of_other: UserBuckets) -> None:
    counts = [IMPRESSIONS, REQUESTS, POSITIVES]
    if not np.array_equal(of_first.sums[:, counts], of_other.sums[:, counts]):
        totals = [tuple(int(n) for n in b.sums[:, counts].sum(axis=0)) for b in (of_first, of_other)]
        raise MetricError(
            f"{first} and {name} were not scored on the same requests: (impressions, requests, positives) are "
            f"{totals[0]} and {totals[1]}; a paired interval needs the same ones for both"
        )


def _interval(difference: float, replicates: Floats, level: float) -> Interval:
    known = replicates[~np.isnan(replicates)]
    if not len(known):
        return Interval(difference, np.nan, np.nan)
    low, high = np.quantile(known, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return Interval(difference, float(low), float(high))


def _aucs(histograms: Floats) -> Floats:
    """Return the AUC of each histogram ``[N, 2 * BUCKET_BINS]`` (twin of ``histogram_auc``): ``[N]``."""
    negative, positive = histograms.reshape(len(histograms), 2, BUCKET_BINS).transpose(1, 0, 2)
    wins = (positive * (np.cumsum(negative, axis=1) - 0.5 * negative)).sum(axis=1)
    return _ratios(wins, negative.sum(axis=1) * positive.sum(axis=1))


def _ratios(over: Floats, under: Floats) -> Floats:
    ratios: Floats = np.divide(over, under, out=np.full(len(over), np.nan), where=under > 0)
    return ratios


@kernel
def _fill(
    buckets: npt.NDArray[np.int64],
    offsets: npt.NDArray[np.int64],
    labels: npt.NDArray[np.uint8],
    weights: Floats,
    bins: npt.NDArray[np.int16],
    losses: Floats,
    ranking: Floats,
    histogram: Floats,
    sums: Floats,
) -> None:
    for r in range(len(buckets)):
        b = buckets[r]
        impressions = offsets[r + 1] - offsets[r]
        for i in range(offsets[r], offsets[r + 1]):
            histogram[b, labels[i], bins[i] // _PER_BUCKET_BIN] += weights[i]
            sums[b, LOSS] += weights[i] * losses[i]
            sums[b, WEIGHT] += weights[i]
            sums[b, POSITIVES] += labels[i]
        if not np.isnan(ranking[r, AUC]):
            sums[b, AUC_SUM] += impressions * ranking[r, AUC]
            sums[b, AUC_IMPRESSIONS] += impressions
        if not np.isnan(ranking[r, RECIPROCAL_RANK]):
            sums[b, RECIPROCAL_SUM] += ranking[r, RECIPROCAL_RANK]
            sums[b, RANKED] += 1
        sums[b, IMPRESSIONS] += impressions
        sums[b, REQUESTS] += 1
