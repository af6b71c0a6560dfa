"""Pair by pair: what of :class:`learners.attention.TargetAttention` is no matrix product.

Legend: as :mod:`learners.attention`; ``M`` candidates and entries that meet one of the other side.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from learners.attention_lanes import (
    add,
    add_pairs,
    combine,
    copy,
    cross,
    divide,
    multiply,
    multiply_pairs,
    unweigh,
    weighed,
)
from learners.batch import Offsets
from learners.lanes import dot
from negative_queues.kernels import kernel

__all__ = [
    "Columns",
    "Halves",
    "Met",
    "divide_pairs",
    "enter",
    "gather",
    "meet",
    "scatter",
    "unweigh_pairs",
    "weigh",
]

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


class Columns(NamedTuple):
    """Some columns of targets and entries: rows of two matrices, which may be the same, by place."""

    targets: Floats
    """``[U, D]``."""
    entries: Floats
    """``[U, D]``."""
    now: Ints
    """Place of each candidate, ``[C]``."""
    past: Ints
    """Place of each entry, ``[H]``."""


class Met(NamedTuple):
    """Candidates whose request has a history, and entries whose request has candidates: nobody computes for the others."""

    q: Floats
    """Targets, ``[M, T]``."""
    k: Floats
    """Entries, ``[M, T]``."""
    targets: Offsets
    """``[R + 1]``."""
    entries: Offsets
    """``[R + 1]``."""


class Halves(NamedTuple):
    """What the hidden layer has of one side alone, or its gradients."""

    query: Floats
    """``W_q q + b``, ``[M, W]``."""
    key: Floats
    """``W_k k``, ``[M, W]``."""


@kernel
def gather(columns: Columns, offset: int, targets: Offsets, entries: Offsets, met: Met, first: int, last: int) -> None:
    """Write the columns, which begin at ``offset``, of those of some requests that meet; both offsets are those of all."""
    end = offset + columns.targets.shape[1]
    for r in range(first, last):
        to, come = met.targets[r], targets[r]
        for i in range(met.targets[r + 1] - to):
            copy(met.q[to + i, offset:end], columns.targets[columns.now[come + i]])
        to, come = met.entries[r], entries[r]
        for i in range(met.entries[r + 1] - to):
            copy(met.k[to + i, offset:end], columns.entries[columns.past[come + i]])


@kernel
def scatter(
    columns: Columns, offset: int, targets: Offsets, entries: Offsets, grads: Met, of_targets: Floats, of_entries: Floats
) -> None:
    """Add the gradients of all that meet to those of the rows they are, in the order of requests."""
    end = offset + columns.targets.shape[1]
    for r in range(len(targets) - 1):
        come, to = grads.targets[r], targets[r]
        for i in range(grads.targets[r + 1] - come):
            row = of_targets[columns.now[to + i]]
            add(row, row, grads.q[come + i, offset:end])
        come, to = grads.entries[r], entries[r]
        for i in range(grads.entries[r + 1] - come):
            row = of_entries[columns.past[to + i]]
            add(row, row, grads.k[come + i, offset:end])


@kernel
def meet(met: Met, halves: Halves, first: int, last: int, both: Floats, hidden: Floats, anew: bool) -> None:
    """Write ``q * k`` of every pair of some requests, ``[P, T]``; if ``hidden [P, W]`` is made anew, the sum of its halves."""
    pair = 0
    for r in range(first, last):
        now, past = slice(met.targets[r], met.targets[r + 1]), slice(met.entries[r], met.entries[r + 1])
        own = slice(pair, pair + (now.stop - now.start) * (past.stop - past.start))
        multiply_pairs(both[own], met.q[now], met.k[past])
        if anew:
            add_pairs(hidden[own], halves.query[now], halves.key[past])
        pair = own.stop


@kernel
def weigh(
    met: Met,
    hidden: Floats,
    leak: np.float32,
    out: Floats,
    bias: np.float32,
    targets: Offsets,
    first: int,
    last: int,
    weight: Floats,
    interest: Floats,
) -> None:
    """Write the ``weight [P]`` of each pair; its sum with the entries, and the product of that and the target, side by side to
    ``interest [C, 2 T]``."""
    for pair in range(len(weight)):
        weight[pair] = weighed(hidden[pair], out, leak) + bias
    pair, dim = 0, met.q.shape[1]
    for r in range(first, last):
        now, past = slice(met.targets[r], met.targets[r + 1]), slice(met.entries[r], met.entries[r + 1])
        rows = interest[targets[r] : targets[r + 1]]
        if past.stop == past.start:
            rows[:] = 0
            continue
        own = slice(pair, pair + (now.stop - now.start) * (past.stop - past.start))
        combine(rows[:, :dim], met.k[past], weight[own])
        multiply(rows[:, dim:], rows[:, :dim], met.q[now])
        pair = own.stop


@kernel
def enter(
    met: Met, targets: Offsets, interest: Floats, grad: Floats, first: int, last: int, of_interest: Floats, of_target: Floats
) -> None:
    """Turn the gradient by interest and product, ``[C, 2 T]``, into those by the interest and by the target, ``[M, T]``."""
    dim = met.q.shape[1]
    for r in range(first, last):
        now = slice(met.targets[r], met.targets[r + 1])
        come = slice(targets[r], targets[r] + now.stop - now.start)
        of_both, rows = grad[come], interest[come]
        cross(of_interest[now], of_target[now], of_both[:, :dim], of_both[:, dim:], rows[:, :dim], met.q[now])


@kernel
def unweigh_pairs(
    met: Met,
    of_interest: Floats,
    hidden: Floats,
    leak: np.float32,
    out: Floats,
    first: int,
    last: int,
    pull: Floats,
    by: Halves,
    of_out: Floats,
    leaky: Floats,
) -> np.float32:
    """Turn ``hidden [P, W]`` into its gradient, and sum that to those of both halves; add what comes of the last layer ``[W]``
    and, by :data:`learners.attention_lanes.unweigh`, of the slope; return the bias's; write the weights', ``pull [P]``."""
    pair, total = 0, np.float32(0)
    for r in range(first, last):
        now, past = slice(met.targets[r], met.targets[r + 1]), slice(met.entries[r], met.entries[r + 1])
        start = pair
        for c in range(now.start, now.stop):
            for h in range(past.start, past.stop):
                pull[pair] = dot(of_interest[c], met.k[h])
                total += pull[pair]
                pair += 1
        unweigh(hidden[start:pair], by.query[now], by.key[past], of_out, leaky, out, pull[start:pair], leak)
    return total


@kernel
def divide_pairs(
    met: Met, of_interest: Floats, weight: Floats, of_both: Floats, first: int, last: int, of_target: Floats, of_entry: Floats
) -> None:
    """Add what the pairs of some requests pass on to both sides, ``[M, T]`` each."""
    pair = 0
    for r in range(first, last):
        now, past = slice(met.targets[r], met.targets[r + 1]), slice(met.entries[r], met.entries[r + 1])
        own = slice(pair, pair + (now.stop - now.start) * (past.stop - past.start))
        divide(of_target[now], of_entry[past], of_both[own], met.q[now], met.k[past], of_interest[now], weight[own])
        pair = own.stop
