"""Raw scores in, checked rows with their terms out: what every accumulator of this package is fed with.

Shapes: ``R`` requests, ``C`` candidates over all of them; ``B`` = :data:`BINS` score bins.

Rows of weight 0 and requests outside the mask are dropped here, once, so that no accumulator has to know of them. What a
row adds to a figure (its score bin, its log loss) and what a request adds (its AUC, its reciprocal rank) is computed here too,
once for all accumulators: the totals, the open window and the bootstrap's buckets.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from learners.metrics.ranking import rank_requests
from negative_queues.kernels import kernel

BINS = 4096
"""Score bins, equally wide in logit space."""
LOGIT_LOW, LOGIT_HIGH = -24.0, 17.0
"""Logits of 4e-11 and of the largest float32 below 1; what lies outside falls into the first or the last bin."""
LOSS_EPSILON = float(np.finfo(np.float32).eps)
"""Log loss sees probabilities clipped to ``[eps, 1 - eps]`` of float32, as scikit-learn does for float32 scores."""

_BINS_PER_LOGIT = BINS / (LOGIT_HIGH - LOGIT_LOW)
_SMALLEST = 1e-30


class MetricError(ValueError):
    """Input or state that metrics cannot use."""


class Rows(NamedTuple):
    """Checked rows of ``R`` requests with ``C`` candidates; every request has one candidate or more."""

    scores: npt.NDArray[np.float32]  # [C] probabilities
    labels: npt.NDArray[np.uint8]  # [C] 0 or 1
    weights: npt.NDArray[np.float64]  # [C] > 0
    bins: npt.NDArray[np.int16]  # [C] score bin
    losses: npt.NDArray[np.float64]  # [C] log loss, not weighted
    offsets: npt.NDArray[np.int64]  # [R + 1] from 0
    users: npt.NDArray[np.int64]  # [R]
    ts: npt.NDArray[np.int64]  # [R] UTC ms
    ranking: npt.NDArray[np.float64]  # [R, 5], see learners.metrics.ranking

    def __len__(self) -> int:
        """Count the requests."""
        return len(self.users)


def score_rows(
    scores: npt.NDArray[np.float32],
    labels: npt.NDArray[np.float32],
    offsets: npt.NDArray[np.int64],
    users: npt.NDArray[np.int64],
    ts: npt.NDArray[np.int64],
    *,
    weights: npt.NDArray[np.float32] | None = None,
    mask: npt.NDArray[np.bool_] | None = None,
) -> Rows:
    """Check, select and score rows.

    Args:
        scores: probabilities in [0, 1], float32 ``[C]``.
        labels: 0 or 1, ``[C]``.
        offsets: candidates of request ``r`` are ``offsets[r]`` to ``offsets[r + 1]``, int64 ``[R + 1]`` from 0.
        users: hashed user ids, int64 ``[R]``.
        ts: when the request was shown, UTC ms, int64 ``[R]``.
        weights: >= 0, ``[C]``; None is 1 for all. A row of weight 0 does not exist here.
        mask: bool ``[R]``: the requests that count; None is all.

    Raises:
        MetricError: lengths do not fit, a score is no probability, a label is neither 0 nor 1, or a weight is negative.
    """
    _check_lengths(len(scores), len(labels), offsets, users, ts, weights, mask)
    # Copies also make read-only Arrow views look like any other array: one compiled kernel, not one per mix of flags.
    probabilities = np.array(scores, np.float32)
    given = np.array(labels, np.float32)
    bins, losses = np.empty(len(probabilities), np.int16), np.empty(len(probabilities), np.float64)
    if failed := int(_row_terms(probabilities, given, bins, losses)):
        raise _bad_row(failed, probabilities, given)
    kept = kept_rows(offsets, weights, mask)
    ones = given > 0.5
    heavy = np.ones(len(given)) if weights is None else np.array(weights, np.float64)
    if kept is None:
        columns = (probabilities, ones.view(np.uint8), heavy, bins, losses)
        ragged = (np.array(offsets, np.int64), np.array(users, np.int64), np.array(ts, np.int64))
    else:
        columns = (probabilities[kept], ones[kept].view(np.uint8), heavy[kept], bins[kept], losses[kept])
        ragged = _kept_requests(kept, offsets, users, ts)
    return Rows(*columns, *ragged, rank_requests(columns[0], columns[1], ragged[0]))


@kernel
def _row_terms(
    scores: npt.NDArray[np.float32],
    labels: npt.NDArray[np.float32],
    bins: npt.NDArray[np.int16],
    losses: npt.NDArray[np.float64],
) -> int:
    """Fill ``bins`` and ``losses``; return 0, or 1 + i for a bad score at i, or -1 - i for a bad label."""
    for i in range(len(scores)):
        p, label = np.float64(scores[i]), labels[i]
        if not 0.0 <= p <= 1.0:
            return i + 1
        if label != 0.0 and label != 1.0:
            return -i - 1
        q = 1.0 - p
        log_p, log_q = math.log(max(p, LOSS_EPSILON)), math.log(max(q, LOSS_EPSILON))
        losses[i] = -log_p if label == 1.0 else -log_q
        logit = log_p - log_q if p > LOSS_EPSILON else math.log(max(p, _SMALLEST)) - log_q
        bins[i] = min(max(int((logit - LOGIT_LOW) * _BINS_PER_LOGIT), 0), BINS - 1)
    return 0


def _bad_row(failed: int, scores: npt.NDArray[np.float32], labels: npt.NDArray[np.float32]) -> MetricError:
    if failed > 0:
        return MetricError(
            f"score {scores[failed - 1]!s} of candidate {failed - 1} is no probability in [0, 1]; a model's predict returns "
            "probabilities (the sigmoid of its logits), and nan means that it has diverged: lower its learning rate"
        )
    at = -failed - 1
    return MetricError(f"label {labels[at]!s} of candidate {at} is neither 0 nor 1; leave the row out by weight 0 and label 0")


def _check_lengths(
    n_rows: int,
    n_labels: int,
    offsets: npt.NDArray[np.int64],
    users: npt.NDArray[np.int64],
    ts: npt.NDArray[np.int64],
    weights: npt.NDArray[np.float32] | None,
    mask: npt.NDArray[np.bool_] | None,
) -> None:
    requests = len(offsets) - 1
    of_candidates: list[tuple[str, Any]] = [("labels", n_labels), ("weights", n_rows if weights is None else len(weights))]
    of_requests = [("users", len(users)), ("ts", len(ts)), ("mask", requests if mask is None else len(mask))]
    wrong = [f"{name} has {found}, not {n_rows} candidates" for name, found in of_candidates if found != n_rows]
    wrong += [f"{name} has {found}, not {requests} requests" for name, found in of_requests if found != requests]
    if requests < 0 or offsets[0] != 0 or offsets[-1] != n_rows or (np.diff(offsets) < 0).any():
        wrong.append(f"offsets do not rise from 0 to the {n_rows} candidates")
    if mask is not None and mask.dtype != np.bool_:
        wrong.append(f"mask is {mask.dtype}, not bool")
    if wrong:
        raise MetricError("metrics cannot read these rows: " + "; ".join(wrong))


def kept_rows(
    offsets: npt.NDArray[np.int64], weights: npt.NDArray[np.float32] | None, mask: npt.NDArray[np.bool_] | None
) -> npt.NDArray[np.bool_] | None:
    """Return which rows :func:`score_rows` keeps, bool ``[C]``; None where every row and every request stays."""
    lengths = np.diff(offsets)
    kept = np.ones(int(offsets[-1]), np.bool_) if mask is None else np.repeat(mask, lengths)
    if weights is not None:
        if not (np.isfinite(weights) & (weights >= 0)).all():
            at = int(np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))[0])
            raise MetricError(f"weight {weights[at]!s} of candidate {at} is not a finite number >= 0")
        kept &= weights > 0
    return None if kept.all() and lengths.all() else kept


def _kept_requests(
    kept: npt.NDArray[np.bool_], offsets: npt.NDArray[np.int64], users: npt.NDArray[np.int64], ts: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    before = np.zeros(len(kept) + 1, np.int64)
    np.cumsum(kept, out=before[1:])
    lengths = np.diff(before[offsets])
    some = lengths > 0
    shorter = np.zeros(int(some.sum()) + 1, np.int64)
    np.cumsum(lengths[some], out=shorter[1:])
    return shorter, users[some].astype(np.int64), ts[some].astype(np.int64)
