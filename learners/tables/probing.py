"""Key -> row: open addressing with linear probing over NumPy arrays, compiled.

A key is a 64-bit id; 0 is the missing id and never enters. ``slots`` holds rows, -1 where empty, and its X
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from negative_queues.draws import fold64, mix64, uniform_unit

Keys = npt.NDArray[np.int64]
Rows = npt.NDArray[np.int32]
Counts = npt.NDArray[np.uint32]
Codes = npt.NDArray[Any]
Flags = npt.NDArray[np.bool_]
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
def remove(slots: Rows, row_keys: Keys, key: int) -> None:
    """Take out a key that is there; the keys after it move up, so that no search ends early. Its row keeps the key."""
    mask = np.uint64(len(slots) - 1)
    at = mix64(np.uint64(key)) & mask
    while row_keys[slots[at]] != key:
        at = (at + np.uint64(1)) & mask
    hole = at
    while True:
        at = (at + np.uint64(1)) & mask
        row = slots[at]
        if row < 0:
            break
        home = mix64(np.uint64(row_keys[row])) & mask
        if ((at - home) & mask) >= ((at - hole) & mask):
            slots[hole] = row
            hole = at
    slots[hole] = EMPTY


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
def dedupe(rows: Rows, scratch: Rows, unique: Rows, inverse: Keys) -> int:
    """Write the distinct values of ``rows`` in order of first appearance to ``unique``, and each one's place to ``inverse``.

    ``scratch`` is a hash table of places in ``unique``: all -1, a power of two, longer than ``rows``. It is of the batch's
    size and not of the table's, so it stays in cache. Rows of -1 (unknown keys) are one entry each, since each stands for a key
    of its own.

    Returns:
        the number of entries in ``unique``.
    """
    n = 0
    mask = np.uint64(len(scratch) - 1)
    for i in range(len(rows)):
        row = rows[i]
        place = -1
        if row >= 0:
            at = mix64(np.uint64(row)) & mask
            while scratch[at] >= 0 and unique[scratch[at]] != row:
                at = (at + np.uint64(1)) & mask
            place = scratch[at]
            if place < 0:
                scratch[at] = n
        if place < 0:
            place = n
            unique[n] = row
            n += 1
        inverse[i] = place
    return n


@numba.njit(cache=True, nogil=True)
def touch(rows: Rows, code: int, count: Counts, first: Codes, last: Codes, changed: Flags) -> None:
    """Count one use of each of the distinct ``rows`` at the event time that ``code`` stands for; -1 is passed over."""
    for row in rows:
        if row >= 0:
            if count[row] == 0:
                first[row] = code
            count[row] += np.uint32(1)
            last[row] = code
            changed[row] = True


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
