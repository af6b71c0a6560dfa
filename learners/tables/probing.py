"""Key -> row: open addressing with linear probing over NumPy arrays, compiled.

A key is a 64-bit id; 0 is the missing id and never enters. A slot is 32 bits: a row in its low bits, as many as number the
slots, and part of the key's hash, the tag, in those above; 0 is empty, since row 0 is the missing id's. A search reads the
keys of rows whose tag fits and hardly ever of others, so that it costs two reads of memory, a slot and a key, at any load.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from learners.tables.prefetch import AHEAD, prefetch
from negative_queues.draws import fold64, mix64, uniform_unit
from negative_queues.kernels import kernel

Keys = npt.NDArray[np.int64]
Rows = npt.NDArray[np.int32]
Slots = npt.NDArray[np.uint32]
Hashes = npt.NDArray[np.uint64]
Counts = npt.NDArray[np.uint32]
Codes = npt.NDArray[Any]
Flags = npt.NDArray[np.bool_]
EMPTY = np.uint32(0)


class View(NamedTuple):
    """What a look-up reads and writes of a table."""

    slots: Slots
    keys: Keys
    """Of each row, like the next ones."""
    counts: Counts
    first: Codes
    last: Codes
    changed: Flags
    weight: npt.NDArray[np.float32]
    """``[capacity, D]``."""


GROUP = 256
"""Keys that are looked up together: one pass over them per read, each asking for what the next one reads."""
_ONE, _HALF = np.uint64(1), np.uint64(32)


@kernel(inline="always")
def _tag(bits: np.uint64, mask: np.uint64) -> np.uint32:
    """Return the tag of a hash: the part of its upper half that a slot has room for, in place."""
    return np.uint32((bits >> _HALF) & ~mask)


@kernel(inline="always")
def _other(slot: np.uint32, bits: np.uint64, mask: np.uint64) -> bool:
    """Whether a slot is another key's for sure: taken, and its tag does not fit."""
    other: bool = slot != EMPTY and np.uint64(slot) & ~mask != np.uint64(_tag(bits, mask))
    return other


@kernel
def find(slots: Slots, row_keys: Keys, wanted: Keys, out: Rows) -> None:
    """Write the row of every wanted key to ``out``: 0 for the missing id, -1 for a key that has none."""
    mask = np.uint64(len(slots) - 1)
    bits, met = np.empty(GROUP, np.uint64), np.empty(GROUP, np.uint32)
    for start in range(0, len(wanted), GROUP):
        n = min(GROUP, len(wanted) - start)
        for i in range(n):
            bits[i] = mix64(np.uint64(wanted[start + i]))
            prefetch(slots, bits[i] & mask)
        for i in range(n):
            met[i] = _walked(slots, bits[i], mask)
            prefetch(row_keys, np.uint64(met[i]) & mask)
        for i in range(n):
            key, row = wanted[start + i], np.uint64(met[i]) & mask
            if row_keys[row] == key:
                out[start + i] = row
            else:
                out[start + i] = -1 if met[i] == EMPTY else find_one(slots, row_keys, key)


@kernel(inline="always")
def _walked(slots: Slots, bits: np.uint64, mask: np.uint64) -> np.uint32:
    """Return the first slot of a search that is empty or has the tag; mostly it lies beside where the search begins."""
    at = bits & mask
    while _other(slots[at], bits, mask):
        at = (at + _ONE) & mask
    slot: np.uint32 = slots[at]
    return slot


@kernel
def find_one(slots: Slots, row_keys: Keys, key: int) -> np.int64:
    """Return the row of a key: 0 for the missing id, -1 for a key that has none."""
    if key == 0:
        return np.int64(0)
    mask, bits = np.uint64(len(slots) - 1), mix64(np.uint64(key))
    at = bits & mask
    while slots[at] != EMPTY:
        if not _other(slots[at], bits, mask):
            row = np.uint64(slots[at]) & mask
            if row_keys[row] == key:
                return np.int64(row)
        at = (at + _ONE) & mask
    return np.int64(-1)


@kernel
def insert(slots: Slots, row_keys: Keys, keys: Keys, rows: Rows) -> None:
    """Put distinct keys that are not there yet at ``rows``, each above 0 and below the number of slots."""
    for i in range(len(keys)):
        _take(slots, keys[i], rows[i])
        row_keys[rows[i]] = keys[i]


@kernel
def admit(slots: Slots, row_keys: Keys, keys: Keys, rows: Rows, count: Counts, changed: Flags) -> None:
    """Do what :func:`insert` does; nothing is counted of the rows yet."""
    insert(slots, row_keys, keys, rows)
    for row in rows:
        count[row] = 0
        changed[row] = True


@kernel
def _take(slots: Slots, key: int, row: int) -> None:
    mask, bits = np.uint64(len(slots) - 1), mix64(np.uint64(key))
    at = bits & mask
    while slots[at] != EMPTY:
        at = (at + _ONE) & mask
    slots[at] = np.uint32(_tag(bits, mask) | np.uint32(row))


@kernel
def remove(slots: Slots, row_keys: Keys, key: int) -> None:
    """Take out a key that is there; the keys after it move up, so that no search ends early. Its row keeps the key."""
    mask = np.uint64(len(slots) - 1)
    at = mix64(np.uint64(key)) & mask
    while row_keys[np.uint64(slots[at]) & mask] != key:
        at = (at + _ONE) & mask
    hole = at
    while True:
        at = (at + _ONE) & mask
        if slots[at] == EMPTY:
            break
        home = mix64(np.uint64(row_keys[np.uint64(slots[at]) & mask])) & mask
        if ((at - home) & mask) >= ((at - hole) & mask):
            slots[hole] = slots[at]
            hole = at
    slots[hole] = EMPTY


@kernel
def rebuild(slots: Slots, row_keys: Keys, n_rows: int) -> None:
    """Fill ``slots`` afresh from the keys of rows 1 to ``n_rows`` - 1; free rows have key 0."""
    slots[:] = EMPTY
    for row in range(1, n_rows):
        if row_keys[row] != 0:
            _take(slots, row_keys[row], row)


@kernel
def dedupe(ids: Keys | Rows, scratch: Rows, unique: Keys | Rows, inverse: Keys, n: int) -> int:
    """Write the distinct ``ids``, keys or rows, in order of first appearance to ``unique``, the place of each to ``inverse``.

    ``scratch`` is a hash table of places in ``unique``: a power of two, longer than all of it; -1 is free. It is of the batch's
    size and not of the table's, so it stays in cache, and what a batch repeats is looked up in the table once. ``n`` entries
    are there already.

    Returns:
        the number of entries in ``unique``.
    """
    mask = np.uint64(len(scratch) - 1)
    for i in range(len(ids)):
        at = mix64(np.uint64(ids[i])) & mask
        while scratch[at] >= 0 and unique[scratch[at]] != ids[i]:
            at = (at + _ONE) & mask
        if scratch[at] < 0:
            scratch[at] = n
            unique[n] = ids[i]
            n += 1
        inverse[i] = scratch[at]
    return n


@kernel
def touch(rows: Rows, code: int, count: Counts, first: Codes, last: Codes, changed: Flags) -> None:
    """Count one use of each of the distinct ``rows`` at the event time that ``code`` stands for; -1 is passed over."""
    for i in range(len(rows)):
        if i + AHEAD < len(rows):
            prefetch(count, max(rows[i + AHEAD], 0))  # the other columns of a row lie beside it
        row = rows[i]
        if row >= 0:
            if count[row] == 0:
                first[row] = code
            count[row] += np.uint32(1)
            last[row] = code
            changed[row] = True


@kernel
def gather(weight: npt.NDArray[np.float32], rows: Rows, out: npt.NDArray[np.float32]) -> None:
    """Write the vectors of ``rows`` to ``out [U, D]``; for a row of -1 that of row 0."""
    for i in range(len(rows)):
        if i + AHEAD < len(rows):
            prefetch(weight, max(rows[i + AHEAD], 0))
        row = max(rows[i], 0)
        for d in range(weight.shape[1]):
            out[i, d] = weight[row, d]


@kernel
def look_up(
    view: View,
    wanted: Keys,
    rows: Rows,
    out: npt.NDArray[np.float32],
    learn: bool,
    code: int,
    n_rows: int,
    room: int,
    seed: int,
    scale: float,
) -> tuple[int, int]:
    """Do what :func:`find` and :func:`gather` do for distinct keys, and where all are known and to be learned, :func:`touch`;
    new ones are known too where there is ``room`` for them, in rows from ``n_rows`` on.

    Returns:
        how many keys are unknown, and how many have become known.
    """
    find(view.slots, view.keys, wanted, rows)
    unknown, admitted = 0, 0
    for i in range(len(rows)):
        unknown += rows[i] < 0
    if learn and 0 < unknown <= room:
        _admit_unknown(view, wanted, rows, n_rows, unknown, seed, scale)
        unknown, admitted = 0, unknown
    gather(view.weight, rows, out)
    if learn and unknown == 0:
        touch(rows, code, view.counts, view.first, view.last, view.changed)
    return unknown, admitted


@kernel
def _admit_unknown(view: View, wanted: Keys, rows: Rows, n_rows: int, unknown: int, seed: int, scale: float) -> None:
    """Give the keys whose row is -1 the rows from ``n_rows`` on, ascending by key, each with its initial vector."""
    new, at = np.empty(unknown, np.int64), 0
    for i in range(len(rows)):
        if rows[i] < 0:
            new[at] = wanted[i]
            at += 1
    new.sort()
    theirs = np.arange(n_rows, n_rows + unknown).astype(np.int32)
    admit(view.slots, view.keys, new, theirs, view.counts, view.changed)
    initial(new, seed, scale, view.weight[n_rows : n_rows + unknown])
    for i in range(len(rows)):
        if rows[i] < 0:
            rows[i] = n_rows + np.searchsorted(new, wanted[i])


@kernel
def seen(slots: Slots, row_keys: Keys, wanted: Keys, count: Counts, first: Codes, base: int, counts: Keys, times: Keys) -> None:
    """Write count and first time of the wanted keys to zeros; ``base`` stands for 0 in ``first``, whose own 0 is no time."""
    rows = np.empty(len(wanted), np.int32)
    find(slots, row_keys, wanted, rows)
    for i in range(len(rows)):
        if rows[i] > 0:
            counts[i] = count[rows[i]]
            times[i] = np.int64(first[rows[i]]) + base if first[rows[i]] != 0 else 0


@kernel
def initial(keys: Keys, seed: int, scale: float, out: npt.NDArray[np.float32]) -> None:
    """Write each key's initial vector, uniform in [-scale, scale): a function of (seed, key) alone, so the order of arrival
    does not matter and a key that was never learned can be scored without being admitted."""
    for i in range(len(keys)):
        base = fold64(np.uint64(seed), np.uint64(keys[i]))
        for d in range(out.shape[1]):
            out[i, d] = np.float32((2.0 * uniform_unit(base, d) - 1.0) * scale)
