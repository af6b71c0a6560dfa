"""How a pass of :class:`learners.attention.TargetAttention` is cut, and where everything that it makes is in one array.

One array instead of fourteen: each would cost as much as a tenth of what is computed.

Legend: as :mod:`learners.attention_kernels`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from learners.batch import Offsets
from learners.flat import LINE
from negative_queues.kernels import kernel

__all__ = ["PAIRS", "Plan", "Work", "lines", "plan_in", "planned", "work"]

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
PAIRS = 2048
"""Pairs at a time: at the usual widths what they make takes half a megabyte."""


class Plan(NamedTuple):
    """How a pass is cut, and where in one array everything is that it makes: views of the numbers of :func:`planned`."""

    bounds: Ints
    """Requests and pairs before each range, and behind the last, ``[ranges + 1, 2]``."""
    met: Ints
    """Offsets of candidates and of entries that meet one of the other side, ``[2, R + 1]``."""
    layout: Ints
    """Start, rows and columns of each part of :class:`Work`, in its order, ``[parts, 3]``."""


class Work(NamedTuple):
    """What a pass makes."""

    q: Floats
    """Targets, ``[M, T]``."""
    k: Floats
    """Entries, ``[M, T]``."""
    query: Floats
    """:class:`learners.attention_kernels.Halves`, ``[M, W]``."""
    key: Floats
    weight: Floats
    """``[P, 1]``."""
    hidden: Floats
    """Before the activation, ``[P, W]``; ``[ranges * pairs at a time, W]`` where nothing is kept for the way back."""
    both: Floats
    """``[ranges * pairs at a time, T]``."""
    by_query: Floats
    """Gradients, as the rest: of what has the name, with what shape it has."""
    by_key: Floats
    of_q: Floats
    of_k: Floats
    of_interest: Floats
    """``[M, T]``."""
    pull: Floats
    """By the weight of a pair, ``[ranges * pairs at a time, 1]``."""
    sums: Floats
    """By the unit's weights, ``[ranges, n]``."""


PARTS, BACK = len(Work._fields), Work._fields.index("by_query")
"""Parts of it, and the first one that only the way back writes."""


@kernel
def lines(n: int) -> int:
    """Return ``n`` numbers in whole cache lines: the bits of a product depend on where its factors begin."""
    return -(-n // LINE) * LINE


@kernel
def plan_in(numbers: Ints, n_requests: int) -> Plan:
    """Return the plan in the numbers of :func:`planned`."""
    met = 2 + 2 * (numbers[0] + 1)
    layout = met + 2 * (n_requests + 1)
    return Plan(numbers[2:met].reshape(-1, 2), numbers[met:layout].reshape(2, -1), numbers[layout:].reshape(-1, 3))


@kernel
def _part(made: Floats, plan: Plan, at: int) -> Floats:
    start, rows, columns = plan.layout[at]
    return made[start : start + rows * columns].reshape(rows, columns)


@kernel
def work(made: Floats, plan: Plan) -> Work:
    """Return the parts of the array."""
    first = _part(made, plan, 0), _part(made, plan, 1), _part(made, plan, 2), _part(made, plan, 3), _part(made, plan, 4)
    second = _part(made, plan, 5), _part(made, plan, 6), _part(made, plan, 7), _part(made, plan, 8), _part(made, plan, 9)
    third = _part(made, plan, 10), _part(made, plan, 11), _part(made, plan, 12), _part(made, plan, 13)
    return Work(*first, *second, *third)


@kernel
def planned(
    targets: Offsets, entries: Offsets, dim: int, width: int, n_weights: int, parts: int, least: int, kept: int, learn: bool
) -> Ints:
    """Cut the requests into at most so many ranges of about as many pairs, and lay out what a pass makes.

    One array, as each one costs Python more than most loops over it: how many ranges there are, how many numbers a pass makes,
    then what :func:`plan_in` finds.

    Args:
        targets: of :class:`Given`.
        entries: likewise.
        dim: ``T``.
        width: ``W``.
        n_weights: length of :attr:`Given.weights`.
        parts: ranges, at most.
        least: pairs of a range, at least, unless they are fewer in all.
        kept: numbers of the hidden layers that are kept for the way back, at most: none of them where there are more.
        learn: whether there is a way back.
    """
    n = len(targets) - 1
    total, longest = 0, 0
    for r in range(n):
        n_pairs = (targets[r + 1] - targets[r]) * (entries[r + 1] - entries[r])
        total += n_pairs
        longest = max(longest, n_pairs)
    parts = max(1, min(parts, total // least))
    numbers = np.zeros(2 + 2 * (parts + 1) + 2 * (n + 1) + 3 * PARTS, np.int64)
    numbers[0] = parts
    bounds, met, layout = plan_in(numbers, n)
    part, before = 1, 0
    for r in range(n):
        now, past = targets[r + 1] - targets[r], entries[r + 1] - entries[r]
        met[0, r + 1] = met[0, r] + (now if past else 0)
        met[1, r + 1] = met[1, r] + (past if now else 0)
        before += now * past
        while part < parts and before * parts >= total * part:
            bounds[part, 0], bounds[part, 1] = r + 1, before
            part += 1
    bounds[parts, 0], bounds[parts, 1] = n, total
    at_once, m = parts * max(longest, min(total, PAIRS)), met[:, n]
    hidden = total if learn and total * width <= kept else at_once
    rows = m[0], m[1], m[0], m[1], total, hidden, at_once, m[0], m[1], m[0], m[1], m[0], at_once, parts
    columns = dim, dim, width, width, 1, width, dim, width, width, dim, dim, dim, 1, n_weights
    for at in range(PARTS):
        layout[at, 0], layout[at, 1], layout[at, 2] = numbers[1], rows[at] if at < BACK or learn else 0, columns[at]
        numbers[1] += lines(layout[at, 1] * layout[at, 2])
    return numbers
