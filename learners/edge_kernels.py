"""Value and gradients of the edge loss in one compiled pass, once per anchor rather than per edge (:mod:`learners.edge_loss`).

Letters: as there.
"""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

from learners.blas import product
from negative_queues.draws import mix64

__all__ = ["grouped"]

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

_LOWEST = np.float32(-3.0e38)  # the maximum over no logits: finite, so that differences with it are not NaN


@numba.njit(cache=True, nogil=True)
def grouped(
    sgemm: int,
    sides: tuple[Floats, Floats, Floats],
    edges: tuple[Ints, Ints],
    ids: tuple[Ints, Ints, Ints],
    order: Ints,
    shifts: tuple[Floats, Floats],
    scale: np.float32,
    gradients: tuple[Floats, Floats, Floats],
) -> float:
    """Return the mean loss of the edges.

    Args:
        sgemm: of :func:`learners.blas.product`.
        sides: rows of the anchors, of the positives and of the negatives, ``[U, D]``, ``[U, D]``, ``[M, D]``.
        edges: rows of anchor and positive, ``[E]``.
        ids: of the three sides; none of the anchors where an anchor cannot be a negative.
        order: of the negatives by id.
        shifts: taken off the logits of the positives ``[U]`` and of the negatives ``[M]``.
        scale: 1 / temperature.
        gradients: zeros before; take those by the sides.
    """
    anchor, positive, negative = sides
    first, second = edges
    anchor_ids, positive_ids, negative_ids = ids
    of_anchor, of_positive, of_negative = gradients
    shift_positive, shift_negative = shifts
    used, group = _groups(first, len(anchor))  # [A], [E]
    starts = anchor[used]  # [A, D]
    logits = np.empty((len(used), len(negative)), np.float32)
    product(sgemm, starts, False, negative, True, logits, False)
    for a in range(len(used)):
        for n in range(len(negative)):
            logits[a, n] = logits[a, n] * scale - shift_negative[n]
    index = _index(negative_ids, order)
    if len(anchor_ids):
        _mask(logits, anchor_ids[used], negative_ids, order, index)
    top, sums, terms = np.full(len(used), _LOWEST, np.float32), np.zeros(len(used), np.float32), np.empty_like(logits)
    for a in range(len(used)):
        for n in range(len(negative)):
            top[a] = max(top[a], logits[a, n])
        for n in range(len(negative)):
            terms[a, n] = np.exp(logits[a, n] - top[a])
            sums[a] += terms[a, n]
    share = np.zeros(len(used), np.float32)  # [A]: what a term of the anchor weighs, over its edges
    singles = np.zeros(logits.shape, np.float32)  # [A, M]: the same where edges differ, term by term
    of_starts = np.zeros(starts.shape, np.float32)
    total = _edges(
        group, second, starts, positive, shift_positive, scale, logits, top, terms, sums, positive_ids, negative_ids, order,
        index, share, singles, of_starts, of_positive,
    )  # fmt: skip
    for a in range(len(used)):
        for n in range(len(negative)):
            terms[a, n] = terms[a, n] * share[a] + singles[a, n]
    product(sgemm, terms, False, negative, False, of_starts, True)
    product(sgemm, terms, True, starts, False, of_negative, False)
    of_anchor[used] = of_starts
    mean = scale / np.float32(len(first))
    for side in gradients:
        for i in range(side.shape[0]):
            for d in range(side.shape[1]):
                side[i, d] *= mean
    return total / len(first)


@numba.njit(cache=True, nogil=True)
def _groups(anchor: Ints, n_rows: int) -> tuple[Ints, Ints]:
    """Return the rows that are an anchor, in order, ``[A]``, and the place of every edge's anchor among them, ``[E]``."""
    place = np.zeros(n_rows, np.int64)
    for row in anchor:
        place[row] = 1
    used = np.flatnonzero(place)
    for group in range(len(used)):
        place[used[group]] = group
    return used, place[anchor]


@numba.njit(cache=True, nogil=True)
def _index(negative_ids: Ints, order: Ints) -> Ints:
    """Return a hash from id to 1 + its first place in the order that sorts the negatives, ``[M]``; 0 is free."""
    size = 4
    while size < 4 * len(negative_ids):
        size *= 2
    index = np.zeros(size, np.int64)
    for place in range(len(order)):
        value = negative_ids[order[place]]
        if place and negative_ids[order[place - 1]] == value:
            continue
        slot = np.int64(mix64(np.uint64(value))) & (size - 1)
        while index[slot]:
            slot = (slot + 1) & (size - 1)
        index[slot] = place + 1
    return index


@numba.njit(cache=True, nogil=True)
def _find(value: int, negative_ids: Ints, order: Ints, index: Ints) -> int:
    """Return the first place of ``value`` in the order of the negatives, or M."""
    slot = np.int64(mix64(np.uint64(value))) & (len(index) - 1)
    while index[slot]:
        if negative_ids[order[index[slot] - 1]] == value:
            return int(index[slot] - 1)
        slot = (slot + 1) & (len(index) - 1)
    return len(order)


@numba.njit(cache=True, nogil=True)
def _mask(logits: Floats, anchor_ids: Ints, negative_ids: Ints, order: Ints, index: Ints) -> None:
    """Leave out the negatives that are the anchor."""
    for group in range(len(anchor_ids)):
        place = _find(anchor_ids[group], negative_ids, order, index)
        while place < len(order) and negative_ids[order[place]] == anchor_ids[group]:
            logits[group, order[place]] = -np.inf
            place += 1


@numba.njit(cache=True, nogil=True)
def _edges(
    group: Ints,
    positive: Ints,
    starts: Floats,
    rows: Floats,
    shift: Floats,
    scale: np.float32,
    logits: Floats,
    top: Floats,
    terms: Floats,
    sums: Floats,
    positive_ids: Ints,
    negative_ids: Ints,
    order: Ints,
    index: Ints,
    share: Floats,
    singles: Floats,
    grad_starts: Floats,
    grad_rows: Floats,
) -> float:
    """Add every edge's loss, its gradient by the positive logit to both ends, and its weight of the anchor's terms.

    ``terms [A, M]`` are ``exp(logits - top)`` and ``sums [A]`` their sums: all that an edge needs of its negatives.
    """
    total = 0.0
    for edge in range(len(group)):
        a, p = group[edge], positive[edge]
        logit = np.float32(0)
        for d in range(starts.shape[1]):
            logit += starts[a, d] * rows[p, d]
        logit = logit * scale - shift[p]
        first = last = _find(positive_ids[p], negative_ids, order, index)
        hits = np.float32(0)
        while last < len(order) and negative_ids[order[last]] == positive_ids[p]:
            hits += terms[a, order[last]]
            last += 1
        if hits <= np.float32(0.5) * sums[a]:
            high = max(top[a], logit)
            weight = np.exp(top[a] - high)
            denominator = np.exp(logit - high) + (sums[a] - hits) * weight
            share[a] += weight / denominator
            for place in range(first, last):
                singles[a, order[place]] -= terms[a, order[place]] * weight / denominator
        else:
            high, denominator = _single(logit, positive_ids[p], logits[a], negative_ids, singles[a])
        total += high - logit + np.log(denominator)
        pull = np.exp(logit - high) / denominator - np.float32(1)
        for d in range(starts.shape[1]):
            grad_starts[a, d] += pull * rows[p, d]
            grad_rows[p, d] += pull * starts[a, d]
    return total


@numba.njit(cache=True, nogil=True)
def _single(
    logit: np.float32, positive_id: int, logits: Floats, negative_ids: Ints, weights: Floats
) -> tuple[np.float32, np.float32]:
    """Return maximum and denominator of an edge whose positive is among the negatives, left out there; add its weights."""
    high = logit
    for n in range(len(logits)):
        if negative_ids[n] != positive_id:
            high = max(high, logits[n])
    denominator = np.exp(logit - high)
    for n in range(len(logits)):
        if negative_ids[n] != positive_id:
            denominator += np.exp(logits[n] - high)
    for n in range(len(logits)):
        if negative_ids[n] != positive_id:
            weights[n] += np.exp(logits[n] - high) / denominator
    return high, denominator
