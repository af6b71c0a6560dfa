"""Figures of one request: exact AUC, reciprocal rank and hits, ties treated as a random order would on average.

Shapes: ``R`` requests, ``C`` candidates over all of them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from negative_queues.kernels import kernel

AUC, RECIPROCAL_RANK, HIT_1, HIT_3, HIT_5 = range(5)
"""Columns of :func:`rank_requests`."""
FEW = 16
"""Up to so many candidates a plain loop over (positive, negative) pairs is fastest."""
POSITIVES_BELOW = 64
"""Up to so many positives counting the pairs in vectors is faster than sorting."""


@kernel
def exact_auc(scores: npt.NDArray[np.float32], labels: npt.NDArray[np.uint8]) -> float:
    """Return the share of (positive, negative) pairs in the right order, a tie counting half; NaN without both labels.

    All ways to count give the same bits: a count of halves is exact in float64.

    Args:
        scores: ``[N]``.
        labels: 0 or 1, ``[N]``.
    """
    n, positives = len(scores), 0
    for i in range(n):
        positives += labels[i]
    pairs = positives * (n - positives)
    if pairs == 0:
        return np.nan
    if n <= FEW:
        return _wins_of_few(scores, labels) / pairs
    if positives <= POSITIVES_BELOW:
        return _wins_by_pairs(scores, labels) / pairs
    return _wins_by_sorting(scores, labels) / pairs


@kernel
def _wins_of_few(scores: npt.NDArray[np.float32], labels: npt.NDArray[np.uint8]) -> float:
    wins = 0.0
    for i in range(len(scores)):
        if labels[i]:
            for j in range(len(scores)):
                if not labels[j]:
                    if scores[i] > scores[j]:
                        wins += 1.0
                    elif scores[i] == scores[j]:
                        wins += 0.5
    return wins


@kernel
def _wins_by_pairs(scores: npt.NDArray[np.float32], labels: npt.NDArray[np.uint8]) -> float:
    halves = 0
    for i in range(len(scores)):
        if labels[i]:
            of_row = np.int32(0)  # Without a branch and in small numbers, so that it is counted in vectors.
            for j in range(len(scores)):
                of_row += (np.int32(scores[i] > scores[j]) + np.int32(scores[i] >= scores[j])) * np.int32(1 - labels[j])
            halves += int(of_row)
    return halves * 0.5


@kernel
def _wins_by_sorting(scores: npt.NDArray[np.float32], labels: npt.NDArray[np.uint8]) -> float:
    order = np.argsort(scores)
    wins, below, start = 0.0, 0, 0
    while start < len(order):
        stop, positives = start, 0
        while stop < len(order) and scores[order[stop]] == scores[order[start]]:
            positives += labels[order[stop]]
            stop += 1
        negatives = stop - start - positives
        wins += positives * (below + 0.5 * negatives)
        below += negatives
        start = stop
    return wins


@kernel
def rank_requests(
    scores: npt.NDArray[np.float32], labels: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Return what each request adds to gAUC, MRR and HR@1, 3, 5: float64 ``[R, 5]``, NaN where it adds nothing.

    The rank is that of the best positive. Among equal scores every order is as likely, and the figures are the expectation over
    them: of ``m`` tied candidates with ``q`` positives behind ``a`` better ones, the first positive has rank ``a + j`` with
    probability ``P(j) = C(m - j, q - 1) / C(m, q)``. So a model that scores all alike gets no credit for the log's order.

    Args:
        scores: ``[C]``.
        labels: 0 or 1, ``[C]``.
        offsets: ``[R + 1]``. AUC needs both labels in a request, ranks a positive and two candidates.
    """
    out = np.full((len(offsets) - 1, 5), np.nan)
    for r in range(len(offsets) - 1):
        request = slice(offsets[r], offsets[r + 1])
        out[r, AUC] = exact_auc(scores[request], labels[request])
        if offsets[r + 1] - offsets[r] >= 2:
            _rank(scores[request], labels[request], out[r])
    return out


@kernel
def _rank(scores: npt.NDArray[np.float32], labels: npt.NDArray[np.uint8], out: npt.NDArray[np.float64]) -> None:
    best, found = np.float32(0.0), False
    for i in range(len(scores)):
        if labels[i] and (not found or scores[i] > best):
            best, found = scores[i], True
    if not found:
        return
    better, tied, tied_positives = 0, 0, 0
    for i in range(len(scores)):
        if scores[i] > best:
            better += 1
        elif scores[i] == best:
            tied += 1
            tied_positives += labels[i]
    out[RECIPROCAL_RANK:] = 0.0
    still = 1.0  # probability that the first j - 1 of the tie are negative
    for j in range(1, tied - tied_positives + 2):
        here = still * tied_positives / (tied - j + 1)
        rank = better + j
        out[RECIPROCAL_RANK] += here / rank
        out[HIT_1] += here * (rank <= 1)
        out[HIT_3] += here * (rank <= 3)
        out[HIT_5] += here * (rank <= 5)
        still -= here
