"""Which rows give way: the lowest by one or more criteria, found by counting digits, without sorting or copying a column."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from negative_queues.kernels import kernel

Rows = npt.NDArray[np.int32]
Marks = npt.NDArray[np.uint8]
OUT, TIED, CHOSEN = np.uint8(0), np.uint8(1), np.uint8(2)
_SIGN = np.uint64(1 << 63)
_DIGIT = np.uint64(0xFFFF)


def lowest(criteria: list[npt.NDArray[Any]], eligible: npt.NDArray[np.bool_], k: int) -> Rows:
    """Return the ``k`` eligible rows that come first by the criteria, then by row; ascending by row.

    Args:
        criteria: columns of whole numbers ``[N]``, the one that decides first.
        eligible: ``[N]``.
        k: at most as many as are eligible.
    """
    marks: Marks = eligible.astype(np.uint8)
    for values in criteria:
        k = _narrow(values, marks, k)
    return _taken(marks, k)


@kernel
def _narrow(values: npt.NDArray[Any], marks: Marks, k: int) -> int:
    """Choose the tied rows below the ``k``-th lowest value, keep those equal to it tied, drop the rest; return how many of
    the tied are still to be chosen."""
    prefix, seen = np.uint64(0), np.uint64(0)
    for shift in (48, 32, 16, 0):
        by = np.uint64(shift)
        histogram = np.zeros(1 << 16, np.int64)
        for i in range(len(marks)):
            if marks[i] == TIED:
                bits = np.uint64(np.int64(values[i])) ^ _SIGN
                if (bits & seen) == prefix:
                    histogram[(bits >> by) & _DIGIT] += 1
        digit = 0
        while digit < (1 << 16) - 1 and histogram[digit] < k:
            k -= histogram[digit]
            digit += 1
        prefix |= np.uint64(digit) << by
        seen |= _DIGIT << by
    for i in range(len(marks)):
        if marks[i] == TIED:
            bits = np.uint64(np.int64(values[i])) ^ _SIGN
            if bits < prefix:
                marks[i] = CHOSEN
            elif bits > prefix:
                marks[i] = OUT
    return k


@kernel
def _taken(marks: Marks, k: int) -> Rows:
    n = k
    for mark in marks:
        n += mark == CHOSEN
    rows, at = np.empty(n, np.int32), 0
    for i in range(len(marks)):
        if marks[i] == CHOSEN or (marks[i] == TIED and k > 0):
            k -= marks[i] == TIED
            rows[at] = i
            at += 1
    return rows
