"""RowIndex: which row of a table belongs to a key; grows by itself, evicts when full.

Row 0 is the missing id (key 0). Rows are dense: new keys take freed rows first, then the next new one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from learners.tables import probing

Keys = npt.NDArray[np.int64]
Rows = npt.NDArray[np.int32]
State = dict[str, npt.NDArray[Any]]
FIRST_ROWS = 1024
EVICTED_SHARE = 8


class RowIndex:
    """Key -> row, with a count and two ages per row.

    Args:
        name: for messages.
        max_rows: bound, row 0 included. When full, the eighth of the rows that was not seen for longest (in event time) gives
            way, never those of the batch at hand.
    """

    def __init__(self, name: str, max_rows: int) -> None:
        if max_rows < 2:
            raise ValueError(f"table {name!r}: max_rows = {max_rows} must be at least 2")
        self.name = name
        self.max_rows = max_rows
        self.evicted_total = 0
        self.last_evicted: Keys = np.zeros(0, np.int64)
        """Keys that the latest eviction removed; whoever keeps a copy of a row drops it."""
        self._allocate(min(FIRST_ROWS, max_rows))

    def _allocate(self, capacity: int) -> None:
        self.n = 1
        self.free: Rows = np.zeros(0, np.int32)
        self.keys: Keys = np.zeros(capacity, np.int64)
        self.count: Keys = np.zeros(capacity, np.int64)
        self.first_ts: Keys = np.zeros(capacity, np.int64)
        self.last_ts: Keys = np.zeros(capacity, np.int64)
        self._place: Rows = np.full(capacity, probing.EMPTY)
        self._slots: Rows = np.full(power_of_two(2 * capacity), probing.EMPTY)

    def __len__(self) -> int:
        """Return how many keys have a row."""
        return self.n - 1 - len(self.free)

    @property
    def capacity(self) -> int:
        """Rows that are allocated; owners keep their arrays at this length."""
        return len(self.keys)

    def find(self, keys: Keys) -> Rows:
        """Return the row of every key, int32 ``[N]``: 0 for the missing id, -1 where there is none."""
        rows = np.empty(len(keys), np.int32)
        probing.find(self._slots, self.keys, keys, rows)
        return rows

    def find_or_admit(self, keys: Keys) -> tuple[Rows, Rows]:
        """Return the row of every key ``[N]``, and the rows that are new, to be initialised (:attr:`capacity` may have grown).

        Raises:
            ValueError: ``max_rows`` is too small for one batch.
        """
        rows = self.find(keys)
        if not len(rows) or rows.min() >= 0:
            return rows, np.zeros(0, np.int32)
        new = self._admit(np.unique(keys[rows < 0]), protected=rows[rows > 0])
        return self.find(keys), new

    def dedupe(self, rows: Rows) -> tuple[Rows, Keys]:
        """Return the distinct rows in order of appearance ``[U]``, and each row's place among them ``[N]``.

        Rows of -1 stand for a key each and are not merged.
        """
        unique, inverse = np.empty(len(rows), np.int32), np.empty(len(rows), np.int64)
        n = probing.dedupe(rows, self._place, unique, inverse)
        return unique[:n], inverse

    def touch(self, rows: Rows, ts: int) -> None:
        """Count one use of every one of the distinct ``rows`` at event time ``ts`` (ms)."""
        probing.touch(rows, ts, self.count, self.first_ts, self.last_ts)

    def _admit(self, keys: Keys, protected: Rows) -> Rows:
        room = self.max_rows - self.n + len(self.free)
        if len(keys) > room:
            self._evict(len(keys) - room, protected)
        n_new = max(0, len(keys) - len(self.free))
        if self.n + n_new > self.capacity:
            self._grow(self.n + n_new)
        rows = np.concatenate([self.free[: len(keys)], np.arange(self.n, self.n + n_new, dtype=np.int32)])
        self.free = self.free[len(keys) :]
        self.n += n_new
        probing.insert(self._slots, self.keys, keys, rows)
        self.count[rows] = 0
        return rows

    def _grow(self, needed: int) -> None:
        capacity = min(max(2 * self.capacity, power_of_two(needed)), self.max_rows)
        for name in ("keys", "count", "first_ts", "last_ts"):
            setattr(self, name, grown(getattr(self, name), capacity))
        self._place = np.full(capacity, probing.EMPTY)
        self._slots = np.full(power_of_two(2 * capacity), probing.EMPTY)
        probing.rebuild(self._slots, self.keys, self.n)

    def _evict(self, least: int, protected: Rows) -> None:
        held = np.setdiff1d(np.flatnonzero(self.keys[: self.n]), protected)
        if len(held) < least:
            raise ValueError(
                f"table {self.name!r}: max_rows = {self.max_rows} is smaller than one batch needs; "
                "raise max_rows or learn smaller batches"
            )
        oldest = held[np.argsort(self.last_ts[held], kind="stable")]
        gone = np.sort(oldest[: max(least, self.max_rows // EVICTED_SHARE)]).astype(np.int32)
        self.last_evicted = self.keys[gone]
        self.evicted_total += len(gone)
        self.keys[gone] = 0
        self.free = np.concatenate([self.free, gone])
        probing.rebuild(self._slots, self.keys, self.n)

    def state(self) -> State:
        """Return keys, counts and ages, row for row."""
        n = self.n
        return {
            "key": self.keys[:n],
            "count": self.count[:n],
            "first_ts": self.first_ts[:n],
            "last_ts": self.last_ts[:n],
            "free": self.free,
            "evicted_total": np.array(self.evicted_total, np.int64),
        }

    def load_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Become the index that returned ``state``; the layout of the slots may differ, which nothing can see.

        Raises:
            ValueError: it holds more than ``max_rows``.
        """
        n = len(state["key"])
        if n > self.max_rows:
            raise ValueError(
                f"table {self.name!r}: the checkpoint has {n} rows, the config max_rows = {self.max_rows}; "
                "resume with the config that the run was started with"
            )
        self._allocate(min(max(power_of_two(n), FIRST_ROWS), self.max_rows))
        self.n = n
        self.keys[:n], self.count[:n] = state["key"], state["count"]
        self.first_ts[:n], self.last_ts[:n] = state["first_ts"], state["last_ts"]
        self.free = np.array(state["free"], np.int32)
        self.evicted_total = int(state["evicted_total"])
        probing.rebuild(self._slots, self.keys, n)

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        arrays = (self.keys, self.count, self.first_ts, self.last_ts, self._place, self._slots)
        return sum(array.nbytes for array in arrays)


def grown(array: npt.NDArray[Any], capacity: int) -> npt.NDArray[Any]:
    """Return ``array`` with its first axis lengthened to ``capacity``, zeros at the end."""
    longer = np.zeros((capacity, *array.shape[1:]), array.dtype)
    longer[: len(array)] = array
    return longer


def power_of_two(n: int) -> int:
    """Return the smallest power of two that is at least ``n`` and 16."""
    return 1 << max(4, (n - 1).bit_length())
