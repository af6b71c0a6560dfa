"""The compiled passes of :mod:`learners.edge_loss`: what is found of the anchors and negatives, the edges, the gradients.

Letters: ``E`` edges, ``A`` anchors that have edges, ``M`` negatives, ``D`` dim.
"""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

from negative_queues.draws import mix64

__all__ = ["begin", "below_top", "edges_and_gradients", "scaled"]

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

_LOWEST = -3.0e38  # the maximum over no logits: finite, so that differences with it are not NaN


@numba.njit(cache=True, nogil=True)
def begin(anchor: Ints, vectors: Floats, negative_ids: Ints) -> tuple[Ints, Ints, Floats, Ints, Ints]:
    """Return the anchors that have edges ``[A]``, the place of every edge's among them ``[E]``, their vectors ``[A, D]``, an
    order that sorts the negatives, and its index."""
    used, group = _groups(anchor, len(vectors))
    starts = np.empty((len(used), vectors.shape[1]), np.float32)
    for a in range(len(used)):
        for d in range(vectors.shape[1]):
            starts[a, d] = vectors[used[a], d]
    order = np.argsort(negative_ids, kind="mergesort")
    return used, group, starts, order, _index(negative_ids, order)


@numba.njit(cache=True, nogil=True)
def below_top(
    logits: Floats, anchor_ids: Ints, negative_ids: Ints, order: Ints, index: Ints, top: Floats, below: Floats
) -> None:
    """Leave out the negatives that are the anchor, where there are ids of anchors; write each row's largest logit and how far
    the others are below it."""
    if len(anchor_ids):
        _mask(logits, anchor_ids, negative_ids, order, index)
    for a in range(len(logits)):
        highest = np.float32(_LOWEST)
        for n in range(logits.shape[1]):
            highest = max(highest, logits[a, n])
        top[a] = highest
        for n in range(logits.shape[1]):
            below[a, n] = logits[a, n] - highest


@numba.njit(cache=True, nogil=True)
def scaled(
    factor: np.float32,
    used: Ints,
    of_starts: Floats,
    of_positive: Floats,
    of_negative: Floats,
    anchor: Floats,
    positive: Floats,
    negative: Floats,
) -> None:
    """Write the gradients times a factor, those of the anchors that have edges to their rows."""
    anchor[:] = 0
    for a in range(len(used)):
        for d in range(of_starts.shape[1]):
            anchor[used[a], d] = of_starts[a, d] * factor
    for p in range(len(of_positive)):
        for d in range(of_positive.shape[1]):
            positive[p, d] = of_positive[p, d] * factor
    for n in range(len(of_negative)):
        for d in range(of_negative.shape[1]):
            negative[n, d] = of_negative[n, d] * factor


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
def edges_and_gradients(
    group: Ints,
    positive: Ints,
    starts: Floats,
    rows: Floats,
    shift: Floats,
    scale: np.float32,
    logits: Floats,
    top: Floats,
    terms: Floats,
    positive_ids: Ints,
    negative_ids: Ints,
    order: Ints,
    index: Ints,
    grad_starts: Floats,
    grad_rows: Floats,
) -> float:
    """Return the sum of the edges' losses; add each one's gradient by the positive logit to both ends.

    ``terms [A, M]`` are ``exp(logits - top)``: with their sums all that an edge needs of its negatives. They become what each
    negative weighs in the gradient.
    """
    sums, share = np.zeros(len(terms), np.float32), np.zeros(len(terms), np.float32)  # what a term weighs, over the edges
    singles = np.zeros(terms.shape, np.float32)  # the same where edges differ, term by term
    for a in range(len(terms)):
        for n in range(terms.shape[1]):
            sums[a] += terms[a, n]
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
    for a in range(len(terms)):
        for n in range(terms.shape[1]):
            terms[a, n] = terms[a, n] * share[a] + singles[a, n]
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
