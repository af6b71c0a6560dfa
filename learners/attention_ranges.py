"""Compiled passes of :class:`learners.attention.TargetAttention`: a range of requests forward, and back.

Pairs are taken some at a time (:data:`learners.attention_plan.PAIRS`), so that what is made of them stays in cache however long
histories are.

Legend: as :mod:`learners.attention_kernels`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from learners.attention_kernels import (
    Columns,
    Halves,
    Met,
    divide_pairs,
    enter,
    gather,
    meet,
    scatter,
    unweigh_pairs,
    weigh,
)
from learners.attention_lanes import add, copy
from learners.attention_plan import PAIRS, Plan, Work, lines, plan_in, work
from learners.batch import Offsets
from learners.blas import product
from learners.flat import LINE
from learners.lanes import dot
from negative_queues.kernels import kernel

__all__ = ["Given", "backward", "forward", "settle"]

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


class Given(NamedTuple):
    """What a pass is about."""

    columns: tuple[Columns, ...]
    """Side by side."""
    targets: Offsets
    """The candidates of request ``r``, ``[R + 1]``."""
    entries: Offsets
    """Its history entries, likewise."""
    weights: Floats
    """The unit's, as parts of one array: see :class:`_Unit`."""


class _Unit(NamedTuple):
    query: Floats
    """``[W, T]``."""
    key: Floats
    """``[W, T]``."""
    product: Floats
    """``[W, T]``."""
    query_bias: Floats
    """``[W]``."""
    out: Floats
    """``[W]``."""
    slope: Floats
    """``[1]``."""
    bias: Floats
    """``[1]``."""


@kernel
def _unit(flat: Floats, dim: int, width: int) -> _Unit:
    """Return the parts of :class:`learners.flat.Flat`'s array."""
    matrix, vector = lines(dim * width), lines(width)
    vectors = 3 * matrix
    numbers = vectors + 2 * vector
    return _Unit(
        flat[: dim * width].reshape(width, dim),
        flat[matrix : matrix + dim * width].reshape(width, dim),
        flat[2 * matrix : 2 * matrix + dim * width].reshape(width, dim),
        flat[vectors : vectors + width],
        flat[vectors + vector : vectors + vector + width],
        flat[numbers : numbers + 1],
        flat[numbers + LINE : numbers + LINE + 1],
    )


@kernel
def _run(met: Met, start: int, last: int) -> tuple[int, int]:
    """Return where a run of at most :data:`PAIRS` pairs, or of one request that has more, ends, and how many it has."""
    end, held = start, 0
    while end < last:
        more = (met.targets[end + 1] - met.targets[end]) * (met.entries[end + 1] - met.entries[end])
        if held and held + more > PAIRS:
            break
        held += more
        end += 1
    return end, held


@kernel
def _halves(sgemm: int, met: Met, unit: _Unit, halves: Halves, first: int, last: int) -> None:
    """Write both halves of what meets in some requests."""
    now, past = slice(met.targets[first], met.targets[last]), slice(met.entries[first], met.entries[last])
    for c in range(met.targets[first], met.targets[last]):
        copy(halves.query[c], unit.query_bias)
    product(sgemm, met.q[now], False, unit.query, True, halves.query[now], True)
    product(sgemm, met.k[past], False, unit.key, True, halves.key[past], False)


@kernel
def _places(plan: Plan, work: Work, own: int, pair: int) -> tuple[int, int, bool]:
    """Return where a run of pairs begins in what is by pairs at a time and in the hidden layer, and whether that is kept."""
    at, kept = own * (len(work.both) // (len(plan.bounds) - 1)), len(work.hidden) == plan.bounds[-1, 1]
    return at, pair if kept else at, kept


@kernel
def forward(sgemm: int, given: Given, numbers: Ints, width: int, made: Floats, interest: Floats, own: int) -> None:
    """Write the ``interest [C, 2 T]`` of a range's requests, with its product with the target, and what is kept of them.

    Args:
        sgemm: of :func:`learners.blas.product`.
        given: see there.
        numbers: of :func:`learners.attention_plan.planned`.
        width: ``W``.
        made: of the plan's size, written.
        interest: see above.
        own: number of the range.
    """
    plan = plan_in(numbers, len(given.targets) - 1)
    first, last, pair = plan.bounds[own, 0], plan.bounds[own + 1, 0], plan.bounds[own, 1]
    w = work(made, plan)
    met, halves = Met(w.q, w.k, plan.met[0], plan.met[1]), Halves(w.query, w.key)
    unit, start = _unit(given.weights, w.q.shape[1], width), first
    offset = 0
    for columns in given.columns:
        gather(columns, offset, given.targets, given.entries, met, first, last)
        offset += columns.targets.shape[1]
    _halves(sgemm, met, unit, halves, first, last)
    while start < last:
        end, n = _run(met, start, last)
        at, place, _ = _places(plan, w, own, pair)
        both, hidden, weight = w.both[at : at + n], w.hidden[place : place + n], w.weight.reshape(-1)[pair : pair + n]
        meet(met, halves, start, end, both, hidden, True)
        product(sgemm, both, False, unit.product, True, hidden, True)
        weigh(met, hidden, unit.slope[0], unit.out, unit.bias[0], given.targets, start, end, weight, interest)
        start, pair = end, pair + n


@kernel
def backward(
    sgemm: int, given: Given, numbers: Ints, width: int, made: Floats, interest: Floats, own: int, grad: Floats
) -> None:
    """Go back: write the gradients of what meets in a range's requests, and the range's of the weights, to ``made``.

    Args:
        sgemm: like the others as forward, which has written ``made`` and ``interest``.
        given: see above.
        numbers: see above.
        width: see above.
        made: see above.
        interest: see above.
        own: see above.
        grad: by the interest, ``[C, 2 T]``.
    """
    plan = plan_in(numbers, len(given.targets) - 1)
    first, last, pair = plan.bounds[own, 0], plan.bounds[own + 1, 0], plan.bounds[own, 1]
    w = work(made, plan)
    met, halves = Met(w.q, w.k, plan.met[0], plan.met[1]), Halves(w.query, w.key)
    now, past = slice(met.targets[first], met.targets[last]), slice(met.entries[first], met.entries[last])
    by = Halves(w.by_query, w.by_key)
    w.sums[own], w.by_key[past], w.of_k[past] = 0, 0, 0
    unit, of = _unit(given.weights, w.q.shape[1], width), _unit(w.sums[own], w.q.shape[1], width)
    leaky, start = np.zeros(width, np.float32), first
    enter(met, given.targets, interest, grad, first, last, w.of_interest, w.of_q)
    while start < last:
        end, n = _run(met, start, last)
        at, place, kept = _places(plan, w, own, pair)
        both, hidden, weight = w.both[at : at + n], w.hidden[place : place + n], w.weight.reshape(-1)[pair : pair + n]
        meet(met, halves, start, end, both, hidden, not kept)
        if not kept:
            product(sgemm, both, False, unit.product, True, hidden, True)
        pull = w.pull.reshape(-1)[at : at + n]
        # hidden becomes its own gradient
        of.bias[0] += unweigh_pairs(met, w.of_interest, hidden, unit.slope[0], unit.out, start, end, pull, by, of.out, leaky)
        product(sgemm, hidden, True, both, False, of.product, True)
        product(sgemm, hidden, False, unit.product, False, both, False)
        divide_pairs(met, w.of_interest, weight, both, start, end, w.of_q, w.of_k)
        start, pair = end, pair + n
    of.slope[0] = dot(leaky, unit.out)
    for c in range(met.targets[first], met.targets[last]):
        add(of.query_bias, of.query_bias, by.query[c])
    product(sgemm, by.query[now], True, met.q[now], False, of.query, True)
    product(sgemm, by.key[past], True, met.k[past], False, of.key, True)
    product(sgemm, by.query[now], False, unit.query, False, w.of_q[now], True)
    product(sgemm, by.key[past], False, unit.key, False, w.of_k[past], True)


@kernel
def settle(
    given: Given,
    numbers: Ints,
    made: Floats,
    of_rows: tuple[tuple[Floats, Floats], ...],
    of_weights: Floats,
) -> None:
    """Add the gradients of all that meets to those of the rows they are, of targets and of entries, in the order of requests;
    write the sum of the ranges' gradients of the weights, in their order."""
    plan = plan_in(numbers, len(given.targets) - 1)
    w, offset = work(made, plan), 0
    grads = Met(w.of_q, w.of_k, plan.met[0], plan.met[1])
    for at in range(len(given.columns)):
        columns, of = given.columns[at], of_rows[at]
        scatter(columns, offset, given.targets, given.entries, grads, of[0], of[1])
        offset += columns.targets.shape[1]
    copy(of_weights, w.sums[0])
    for own in range(1, len(w.sums)):
        add(of_weights, of_weights, w.sums[own])
