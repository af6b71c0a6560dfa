"""Which rows have changed since a mark: what an incremental checkpoint has to write."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from learners.tables.index import RowIndex, Rows, State


class Mark:
    """The latest mark of a table: one byte a row, so that only the latest can be asked for.

    Args:
        name: for messages.
        index: notes the rows that change.
    """

    def __init__(self, name: str, index: RowIndex) -> None:
        self._name, self._index = name, index
        self._number, self._n = 0, 0

    def set(self) -> int:
        """Set a mark and return its number."""
        self._index.changed[: self._index.n] = False
        self._number, self._n = self._number + 1, self._index.n
        return self._number

    def forget(self) -> None:
        """Make the mark no longer count: the table has become another."""
        self._number, self._n = self._number + 1, 0

    def rows(self, since: int) -> Rows:
        """Return the rows that have changed since the mark ``since``, ascending, int32.

        Raises:
            ValueError: it is not the latest.
        """
        if since != self._number or self._n == 0:
            raise ValueError(
                f"table {self._name!r}: mark {since} is not the latest one; write a whole state() and set a mark() after it"
            )
        return np.flatnonzero(self._index.changed[: self._index.n]).astype(np.int32)

    def header(self, rows: Rows) -> State:
        """Return what a delta says of itself: its rows, and how many there were and are."""
        return {"rows": rows, "n_before": np.array(self._n, np.int64), "n": np.array(self._index.n, np.int64)}

    def checked(self, delta: Mapping[str, npt.NDArray[Any]]) -> Rows:
        """Return the rows of a delta that is to be applied.

        Raises:
            ValueError: it was not taken from what this table is.
        """
        if (n := int(delta["n_before"])) != self._index.n:
            raise ValueError(
                f"table {self._name!r}: the delta starts from {n} rows, this table has {self._index.n}; "
                "load the state that it was taken from, and apply deltas in their order"
            )
        rows: Rows = delta["rows"]
        return rows
