"""A set of int64 keys that forgets the oldest, in bounded memory."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from negative_queues.kernels import kernel

__all__ = ["Int64s", "Keys", "RecentKeys", "holds", "pair_key", "remember"]

Int64s = npt.NDArray[np.int64]
_FIRST_SLOTS: Final = 1 << 12


@kernel
def pair_key(first: int, second: int) -> Any:
    """Return one key for two: the finaliser of SplitMix64 after each, never 0."""
    key = np.uint64(second)
    for part in (np.uint64(0x9E3779B97F4A7C15), np.uint64(first)):
        key += part
        key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        key ^= key >> np.uint64(31)
    return np.int64(key) if key else np.int64(1)


@kernel
def _has_key(slots: Int64s, key: int) -> bool:
    """Whether a table (linear probing, a power of two of slots, 0 is empty) holds a key."""
    mask = len(slots) - 1
    at = key & mask
    while slots[at] != 0:
        if slots[at] == key:
            return True
        at = (at + 1) & mask
    return False


@kernel
def _add(slots: Int64s, key: int) -> bool:
    mask = len(slots) - 1
    at = key & mask
    while slots[at] != 0:
        if slots[at] == key:
            return False
        at = (at + 1) & mask
    slots[at] = key
    return True


@kernel
def _moved(slots: Int64s, n_slots: int) -> Int64s:
    wider = np.zeros(n_slots, np.int64)
    for key in slots:
        if key != 0:
            _add(wider, key)
    return wider


@kernel
def _emptied(slots: Int64s, n_slots: int) -> Int64s:
    """Return an empty table of so many slots: the given one where it has them, so that memory stays where it is."""
    if len(slots) != n_slots:
        return np.zeros(n_slots, np.int64)
    slots[:] = 0
    return slots


class Keys(NamedTuple):
    """What :class:`RecentKeys` holds, as kernels take it."""

    new: Int64s
    old: Int64s
    n_new: int
    capacity: int


@kernel
def holds(keys: Keys, key: int) -> bool:
    """Whether a key is remembered."""
    return _has_key(keys.new, key) or _has_key(keys.old, key)


@kernel
def remember(keys: Keys, key: int) -> Keys:
    """Return the keys with one more: the same arrays, unless they are full."""
    if not _add(keys.new, key):
        return keys
    n_new = keys.n_new + 1
    if n_new >= keys.capacity:
        return Keys(_emptied(keys.old, len(keys.new)), keys.new, 0, keys.capacity)
    if 2 * n_new > len(keys.new):
        return Keys(_moved(keys.new, 2 * len(keys.new)), keys.old, n_new, keys.capacity)
    return Keys(keys.new, keys.old, n_new, keys.capacity)


class RecentKeys:
    """The newest keys: at least ``capacity`` different ones, at most twice as many.

    Two tables: keys enter the new one; once it holds ``capacity`` keys, it becomes the old one, and what that held is gone. A
    table takes 16 to 32 bytes for each key of ``capacity`` (8 bytes a slot, a power of two of slots, at most half of them in
    use).

    Args:
        capacity: keys that are remembered for certain.
        expected: different keys that may come. The tables have their last size at once, for as many keys or for ``capacity``,
            and memory does not grow from then on. None: unknown, they double as keys come.
    """

    def __init__(self, capacity: int, expected: int | None = None) -> None:
        n_new = n_old = _FIRST_SLOTS
        while expected is not None and n_new < 2 * min(capacity, expected):
            n_new *= 2
        if expected is not None and expected >= capacity:
            n_old = n_new
        # full() writes, zeros() does not: the system gives a page when it is first written, for the old table half-way.
        self.keys = Keys(np.full(n_new, 0, np.int64), np.full(n_old, 0, np.int64), 0, capacity)

    @property
    def nbytes(self) -> int:
        """Bytes of the tables."""
        return int(self.keys.new.nbytes + self.keys.old.nbytes)

    def add(self, key: int) -> None:
        """Remember a key that is well mixed and not 0."""
        self.keys = remember(self.keys, key)

    def __contains__(self, key: int) -> bool:
        return bool(holds(self.keys, key))
