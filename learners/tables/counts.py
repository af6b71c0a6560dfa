"""CountTable: a few float64 statistics per 64-bit id, for models that count rather than descend a gradient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from learners.tables.distinct import Distinct, distinct
from learners.tables.index import Keys, RowIndex, Rows, State
from learners.tables.storage import lengthened

Values = npt.NDArray[np.float64]


class CountTable:
    """Sums per key, growing and bounded like :class:`learners.tables.EmbeddingTable`.

    Args:
        name: for messages.
        width: statistics per key.
        max_rows: bound on memory.
    """

    def __init__(self, name: str, width: int, max_rows: int = 10_000_000) -> None:
        self.index = RowIndex(name, max_rows)
        self._values: Values = np.zeros((self.index.capacity, width))

    def read(self, keys: Keys) -> Values:
        """Return the sums of every key, ``[N, width]``; 0 for keys that were never added to."""
        return self.read_last(keys)[0]

    def read_last(self, keys: Keys) -> tuple[Values, Keys]:
        """Return :meth:`read`, and the event time (ms) at which every key was last added to, int64 ``[N]``; 0 for unknown
        keys."""
        rows, times = self.index.find(keys), self.index.times
        values, last = np.zeros((len(keys), self._values.shape[1])), np.zeros(len(keys), np.int64)
        _read(rows, self._values, times.last, times.base, values, last)
        return values, last

    def admit(self, asked: Distinct) -> Rows:
        """Return the row of each distinct key, int32 ``[U]``, for :meth:`last_of` and :meth:`add_to`; new ones begin with 0."""
        uses = asked.all_places() if self.index.admission.counts_uses else None
        rows, new = self.index.find_or_admit(asked.keys, uses)
        if self.index.capacity > len(self._values):
            self._values = lengthened(self._values, self.index.n, self.index.capacity)
        self._values[new] = 0.0
        return rows

    def last_of(self, rows: Rows) -> Keys:
        """Return the event time (ms) at which rows were last added to, int64 ``[U]``; of new ones it says nothing."""
        return self.index.times.last_of(rows.clip(min=0))

    def add(self, keys: Keys, amounts: Values, ts: int) -> None:
        """Add ``amounts [N, width]`` to the sums of ``keys [N]``, which may repeat; missing ids (0) are passed over."""
        asked = distinct(keys)
        self.add_to(self.admit(asked), asked, amounts, ts)

    def add_to(self, rows: Rows, asked: Distinct, amounts: Values, ts: int, keep: Values | None = None) -> None:
        """Add to the sums of keys that were admitted.

        Args:
            rows: of the distinct keys, ``[U]``.
            asked: the keys, ``[N]`` over all uses.
            amounts: what to add, ``[N, width]``.
            ts: event time in ms.
            keep: factor per row ``[U]`` on what was there before; all of it by default.
        """
        _add(self._values, rows, asked.all_places(), amounts, np.zeros(0) if keep is None else keep)
        self.index.touch(rows[rows > 0], ts)

    def state(self) -> State:
        """Return everything that must survive."""
        return {**self.index.state(), "values": self._values[: self.index.n]}

    def load_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Become the table that returned ``state``."""
        self.index.load_state(state)
        self._values = np.zeros((self.index.capacity, self._values.shape[1]))
        self._values[: self.index.n] = state["values"]

    def describe(self) -> dict[str, Any]:
        """Return rows, evictions and bytes."""
        return {
            "rows": len(self.index),
            "evicted": self.index.evicted_total,
            "bytes": self.index.nbytes + self.index.n * self._values.shape[1] * 8,
        }


@numba.njit(cache=True, nogil=True)
def _read(rows: Rows, table: Values, codes: npt.NDArray[Any], base: int, values: Values, last: Keys) -> None:
    """Write sums and last times of rows to zeros; ``base`` stands for 0 in ``codes``, whose own 0 is no time."""
    for i in range(len(rows)):
        if rows[i] > 0:
            last[i] = np.int64(codes[rows[i]]) + base if codes[rows[i]] != 0 else 0
            for w in range(table.shape[1]):
                values[i, w] = table[rows[i], w]


@numba.njit(cache=True, nogil=True)
def _add(table: Values, unique: Rows, inverse: Keys, amounts: Values, keep: Values) -> None:
    """Keep a share of each row, if ``keep`` is not empty, then add the amounts in their order."""
    if len(keep):
        for u in range(len(unique)):
            if unique[u] > 0:
                for w in range(table.shape[1]):
                    table[unique[u], w] *= keep[u]
    for i in range(len(inverse)):
        row = unique[inverse[i]]
        if row > 0:
            for w in range(table.shape[1]):
                table[row, w] += amounts[i, w]
