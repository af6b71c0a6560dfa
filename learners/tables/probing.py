"""Key -> row: open addressing with linear probing over NumPy arrays, compiled.

A key is a 64-bit id; 0 is the missing id and never enters. ``slots`` holds rows, -1 where empty, and its length is a power of
two at most half full. The row of a slot's key is ``keys[row]``, so that the index needs four bytes a slot and growing copies
no keys.
"""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

from negative_queues.draws import fold64, mix64, uniform_unit

Keys = npt.NDArray[np.int64]
Rows = npt.NDArray[np.int32]
EMPTY = np.int32(-1)


@numba.njit(cache=True, nogil=True)
def find(slots: Rows, row_keys: Keys, wanted: Keys, out: Rows) -> None:
    """Write the row of every wanted key to ``out``: 0 for the missing id, -1 for a key that has none."""
    mask = np.uint64(len(slots) - 1)
    for i in range(len(wanted)):
        key = wanted[i]
        if key == 0:
            out[i] = 0
            continue
        at = mix64(np.uint64(key)) & mask
        while True:
            row = slots[at]
            if row < 0 or row_keys[row] == key:
                out[i] = row
                break
            at = (at + np.uint64(1)) & mask


@numba.njit(cache=True, nogil=True)
def insert(slots: Rows, row_keys: Keys, keys: Keys, rows: Rows) -> None:
    """Put distinct keys that are not there yet at ``rows``."""
    mask = np.uint64(len(slots) - 1)
    for i in range(len(keys)):
        at = mix64(np.uint64(keys[i])) & mask
        while slots[at] >= 0:
            at = (at + np.uint64(1)) & mask
        slots[at] = rows[i]
        row_keys[rows[i]] = keys[i]


@numba.njit(cache=True, nogil=True)
def rebuild(slots: Rows, row_keys: Keys, n_rows: int) -> None:
    """Fill ``slots`` afresh from the keys of rows 1 to ``n_rows`` - 1; free rows have key 0."""
    slots[:] = EMPTY
    mask = np.uint64(len(slots) - 1)
    for row in range(1, n_rows):
        key = row_keys[row]
        if key != 0:
            at = mix64(np.uint64(key)) & mask
            while slots[at] >= 0:
                at = (at + np.uint64(1)) & mask
            slots[at] = row


@numba.njit(cache=True, nogil=True)
def dedupe(rows: Rows, place: Rows, unique: Rows, inverse: Keys) -> int:
    """Write the distinct values of ``rows`` in order of first appearance to ``unique``, and each one's place to ``inverse``.

    ``place`` is scratch of one int32 per table row, all -1 before and after. Rows of -1 (unknown keys) are one entry each,
    since each stands for a key of its own.

    Returns:
        the number of entries in ``unique``.
    """
    n = 0
    for i in range(len(rows)):
        row = rows[i]
        if row < 0:
            unique[n] = row
            inverse[i] = n
            n += 1
        else:
            if place[row] < 0:
                place[row] = n
                unique[n] = row
                n += 1
            inverse[i] = place[row]
    for i in range(n):
        if unique[i] >= 0:
            place[unique[i]] = EMPTY
    return n


@numba.njit(cache=True, nogil=True)
def touch(rows: Rows, ts: int, count: Keys, first_ts: Keys, last_ts: Keys) -> None:
    """Count one use of each of the distinct ``rows`` at event time ``ts``; -1 is passed over."""
    for row in rows:
        if row >= 0:
            if count[row] == 0:
                first_ts[row] = ts
            count[row] += 1
            last_ts[row] = ts


@numba.njit(cache=True, nogil=True)
def initial(keys: Keys, seed: int, scale: float, out: npt.NDArray[np.float32]) -> None:
    """Write each key's initial vector, uniform in [-scale, scale): a function of (seed, key) alone, so the order of arrival
    does not matter and a key that was never learned can be scored without being admitted."""
    for i in range(len(keys)):
        base = fold64(np.uint64(seed), np.uint64(keys[i]))
        for d in range(out.shape[1]):
            out[i, d] = np.float32((2.0 * uniform_unit(base, d) - 1.0) * scale)


@numba.njit(cache=True, nogil=True)
def initialise(rows: Rows, row_keys: Keys, seed: int, scale: float, weight: npt.NDArray[np.float32]) -> None:
    """Write the :func:`initial` vector of each row's key to its row of ``weight``."""
    for i in range(len(rows)):
        initial(row_keys[rows[i] : rows[i] + 1], seed, scale, weight[rows[i] : rows[i] + 1])
