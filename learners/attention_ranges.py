"""Compiled passes of :class:`learners.attention.TargetAttention`: a range of requests forward, and back.

Pairs are taken :data:`PAIRS` at a time, so that what is made per pair stays in cache however long histories are; nothing of it
is kept but its weight, and backward makes it anew.

Legend: as :mod:`learners.attention`.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from learners.attention_kernels import meet, part, pull, unweigh, weigh
from learners.batch import Offsets
from learners.blas import product

__all__ = ["PAIRS", "Sides", "Unit", "backward", "balanced", "forward"]

Floats = npt.NDArray[np.float32]
PAIRS = 2048
"""Pairs at a time: at the usual widths what they make takes half a megabyte."""


class Sides(NamedTuple):
    """Both sides of the pairs: vectors ``[C, T]`` and ``[H, T]``, and whose they are."""

    q: Floats
    k: Floats
    targets: Offsets
    entries: Offsets


class Unit(NamedTuple):
    """Weights of the activation unit, or their gradients."""

    query: Floats
    """``[W, T]``."""
    query_bias: Floats
    """``[W]``."""
    key: Floats
    """``[W, T]``."""
    product: Floats
    """``[W, T]``."""
    slope: Floats
    """``[1]``."""
    out: Floats
    """``[1, W]``."""
    bias: Floats
    """``[1]``."""


@numba.njit(cache=True, nogil=True)
def balanced(targets: Offsets, entries: Offsets, parts: int, least: int) -> npt.NDArray[np.int64]:
    """Cut the requests into at most so many ranges of about as many pairs, ``least`` or more unless they are fewer in all.

    Returns:
        The bounds of the ranges: requests and pairs before each, and behind the last, int64 ``[ranges + 1, 2]``.
    """
    n = len(targets) - 1
    total = 0
    for r in range(n):
        total += (targets[r + 1] - targets[r]) * (entries[r + 1] - entries[r])
    parts = max(1, min(parts, total // least))
    bounds = np.zeros((parts + 1, 2), np.int64)
    part, before = 1, 0
    for r in range(n):
        before += (targets[r + 1] - targets[r]) * (entries[r + 1] - entries[r])
        while part < parts and before * parts >= total * part:
            bounds[part, 0], bounds[part, 1] = r + 1, before
            part += 1
    bounds[parts, 0], bounds[parts, 1] = n, total
    return bounds


@numba.njit(cache=True, nogil=True)
def _runs(targets: Offsets, entries: Offsets, first: int, last: int) -> tuple[Offsets, int]:
    """Return the bounds of runs of at most :data:`PAIRS` pairs, or of one request, and the pairs of the largest."""
    cuts = np.empty(last - first + 2, np.int64)
    cuts[0], runs, held, most = first, 0, 0, 0
    for r in range(first, last):
        more = (targets[r + 1] - targets[r]) * (entries[r + 1] - entries[r])
        if held and held + more > PAIRS:
            runs += 1
            cuts[runs] = r
            held = 0
        held += more
        most = max(most, held)
    cuts[runs + 1] = last
    return cuts[: runs + 2], most


@numba.njit(cache=True, nogil=True)
def _halves(sgemm: int, sides: Sides, unit: Unit, first: int, last: int) -> tuple[Floats, Floats]:
    """Return ``W_q q + b`` and ``W_k k`` of the range's candidates and entries."""
    q, k = sides.q[sides.targets[first] : sides.targets[last]], sides.k[sides.entries[first] : sides.entries[last]]
    width = len(unit.query_bias)
    of_query, of_key = np.empty((len(q), width), np.float32), np.empty((len(k), width), np.float32)
    product(sgemm, q, False, unit.query, True, of_query, False)
    for c in range(len(q)):
        for w in range(width):
            of_query[c, w] += unit.query_bias[w]
    product(sgemm, k, False, unit.key, True, of_key, False)
    return of_query, of_key


@numba.njit(cache=True, nogil=True)
def forward(
    sgemm: int, sides: Sides, unit: Unit, weight: Floats, interest: Floats, first: int, last: int, first_pair: int
) -> None:
    """Write the ``interest [C, T]`` of the requests ``first`` to ``last`` (exclusive), the ``weight [P]`` of their pairs."""
    of_query, of_key = _halves(sgemm, sides, unit, first, last)
    interest[sides.targets[first] : sides.targets[last]] = 0
    cuts, most = _runs(sides.targets, sides.entries, first, last)
    both, hidden = np.empty((most, sides.q.shape[1]), np.float32), np.empty((most, of_query.shape[1]), np.float32)
    pair = first_pair
    for run in range(len(cuts) - 1):
        start, end = cuts[run], cuts[run + 1]
        n = meet(sides.q, sides.k, of_query, of_key, sides.targets, sides.entries, first, start, end, both, hidden)
        product(sgemm, both[:n], False, unit.product, True, hidden[:n], True)
        weigh(
            sides.k, hidden, unit.slope, unit.out[0], unit.bias[0], sides.targets, sides.entries, start, end,
            weight[pair : pair + n], interest,
        )  # fmt: skip
        pair += n


@numba.njit(cache=True, nogil=True)
def backward(
    sgemm: int,
    sides: Sides,
    unit: Unit,
    weight: Floats,
    grad: Floats,
    of_target: Floats,
    of_history: Floats,
    sums: Unit,
    first: int,
    last: int,
    first_pair: int,
) -> None:
    """Go back: write the range's rows of ``of_target [C, T]`` and ``of_history [H, T]``, add the weights' to ``sums``.

    Args:
        sgemm: of :func:`learners.blas.product`.
        sides: as forward.
        unit: as forward.
        weight: that of forward.
        grad: by the interest, ``[C, T]``.
        of_target: see above.
        of_history: see above.
        sums: see above.
        first: first request.
        last: where they end.
        first_pair: pairs before it.
    """
    targets, entries, width = sides.targets, sides.entries, len(unit.query_bias)
    of_query, of_key = _halves(sgemm, sides, unit, first, last)
    by_query, by_key = np.zeros(of_query.shape, np.float32), np.zeros(of_key.shape, np.float32)
    now, past = slice(targets[first], targets[last]), slice(entries[first], entries[last])
    of_target[now], of_history[past] = 0, 0
    cuts, most = _runs(targets, entries, first, last)
    both, hidden = np.empty((most, sides.q.shape[1]), np.float32), np.empty((most, width), np.float32)
    pulls, pair = np.empty(most, np.float32), first_pair
    for run in range(len(cuts) - 1):
        start, end = cuts[run], cuts[run + 1]
        n = meet(sides.q, sides.k, of_query, of_key, targets, entries, first, start, end, both, hidden)
        product(sgemm, both[:n], False, unit.product, True, hidden[:n], True)
        pull(sides.k, targets, entries, start, end, grad, pulls)
        unweigh(hidden[:n], unit.slope, unit.out[0], pulls, sums.slope, sums.out[0], sums.bias)  # hidden is its gradient now
        product(sgemm, hidden[:n], True, both[:n], False, sums.product, True)
        product(sgemm, hidden[:n], False, unit.product, False, both[:n], False)
        part(
            sides.q, sides.k, targets, entries, first, start, end, grad, weight[pair : pair + n], hidden, both, of_target,
            of_history, by_query, by_key,
        )  # fmt: skip
        pair += n
    product(sgemm, by_query, True, sides.q[now], False, sums.query, True)
    product(sgemm, by_key, True, sides.k[past], False, sums.key, True)
    product(sgemm, by_query, False, unit.query, False, of_target[now], True)
    product(sgemm, by_key, False, unit.key, False, of_history[past], True)
    for c in range(len(by_query)):
        for w in range(width):
            sums.query_bias[w] += by_query[c, w]
