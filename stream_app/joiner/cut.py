"""Histories of a block cut point in time by one kernel: the newest entries older than each row's request."""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


@numba.njit(cache=True, nogil=True)
def cut(
    entries: Ints, sizes: Ints, ts: Ints, last_ts: Ints, length: int, offsets: Ints, fresh: npt.NDArray[np.int32]
) -> tuple[Ints, Ints]:
    """Cut the histories of ``R`` rows.

    Args:
        entries: ``[N, width]``, row after row, each in the order of the ``ts`` in its last column.
        sizes: ``[R]``, entries per row.
        ts: ``[R]``; kept are the newest entries older than this.
        last_ts: ``[R]``; kept entries from here on are fresh, -1 for all.
        length: entries of a row that are kept, at most.
        offsets: ``[R + 1]`` is filled: where each row's kept entries begin.
        fresh: ``[R]`` is filled: how many of them are fresh.

    Returns:
        The first and the last column of the kept entries ``[2, H]`` (id and ``ts``), and those between ``[H, width - 2]``.
    """
    n_rows, width = len(sizes), entries.shape[1]
    first = np.empty(n_rows, np.int64)
    start = 0
    offsets[0] = 0
    for row in range(n_rows):
        end = start + sizes[row]
        stop = end
        while stop > start and entries[stop - 1, width - 1] >= ts[row]:
            stop -= 1
        first[row] = max(start, stop - length)
        offsets[row + 1] = offsets[row] + stop - first[row]
        new = stop
        while new > first[row] and entries[new - 1, width - 1] >= last_ts[row]:
            new -= 1
        fresh[row] = stop - new
        start = end
    ends = np.empty((2, offsets[n_rows]), np.int64)
    middle = np.empty((offsets[n_rows], width - 2), np.int64)
    for row in range(n_rows):
        for at in range(offsets[row], offsets[row + 1]):
            entry = first[row] + at - offsets[row]
            ends[0, at] = entries[entry, 0]
            for column in range(width - 2):
                middle[at, column] = entries[entry, 1 + column]
            ends[1, at] = entries[entry, width - 1]
    return ends, middle
