"""CountTable: a few float64 statistics per 64-bit id, for models that count rather than descend a gradient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from learners.tables.index import Keys, RowIndex, State, grown

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
        rows = self.index.find(keys)
        return np.where((rows > 0)[:, None], self._values[rows.clip(min=0)], 0.0)

    def last_ts(self, keys: Keys) -> Keys:
        """Return the event time (ms) at which every key was last added to, int64 ``[N]``; 0 for unknown keys."""
        rows = self.index.find(keys)
        return np.where(rows > 0, self.index.last_ts[rows.clip(min=0)], 0)

    def add(self, keys: Keys, amounts: Values, ts: int, *, keep: Values | None = None) -> None:
        """Add ``amounts [N, width]`` to the sums of ``keys [N]``, which may repeat.

        Args:
            keys: missing ids (0) are passed over.
            amounts: what to add.
            ts: event time in ms.
            keep: factor per key ``[N]`` on what was there before (equal for equal keys); all of it by default.
        """
        rows, new = self.index.find_or_admit(keys)
        if self.index.capacity > len(self._values):
            self._values = grown(self._values, self.index.capacity)
        self._values[new] = 0.0
        known = rows > 0
        rows = rows[known]
        if keep is not None:
            unique, first = np.unique(rows, return_index=True)
            self._values[unique] *= keep[known][first][:, None]
        np.add.at(self._values, rows, amounts[known])
        self.index.touch(np.unique(rows), ts)

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
            "bytes": self.index.nbytes + self._values.nbytes,
        }
