"""CountTable: a few float64 statistics per 64-bit id, for models that count rather than descend a gradient."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from learners.tables.distinct import Distinct, distinct
from learners.tables.index import Keys, RowIndex, Rows, State
from learners.tables.storage import lengthened
from negative_queues.kernels import kernel

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
        values = np.zeros((len(keys), self._values.shape[1]))
        _read(self.index.find(keys), self._values, values)
        return values

    def lately(self, asked: Distinct, ts: Keys, half_life_ms: float) -> Values:
        """Return the sums of every key of the first use, each halved for every half-life since it was last added to.

        Args:
            asked: keys, ``[N]``.
            ts: as of when, ms, ``[N]``.
            half_life_ms: in event time.
        """
        rows, times = self.index.find(asked.keys), self.index.times
        sums = np.empty((len(ts), self._values.shape[1]))
        _lately(rows, asked.places[0].numpy(), self._values, times.last, times.base, ts, half_life_ms, sums)
        return sums

    def add(self, keys: Keys, amounts: Values, ts: int) -> None:
        """Add ``amounts [N, width]`` to the sums of ``keys [N]``, which may repeat; missing ids (0) are passed over."""
        self.add_asked(distinct(keys), amounts, ts)

    def add_asked(self, asked: Distinct, amounts: Values, ts: int, half_life_ms: float = math.inf) -> None:
        """Do what :meth:`add` does with keys that were deduped before; what was there is halved for every half-life first."""
        rows = self._admitted(asked)
        times = self.index.times
        _add(self._values, rows, asked.all_places(), amounts, times.last, times.base, ts, half_life_ms)
        self.index.touch(rows[rows > 0], ts)

    def _admitted(self, asked: Distinct) -> Rows:
        """Return the row of each distinct key, int32 ``[U]``; new ones begin with 0."""
        uses = asked.all_places() if self.index.admission.counts_uses else None
        rows, new = self.index.find_or_admit(asked.keys, uses)
        if self.index.capacity > len(self._values):
            self._values = lengthened(self._values, self.index.n, self.index.capacity)
        self._values[new] = 0.0
        return rows

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


@kernel
def _read(rows: Rows, table: Values, values: Values) -> None:
    """Write the sums of rows to zeros."""
    for i in range(len(rows)):
        if rows[i] > 0:
            for w in range(table.shape[1]):
                values[i, w] = table[rows[i], w]


@kernel(inline="always")
def _kept(code: Any, base: int, ts: int, half_life_ms: float) -> Any:
    """Return which share is left; ``base`` stands for 0 in codes, whose own 0 is no time."""
    last = np.int64(code) + base if code != 0 else np.int64(0)
    elapsed = ts - last
    return np.exp2(-(elapsed if elapsed > 0 else 0) / half_life_ms)


@kernel
def _lately(
    rows: Rows,
    places: Keys,
    table: Values,
    codes: npt.NDArray[Any],
    base: int,
    ts: Keys,
    half_life_ms: float,
    sums: Values,
) -> None:
    for i in range(len(places)):
        row = rows[places[i]]
        if row <= 0:
            sums[i] = 0.0
            continue
        kept = _kept(codes[row], base, ts[i], half_life_ms)
        for w in range(table.shape[1]):
            sums[i, w] = table[row, w] * kept


@kernel
def _add(
    table: Values,
    unique: Rows,
    inverse: Keys,
    amounts: Values,
    codes: npt.NDArray[Any],
    base: int,
    ts: int,
    half_life_ms: float,
) -> None:
    """Keep a share of each row, then add the amounts in their order."""
    if half_life_ms < np.inf:
        for u in range(len(unique)):
            if unique[u] > 0:
                kept = _kept(codes[unique[u]], base, ts, half_life_ms)
                for w in range(table.shape[1]):
                    table[unique[u], w] *= kept
    for i in range(len(inverse)):
        row = unique[inverse[i]]
        if row > 0:
            for w in range(table.shape[1]):
                table[row, w] += amounts[i, w]
