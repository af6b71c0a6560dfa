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
        """Return :meth:`read` and :meth:`last_ts` with one look-up."""
        rows = self.index.find(keys)
        values = np.zeros((len(keys), self._values.shape[1]))
        _read(rows, self._values, values)
        return values, np.where(rows > 0, self.index.times.last_of(rows.clip(min=0)), 0)

    def last_ts(self, keys: Keys) -> Keys:
        """Return the event time (ms) at which every key was last added to, int64 ``[N]``; 0 for unknown keys."""
        return self.read_last(keys)[1]

    def add(self, keys: Keys | Distinct, amounts: Values, ts: int, *, keep: Values | None = None) -> None:
        """Add ``amounts [N, width]`` to the sums of ``keys [N]``, which may repeat.

        Args:
            keys: missing ids (0) are passed over; deduped already, or not.
            amounts: what to add.
            ts: event time in ms.
            keep: factor per key ``[N]`` on what was there before (equal for equal keys); all of it by default.
        """
        asked = keys if isinstance(keys, Distinct) else distinct(keys)
        inverse = asked.all_places()
        unique, new = self.index.find_or_admit(asked.keys, inverse)
        if self.index.capacity > len(self._values):
            self._values = lengthened(self._values, self.index.n, self.index.capacity)
        self._values[new] = 0.0
        factors = np.zeros(0) if keep is None else keep
        _add(self._values, unique, inverse, amounts, factors)
        self.index.touch(unique[unique > 0], ts)

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
def _read(rows: Rows, table: Values, values: Values) -> None:
    for i in range(len(rows)):
        if rows[i] > 0:
            for w in range(table.shape[1]):
                values[i, w] = table[rows[i], w]


@numba.njit(cache=True, nogil=True)
def _add(table: Values, unique: Rows, inverse: Keys, amounts: Values, keep: Values) -> None:
    """Keep a share of each row at its first entry, if ``keep`` is not empty, then add the amounts in their order."""
    met = 0
    for i in range(len(inverse)):
        row = unique[inverse[i]]
        if inverse[i] == met:  # places count up in the order of first appearance
            met += 1
            if row > 0 and len(keep):
                for w in range(table.shape[1]):
                    table[row, w] *= keep[i]
        if row > 0:
            for w in range(table.shape[1]):
                table[row, w] += amounts[i, w]
