"""Compiled passes of :class:`learners.attention.TargetAttention`: a range of requests forward, and back.

Pairs are taken :data:`PAIRS` at a time, so that what is made per pair stays in cache however long histories are; nothing of it is
kept but its weight, and backward makes it anew.

Legend: as :mod:`learners.attention`.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from learners.batch import Offsets
from learners.blas import product

__all__ = ["PAIRS", "Sides", "Sums", "Unit", "backward", "balanced", "forward"]

Floats = npt.NDArray[np.float32]
LANES = {"reassoc", "contract", "nsz", "arcp"}
PAIRS = 2048
"""Pairs at a time: at the usual widths what they make takes half a megabyte."""


class Sides(NamedTuple):
    """Both sides of the pairs: vectors ``[C, T]`` and ``[H, T]``, and whose they are."""

    q: Floats
    k: Floats
    targets: Offsets
    entries: Offsets


class Unit(NamedTuple):
    """Weights of the activation unit."""

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


class Sums(NamedTuple):
    """Their gradients, of the same shapes."""

    query: Floats
    query_bias: Floats
    key: Floats
    product: Floats
    slope: Floats
    out: Floats
    bias: Floats


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
    """Write the ``interest [C, T]`` of the requests ``first`` to ``last`` (exclusive), and the ``weight [P]`` of their pairs."""
    of_query, of_key = _halves(sgemm, sides, unit, first, last)
    interest[sides.targets[first] : sides.targets[last]] = 0
    cuts, most = _runs(sides.targets, sides.entries, first, last)
    both, hidden = np.empty((most, sides.q.shape[1]), np.float32), np.empty((most, of_query.shape[1]), np.float32)
    pair = first_pair
    for run in range(len(cuts) - 1):
        n = _meet(sides.q, sides.k, of_query, of_key, sides.targets, sides.entries, first, cuts[run], cuts[run + 1], both, hidden)
        product(sgemm, both[:n], False, unit.product, True, hidden[:n], True)
        _weigh(
            sides.k, hidden, unit.slope, unit.out[0], unit.bias[0], sides.targets, sides.entries, cuts[run], cuts[run + 1],
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
    sums: Sums,
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
    pull, pair = np.empty(most, np.float32), first_pair
    for run in range(len(cuts) - 1):
        start, end = cuts[run], cuts[run + 1]
        n = _meet(sides.q, sides.k, of_query, of_key, targets, entries, first, start, end, both, hidden)
        product(sgemm, both[:n], False, unit.product, True, hidden[:n], True)
        _pull(sides.k, targets, entries, start, end, grad, pull)
        _unweigh(hidden[:n], unit.slope, unit.out[0], pull, sums.slope, sums.out[0], sums.bias)  # hidden is its gradient now
        product(sgemm, hidden[:n], True, both[:n], False, sums.product, True)
        product(sgemm, hidden[:n], False, unit.product, False, both[:n], False)
        _part(
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


@numba.njit(cache=True, nogil=True)
def _meet(
    q: Floats,
    k: Floats,
    of_query: Floats,
    of_key: Floats,
    targets: Offsets,
    entries: Offsets,
    origin: int,
    first: int,
    last: int,
    both: Floats,
    hidden: Floats,
) -> int:
    """Write ``q * k [P, T]`` and the sum of both halves of the hidden layer ``[P, W]`` of every pair of some requests; return how
    many there are. The halves begin with the request ``origin``."""
    pair, first_target, first_entry = 0, targets[origin], entries[origin]
    for r in range(first, last):
        for c in range(targets[r], targets[r + 1]):
            for h in range(entries[r], entries[r + 1]):
                for d in range(q.shape[1]):
                    both[pair, d] = q[c, d] * k[h, d]
                for w in range(of_key.shape[1]):
                    hidden[pair, w] = of_query[c - first_target, w] + of_key[h - first_entry, w]
                pair += 1
    return pair


@numba.njit(cache=True, nogil=True, fastmath=LANES)
def _weigh(
    k: Floats,
    hidden: Floats,
    slope: Floats,
    out: Floats,
    bias: np.float32,
    targets: Offsets,
    entries: Offsets,
    first: int,
    last: int,
    weight: Floats,
    interest: Floats,
) -> None:
    """Write the ``weight [P]`` of each pair and add it times the entry to the ``interest [C, T]``."""
    pair, leak = 0, slope[0]
    for r in range(first, last):
        for c in range(targets[r], targets[r + 1]):
            for h in range(entries[r], entries[r + 1]):
                total = bias
                for w in range(len(out)):
                    value = hidden[pair, w]
                    total += max(value, np.float32(0)) * out[w] + min(value, np.float32(0)) * leak * out[w]
                weight[pair] = total
                for d in range(k.shape[1]):
                    interest[c, d] += total * k[h, d]
                pair += 1


@numba.njit(cache=True, nogil=True, fastmath=LANES)
def _pull(k: Floats, targets: Offsets, entries: Offsets, first: int, last: int, grad: Floats, pull: Floats) -> None:
    """Write the gradient by each pair's weight, ``[P]``."""
    pair = 0
    for r in range(first, last):
        for c in range(targets[r], targets[r + 1]):
            for h in range(entries[r], entries[r + 1]):
                total = np.float32(0)
                for d in range(k.shape[1]):
                    total += grad[c, d] * k[h, d]
                pull[pair] = total
                pair += 1


@numba.njit(cache=True, nogil=True, fastmath=LANES)
def _unweigh(
    hidden: Floats, slope: Floats, out: Floats, pull: Floats, of_slope: Floats, of_out: Floats, of_bias: Floats
) -> None:
    """Turn ``hidden [P, W]`` into its gradient; add those of the slope and of the last layer ``[W]`` and its bias."""
    width, leak = len(out), slope[0]
    active, leaky = np.zeros(width, np.float32), np.zeros(width, np.float32)
    for pair in range(len(hidden)):
        of_bias[0] += pull[pair]
        for w in range(width):
            active[w] += pull[pair] * max(hidden[pair, w], np.float32(0))
        for w in range(width):
            leaky[w] += pull[pair] * min(hidden[pair, w], np.float32(0))
        for w in range(width):
            hidden[pair, w] = pull[pair] * out[w] * (np.float32(1) if hidden[pair, w] > 0 else leak)
    for w in range(width):
        of_out[w] += active[w] + leak * leaky[w]
        of_slope[0] += leaky[w] * out[w]


@numba.njit(cache=True, nogil=True)
def _part(
    q: Floats,
    k: Floats,
    targets: Offsets,
    entries: Offsets,
    origin: int,
    first: int,
    last: int,
    grad: Floats,
    weight: Floats,
    of_hidden: Floats,
    of_both: Floats,
    of_target: Floats,
    of_history: Floats,
    of_query: Floats,
    of_key: Floats,
) -> None:
    """Add what the pairs pass on to both sides, ``[C, T]`` and ``[H, T]``, and to their halves of the hidden layer, which begin
    with the request ``origin``."""
    pair, first_target, first_entry = 0, targets[origin], entries[origin]
    for r in range(first, last):
        for c in range(targets[r], targets[r + 1]):
            for h in range(entries[r], entries[r + 1]):
                for d in range(q.shape[1]):
                    of_target[c, d] += of_both[pair, d] * k[h, d]
                for d in range(q.shape[1]):
                    of_history[h, d] += of_both[pair, d] * q[c, d] + weight[pair] * grad[c, d]
                for w in range(of_key.shape[1]):
                    of_query[c - first_target, w] += of_hidden[pair, w]
                for w in range(of_key.shape[1]):
                    of_key[h - first_entry, w] += of_hidden[pair, w]
                pair += 1
