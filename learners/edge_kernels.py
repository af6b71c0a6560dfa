"""Value and gradients of the edge loss in one compiled pass, once per anchor and distinct negative rather than per edge and
draw (:mod:`learners.edge_loss`).

Everything lies by negative, ``[N, A]``: sums and maxima over the negatives of an anchor then go by whole rows, in one order.

Letters: as there; ``N`` distinct negatives, ``A`` anchors that have edges, rounded up to whole lines of 16 where it is a width.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from learners.blas import product
from learners.exponentials import exponentials
from learners.lanes import dot, total
from negative_queues.kernels import kernel

__all__ = ["grouped", "room"]

Floats = npt.NDArray[np.float32]
Int32s = npt.NDArray[np.int32]
Ints = npt.NDArray[np.int64]

_LINE = 16
_LOWEST = np.float32(-3.0e38)  # the maximum over no logits: finite, so that differences with it are not NaN
_ONE = np.float32(1)


def room(n_edges: int, n_anchors: int, n_drawn: int, dim: int) -> int:
    """Return how many floats :func:`grouped` needs beside its arguments, at most."""
    wide = _LINE * -(-min(n_edges, n_anchors) // _LINE)
    return 2 * _LINE + 2 * wide * dim + 2 * n_drawn * dim + (3 * n_drawn + 4) * wide


@kernel(inline="always")
def _whole(n: int) -> int:
    return (n + _LINE - 1) // _LINE * _LINE


@kernel
def grouped(
    sgemm: int,
    sides: tuple[Floats, Floats, Floats],
    edges: tuple[Ints, Ints],
    places: tuple[Ints, Ints],
    drawn: Ints,
    one_type: bool,
    shifts: tuple[Floats, Floats],
    scale: np.float32,
    weight: np.float32,
    gradients: tuple[Floats, Floats, Floats],
    scratch: Floats,
) -> float:
    """Return the mean loss of the edges; add its gradients, times a weight.

    Args:
        sgemm: of :func:`learners.blas.product`.
        sides: vectors of the anchors' type ``[U, D]``, of the positives' type ``[U', D]`` and its biases, ``[U']`` or none.
        edges: nodes that are anchor and positive, ``[E]``; one at least.
        places: rows of the nodes of both types.
        drawn: rows of the negatives among the positives' type, ``[M]``; one at least, a row may be there twice.
        one_type: whether the two types are one, so that a negative can be the anchor.
        shifts: taken off the logits of the positives and of the negatives, by row of their type, ``[U']`` each or none.
        scale: 1 / temperature.
        weight: of the gradients.
        gradients: by the sides; one type's may be one array.
        scratch: begins at a cache line, and has :func:`room`.

    Raises:
        ValueError: it has less.
    """
    anchor, positive, bias = sides
    first, second = edges
    of_anchor, of_positive, of_bias = gradients
    dim = anchor.shape[1]
    used, group = _groups(first, places[0], len(anchor))  # [A], [E]
    rows, counts, column = _distinct(drawn, len(positive))  # [N], [N], [U']
    wide, n = _whole(len(used)), len(rows)
    if len(scratch) < 2 * (_whole(wide * dim) + _whole(n * dim)) + (3 * n + 4) * wide:
        raise ValueError("scratch has less than room() says")
    starts, at = _cut(scratch, 0, wide, dim)
    of_starts, at = _cut(scratch, at, wide, dim)
    ends, at = _cut(scratch, at, n, dim)
    of_ends, at = _cut(scratch, at, n, dim)
    logits, at = _cut(scratch, at, n, wide)
    terms, at = _cut(scratch, at, n, wide)
    singles, at = _cut(scratch, at, n, wide)
    lines, at = _cut(scratch, at, 4, wide)
    _take(anchor, used, starts)
    _take(positive, rows, ends)
    product(sgemm, ends, False, starts, True, logits, False)
    for m in range(n):
        offset = np.float32(0)
        if len(bias):
            offset += bias[rows[m]] * scale
        if len(shifts[1]):
            offset -= shifts[1][rows[m]]
        for a in range(wide):
            logits[m, a] = logits[m, a] * scale + offset
    if one_type:
        for a in range(len(used)):
            if column[used[a]] >= 0:
                logits[column[used[a]], a] = _LOWEST
    top, sums, share, powers = lines[0], lines[1], lines[2], lines[3]
    _terms(logits, counts, top, sums, powers, terms)
    if one_type:
        for a in range(len(used)):
            if column[used[a]] >= 0:
                sums[a] -= terms[column[used[a]], a]  # exp of the lowest: nothing, or 1 each where there is no other
                terms[column[used[a]], a] = 0
    mean = weight * scale / np.float32(len(first))
    share[:] = 0
    of_starts[:] = 0
    singles[:] = 0
    loss = _edges(
        group, second, places[1], starts, positive, bias, shifts[0], scale, mean, column, logits, counts, top, terms, sums,
        share, singles, of_starts, of_positive, of_bias,
    )  # fmt: skip
    for m in range(n):
        for a in range(wide):
            terms[m, a] = (terms[m, a] * share[a] + singles[m, a]) * mean
    product(sgemm, terms, True, ends, False, of_starts, True)
    product(sgemm, terms, False, starts, False, of_ends, False)
    for m in range(n):
        for d in range(dim):
            of_positive[rows[m], d] += of_ends[m, d]
        if len(bias):
            of_bias[rows[m]] += total(terms[m])
    for a in range(len(used)):
        for d in range(dim):
            of_anchor[used[a], d] += of_starts[a, d]
    return loss / len(first)


@kernel
def _groups(anchor: Ints, places: Ints, n_rows: int) -> tuple[Ints, Ints]:
    """Return the rows that are an anchor, as they come, ``[A]``, and the place of every edge's anchor among them, ``[E]``."""
    place, used, group = np.full(n_rows, -1, np.int32), np.empty(min(n_rows, len(anchor)), np.int64), np.empty_like(anchor)
    n = 0
    for edge in range(len(anchor)):
        row = places[anchor[edge]]
        if place[row] < 0:
            place[row] = n
            used[n] = row
            n += 1
        group[edge] = place[row]
    return used[:n], group


@kernel
def _distinct(drawn: Ints, n_rows: int) -> tuple[Ints, Floats, Int32s]:
    """Return the distinct rows of the draws as they come, ``[N]``, how often each was drawn, and every row's place or -1."""
    column, rows, counts = np.full(n_rows, -1, np.int32), np.empty(len(drawn), np.int64), np.zeros(len(drawn), np.float32)
    n = 0
    for row in drawn:
        if column[row] < 0:
            column[row] = n
            rows[n] = row
            n += 1
        counts[column[row]] += _ONE
    return rows[:n], counts[:n], column


@kernel
def _cut(scratch: Floats, at: int, rows: int, width: int) -> tuple[Floats, int]:
    """Return a matrix of what is free from ``at`` on, and the cache line behind it."""
    return scratch[at : at + rows * width].reshape(rows, width), at + _whole(rows * width)


@kernel
def _take(vectors: Floats, rows: Ints, out: Floats) -> None:
    """Write the vectors of some rows, and zeros behind them."""
    for i in range(len(rows)):
        for d in range(vectors.shape[1]):
            out[i, d] = vectors[rows[i], d]
    out[len(rows) :] = 0


@kernel
def _terms(logits: Floats, counts: Floats, top: Floats, sums: Floats, powers: Floats, terms: Floats) -> None:
    """Write the maximum over the negatives ``top [A]``, ``counts exp(logits - top)`` ``[N, A]`` and their ``sums [A]``."""
    top[:] = _LOWEST
    sums[:] = 0
    for m in range(len(logits)):
        for a in range(len(top)):
            top[a] = max(top[a], logits[m, a])
    for m in range(len(logits)):
        row = terms[m]
        for a in range(len(top)):
            row[a] = logits[m, a] - top[a]
        exponentials(row, powers)
        for a in range(len(top)):
            row[a] *= counts[m]
        for a in range(len(top)):
            sums[a] += row[a]


@kernel
def _edges(
    group: Ints,
    positive: Ints,
    places: Ints,
    starts: Floats,
    vectors: Floats,
    bias: Floats,
    shift: Floats,
    scale: np.float32,
    mean: np.float32,
    column: Int32s,
    logits: Floats,
    counts: Floats,
    top: Floats,
    terms: Floats,
    sums: Floats,
    share: Floats,
    singles: Floats,
    of_starts: Floats,
    of_vectors: Floats,
    of_bias: Floats,
) -> float:
    """Return the sum of the edges' losses; add each one's gradient by the positive logit, and its weight of the anchor's terms.

    ``terms [N, A]`` are ``counts exp(logits - top)`` and ``sums [A]`` their sums: all that an edge needs of its negatives. What
    it adds goes to ``share [A]``, for all terms of its anchor, and to ``singles [N, A]``, where edges of an anchor differ.
    """
    loss = 0.0
    for edge in range(len(group)):
        a, p = group[edge], places[positive[edge]]
        logit = dot(starts[a], vectors[p])
        if len(bias):
            logit += bias[p]
        logit *= scale
        if len(shift):
            logit -= shift[p]
        own = column[p]
        hits = terms[own, a] if own >= 0 else np.float32(0)
        if hits <= np.float32(0.5) * sums[a]:
            less = np.exp(-abs(logit - top[a]))
            high, of_logit, of_terms = (logit, _ONE, less) if logit > top[a] else (top[a], less, _ONE)
            denominator = of_logit + (sums[a] - hits) * of_terms
            share[a] += of_terms / denominator
            if own >= 0:
                singles[own, a] -= hits * of_terms / denominator
        else:
            high, of_logit, denominator = _single(logit, own, a, logits, counts, singles)
        loss += high - logit + np.log(denominator)
        pull = (of_logit / denominator - _ONE) * mean
        for d in range(starts.shape[1]):
            of_starts[a, d] += pull * vectors[p, d]
        for d in range(starts.shape[1]):
            of_vectors[p, d] += pull * starts[a, d]
        if len(bias):
            of_bias[p] += pull
    return loss


@kernel
def _single(
    logit: np.float32, own: int, a: int, logits: Floats, counts: Floats, weights: Floats
) -> tuple[np.float32, np.float32, np.float32]:
    """Return maximum, positive's term and denominator of an edge whose positive is among the negatives, left out there; add its
    weights."""
    high = logit
    for m in range(len(logits)):
        if m != own:
            high = max(high, logits[m, a])
    of_logit = np.exp(logit - high)
    denominator = of_logit
    for m in range(len(logits)):
        if m != own:
            denominator += counts[m] * np.exp(logits[m, a] - high)
    for m in range(len(logits)):
        if m != own:
            weights[m, a] += counts[m] * np.exp(logits[m, a] - high) / denominator
    return high, of_logit, denominator
