"""A set of int64 keys that forgets the oldest, in bounded memory."""

from __future__ import annotations

from typing import Any, Final

import numba
import numpy as np
import numpy.typing as npt

__all__ = ["Int64s", "RecentKeys", "has_key", "pair_key"]

Int64s = npt.NDArray[np.int64]
_FIRST_SLOTS: Final = 1 << 12


@numba.njit(cache=True, nogil=True)
def pair_key(first: int, second: int) -> Any:
    """Return one key for two: the finaliser of SplitMix64 after each, never 0."""
    key = np.uint64(second)
    for part in (np.uint64(0x9E3779B97F4A7C15), np.uint64(first)):
        key += part
        key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        key ^= key >> np.uint64(31)
    return np.int64(key) if key else np.int64(1)


@numba.njit(cache=True, nogil=True)
def has_key(slots: Int64s, key: int) -> bool:
    """Whether a table (linear probing, a power of two of slots, 0 is empty) holds a key."""
    mask = len(slots) - 1
    at = key & mask
    while slots[at] != 0:
        if slots[at] == key:
            return True
        at = (at + 1) & mask
    return False


@numba.njit(cache=True, nogil=True)
def _add(slots: Int64s, key: int) -> bool:
    mask = len(slots) - 1
    at = key & mask
    while slots[at] != 0:
        if slots[at] == key:
            return False
        at = (at + 1) & mask
    slots[at] = key
    return True


@numba.njit(cache=True, nogil=True)
def _moved(slots: Int64s, n_slots: int) -> Int64s:
    wider = np.zeros(n_slots, np.int64)
    for key in slots:
        if key != 0:
            _add(wider, key)
    return wider


class RecentKeys:
    """The newest keys: at least ``capacity`` different ones, at most twice as many.

    Two tables: keys enter the new one; once it holds ``capacity`` keys, it becomes the old one, and what that held is gone.
    Memory is at most 64 bytes per key of ``capacity``, and grows with the keys up to there.

    Args:
        capacity: keys that are remembered for certain.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.new = np.zeros(_FIRST_SLOTS, np.int64)
        self.old = np.zeros(_FIRST_SLOTS, np.int64)
        self._n_new = 0

    def add(self, key: int) -> None:
        """Remember a key that is well mixed and not 0."""
        if not _add(self.new, key):
            return
        self._n_new += 1
        if self._n_new >= self.capacity:
            self.old, self.new, self._n_new = self.new, np.zeros(_FIRST_SLOTS, np.int64), 0
        elif 2 * self._n_new > len(self.new):
            self.new = _moved(self.new, 2 * len(self.new))

    def __contains__(self, key: int) -> bool:
        return bool(has_key(self.new, key) or has_key(self.old, key))
