"""RowIndex: which row of a table belongs to a key; grows by itself, evicts when full.

Row 0 is the missing id (key 0). Rows are dense: new keys take freed rows first, then the next new one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from learners.tables import probing
from learners.tables.admission import Admission, AdmitAll
from learners.tables.event_times import EventTimes
from learners.tables.eviction import lowest
from learners.tables.storage import capacity_for, lengthened, power_of_two, zeros

Keys = npt.NDArray[np.int64]
Rows = npt.NDArray[np.int32]
State = dict[str, npt.NDArray[Any]]
NO_ROWS: Rows = np.zeros(0, np.int32)
FIRST_ROWS = 1024
ROW = np.dtype([("key", "i8"), ("count", "u4"), ("first", "u4"), ("last", "u4")], align=True)
"""What the index keeps of a row, 24 bytes side by side: a search reads the key, and what is counted lies in the same line."""
EVICTED_SHARE = 8


class RowIndex:
    """Key -> row, with a count and two ages per row.

    Args:
        name: for messages.
        max_rows: bound, row 0 included. When full, an eighth of the rows gives way, never those of the batch at hand: those not
            seen for longest (in event time), or with ``rarest`` those counted least, then not seen for longest.
        rarest: see there.
        admission: who gets a row; every key without one.
    """

    def __init__(self, name: str, max_rows: int, *, rarest: bool = False, admission: Admission | None = None) -> None:
        if max_rows < 2:
            raise ValueError(f"table {name!r}: max_rows = {max_rows} must be at least 2")
        self.name = name
        self.max_rows = max_rows
        self.rarest = rarest
        self.admission = admission or AdmitAll()
        self.evicted_total = 0
        self.last_evicted: Keys = np.zeros(0, np.int64)
        """Keys that the latest eviction removed; whoever keeps a copy of a row drops it."""
        self.on_evict: list[Callable[[Keys], None]] = []
        """Called with the keys of every eviction."""
        self._allocate(1)

    def _allocate(self, rows: int) -> None:
        capacity = capacity_for(max(rows, FIRST_ROWS), self.max_rows)
        self.n = 1
        self.free: Rows = np.zeros(0, np.int32)
        self._name_columns(zeros((capacity,), ROW))
        self.changed = _one_flag(capacity)
        """Rows that are no longer as they were at the last mark, a byte each, side by side; before the first mark all write to
        the same byte, which costs a step nothing. See :mod:`learners.tables.changes`."""
        self.times = EventTimes(self._rows["first"], self._rows["last"])
        self.slots: probing.Slots = np.zeros(_slots_for(max(rows, min(FIRST_ROWS, self.max_rows))), np.uint32)

    def _name_columns(self, rows: npt.NDArray[Any]) -> None:
        self._rows = rows
        self.keys: Keys = rows["key"]
        self.count: npt.NDArray[np.uint32] = rows["count"]

    @property
    def _notes_changes(self) -> bool:
        return self.changed.strides[0] > 0

    def note_changes(self) -> None:
        """Begin to note which rows change: none has yet."""
        if self._notes_changes:
            self.changed[: self.n] = False
        else:
            self.changed = zeros((self.capacity,), np.bool_)

    def __len__(self) -> int:
        """Return how many keys have a row."""
        return self.n - 1 - len(self.free)

    @property
    def capacity(self) -> int:
        """Rows that are allocated or reserved; owners keep their arrays at this length."""
        return len(self.keys)

    @property
    def last_ts(self) -> Keys:
        """When each row was last seen, ms, ``[n]``; a copy, all rows long."""
        return self.times.last_of(slice(0, self.n))

    @property
    def load(self) -> float:
        """Share of the slots that is taken."""
        return len(self) / len(self.slots)

    def find(self, keys: Keys) -> Rows:
        """Return the row of every key, int32 ``[N]``: 0 for the missing id, -1 where there is none."""
        rows = np.empty(len(keys), np.int32)
        probing.find(self.slots, self.keys, keys, rows)
        return rows

    def find_or_admit(self, keys: Keys, uses: Keys | None = None) -> tuple[Rows, Rows]:
        """Return the row of every key ``[N]``, -1 where it was not admitted, and the rows that are new, to be initialised
        (:attr:`capacity` may have grown).

        Args:
            keys: may repeat.
            uses: place in ``keys`` of each use in the batch, where ``keys`` are its distinct ones; uses count for admission.

        Raises:
            ValueError: ``max_rows`` is too small for one batch.
        """
        rows = self.find(keys)
        new = self.admit_unknown(keys, rows, uses)
        return (self.find(keys) if len(new) else rows), new

    def admit_unknown(self, keys: Keys, rows: Rows, uses: Keys | None = None) -> Rows:
        """Give those keys a row that were not found, -1 in ``rows``, and are admitted; return the new rows."""
        unknown = rows < 0
        if uses is None or not self.admission.counts_uses:
            wanted = keys[unknown]
        else:
            wanted = keys[uses[unknown[uses]]]
        admitted = self.admission.admit(wanted) if len(wanted) else wanted
        return self._admit(admitted, protected=rows) if len(admitted) else NO_ROWS

    def view(self, weight: npt.NDArray[np.float32]) -> probing.View:
        """Return what a compiled look-up takes, with the vectors of the rows, ``[capacity, D]``."""
        times = self.times
        return probing.View(self.slots, self.keys, self.count, times.first, times.last, self.changed, weight)

    def look_up(
        self,
        keys: Keys,
        weight: npt.NDArray[np.float32],
        rows: Rows,
        out: npt.NDArray[np.float32],
        ts: int | None,
        first: tuple[int, float],
    ) -> tuple[int, int]:
        """Write the rows of distinct keys to ``rows [U]`` and what ``weight [capacity, D]`` has of them to ``out [U, D]``;
        with an event time, admit those that nothing stands against, and :meth:`touch` all of them if all are known.

        Args:
            keys: int64 ``[U]``.
            weight: see there; of new rows it gets the initial vectors.
            rows: written.
            out: written.
            ts: event time in ms, None for scoring.
            first: seed and scale of initial vectors.

        Returns:
            how many are unknown, and how many rows are new, the last of all.
        """
        learn = ts is not None
        code, room = (self.times.code(ts), min(self._free_room(), len(weight) - self.n)) if ts is not None else (0, 0)
        unknown, admitted = probing.look_up(self.view(weight), keys, rows, out, learn, code, self.n, room, *first)
        self.n += int(admitted)  # with the compiler off kernels return NumPy's integers
        return int(unknown), int(admitted)

    def _free_room(self) -> int:
        """Return how many keys get the next rows without a question: nothing grows, gives way, is reused or decides."""
        if len(self.free) or not self.admission.admits_all:
            return 0
        return min(self.capacity, self.max_rows, 5 * len(self.slots) // 8) - self.n

    def seen(self, keys: Keys) -> tuple[Keys, Keys]:
        """Return how often keys were counted, and when first (ms), int64 ``[N]`` each; 0 for unknown keys."""
        counts, first = np.zeros(len(keys), np.int64), np.zeros(len(keys), np.int64)
        probing.seen(self.slots, self.keys, keys, self.count, self.times.first, self.times.base, counts, first)
        return counts, first

    def touch(self, rows: Rows, ts: int) -> None:
        """Count one use of every one of the distinct ``rows`` at event time ``ts`` (ms)."""
        code, times = self.times.code(ts), self.times
        probing.touch(rows, code, self.count, times.first, times.last, self.changed)

    def _admit(self, keys: Keys, protected: Rows) -> Rows:
        room = self.max_rows - self.n + len(self.free)
        if len(keys) > room:
            self._make_room(len(keys) - room, protected[protected > 0])
        n_new = max(0, len(keys) - len(self.free))
        self._grow(self.n + n_new)
        rows = np.arange(self.n, self.n + n_new, dtype=np.int32)
        if len(self.free):
            rows, self.free = np.concatenate([self.free[: len(keys)], rows]), self.free[len(keys) :]
        self.n += n_new
        probing.admit(self.slots, self.keys, keys, rows, self.count, self.changed)
        return rows

    def _grow(self, needed: int) -> None:
        if needed > self.capacity:
            capacity, used = capacity_for(needed, self.max_rows), self.n
            self._name_columns(lengthened(self._rows, used, capacity))
            self.changed = lengthened(self.changed, used, capacity) if self._notes_changes else _one_flag(capacity)
            self.times.move(used, self._rows["first"], self._rows["last"])
        if len(self.slots) < (n_slots := _slots_for(needed)):
            self.slots = np.zeros(0, np.uint32)  # given back first, since the new ones are made from the keys alone
            self.slots = np.zeros(n_slots, np.uint32)
            probing.rebuild(self.slots, self.keys, self.n)

    def _make_room(self, least: int, protected: Rows) -> None:
        held = self.keys[: self.n] != 0
        held[protected] = False
        if (n_held := int(held.sum())) < least:
            raise ValueError(
                f"table {self.name!r}: max_rows = {self.max_rows} is smaller than one batch needs; "
                "raise max_rows or learn smaller batches"
            )
        criteria = [self.count[: self.n]] if self.rarest else []
        criteria.append(self.times.last[: self.n])
        self._evict(lowest(criteria, held, min(n_held, max(least, self.max_rows // EVICTED_SHARE))))

    def expire(self, before_ts: int, protected: Rows) -> None:
        """Remove all keys that were last seen before ``before_ts`` (ms), but for the rows that are ``protected``."""
        old = (self.keys[: self.n] != 0) & (self.last_ts < before_ts)
        old[protected] = False
        gone = np.flatnonzero(old).astype(np.int32)
        if len(gone):
            self._evict(gone)

    def _evict(self, gone: Rows) -> None:
        self.last_evicted = self.keys[gone]
        self.evicted_total += len(gone)
        self.keys[gone] = 0
        self.changed[gone] = True
        self.free = np.concatenate([self.free, gone])
        probing.rebuild(self.slots, self.keys, self.n)
        for report in self.on_evict:
            report(self.last_evicted)

    def state(self) -> State:
        """Return keys, counts and ages, row for row, and what is no row's.

        They are views, ages as the rows hold them: learning waits for the copy of a checkpoint, and to make arrays of a
        gigabyte's ages first took longer than to copy all of it.
        """
        n, times = self.n, self.times
        return {
            "key": self.keys[:n],
            "count": self.count[:n],
            "first": times.first[:n],
            "last": times.last[:n],
            **self.state_of_no_row(),
        }

    def state_of_no_row(self) -> State:
        """Return what of :meth:`state` is no row's."""
        return {
            "ts_base": self.times.state_of_base,
            "free": self.free,
            "evicted_total": np.array(self.evicted_total, np.int64),
            **self.admission.state(),
        }

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """Return what :meth:`state` has of rows as they lie, ``[capacity]``: a structured array, and what is not in it."""
        times = self.times
        return {"row": self._rows, **({"first": times.first, "last": times.last} if times.wide else {})}

    def load_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Become the index that returned ``state``; the layout of the slots may differ, which nothing can see.

        Raises:
            ValueError: it holds more than ``max_rows``, or another sketch; nothing has changed then.
        """
        n = len(state["key"])
        self._check_rows(n)
        self.admission.load_state(state)  # which may refuse, and then nothing has changed
        self._allocate(n)
        self.put(slice(0, n), n, state)

    def put(self, rows: slice | Rows, n: int, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take the ``rows`` of a state of ``n`` rows, and all of it that is no row's.

        Raises:
            ValueError: ``n`` is more than ``max_rows``, or the times are another table's; nothing has changed then.
        """
        self._check_rows(n)
        self._grow(n)
        self.times.put_codes(rows, state["first"], state["last"], state["ts_base"])
        self.admission.load_state(state)
        self.n = n
        self.keys[rows], self.count[rows] = state["key"], state["count"]
        self.free = np.array(state["free"], np.int32)
        self.evicted_total = int(state["evicted_total"])
        probing.rebuild(self.slots, self.keys, n)

    def _check_rows(self, n: int) -> None:
        if n > self.max_rows:
            raise ValueError(
                f"table {self.name!r}: the checkpoint has {n} rows, the config max_rows = {self.max_rows}; "
                "resume with the config that the run was started with"
            )

    @property
    def bytes_per_row(self) -> int:
        """Bytes of a row in use, without its share of the slots."""
        return ROW.itemsize + self.changed.strides[0] + 2 * self.times.wide * self.times.first.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes in use: reserved rows that were never written to take no memory."""
        return self.n * self.bytes_per_row + self.slots.nbytes


def _one_flag(rows: int) -> npt.NDArray[np.bool_]:
    """Return flags ``[rows]`` that are one and the same byte."""
    return np.lib.stride_tricks.as_strided(np.zeros(1, np.bool_), (rows,), (0,))


def _slots_for(rows: int) -> int:
    """Return the number of slots of which ``rows`` fill at most five eighths."""
    return power_of_two(-(-8 * rows // 5))
