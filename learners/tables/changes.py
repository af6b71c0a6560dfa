"""Which rows have changed since a mark: what an incremental checkpoint has to write.

A delta is the state of the rows that were touched, all that is no row's, and ``rows``: which they are, int32 ``[U]``, or where
they are many a bit for each of the ``n`` rows, uint8. A delta without ``rows`` is a whole state: where nearly all rows were
touched, to copy everything is cheaper.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from learners.tables.copying import LISTED, Bytes, copy, pick, rows_of
from learners.tables.index import RowIndex, Rows, State
from learners.tables.storage import LINE

WHOLE_FROM = 0.6
"""From this share of the rows on a delta is a whole state."""


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
        self._index.note_changes()
        self._number, self._n = self._number + 1, self._index.n
        return self._number

    def forget(self) -> None:
        """Make the mark no longer count: the table has become another."""
        self._number, self._n = self._number + 1, 0

    def touched(self, since: int) -> Bytes:
        """Return 1 for each row that has changed since the mark ``since``, else 0, uint8 ``[n]``; a view.

        Raises:
            ValueError: it is not the latest.
        """
        if since != self._number or self._n == 0:
            raise ValueError(
                f"table {self._name!r}: mark {since} is not the latest one; write a whole state() and set a mark() after it"
            )
        return self._index.changed[: self._index.n].view(np.uint8)

    def header(self) -> State:
        """Return how many rows there were and are."""
        return {"n_before": np.array(self._n, np.int64), "n": np.array(self._index.n, np.int64)}

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
        if rows.dtype == np.uint8:
            bits = np.unpackbits(delta["rows"], count=int(delta["n"]), bitorder="little")
            rows = np.flatnonzero(bits).astype(np.int32)
        return rows


class Delta:
    """What has changed of a table, where the table has it, for :class:`learners.checkpoint.background.StateCopy` to copy.

    Args:
        touched: 1 for each row that has changed, else 0, uint8 ``[n]``.
        n_touched: how many these are, ``U``.
        columns: what a row has, ``[>= n, ..]``; of a structured one each field is an array of the delta.
        rest: what is no row's, or was picked already.
    """

    def __init__(self, touched: Bytes, n_touched: int, columns: Mapping[str, npt.NDArray[Any]], rest: State) -> None:
        self._touched, self._n, self._columns, self._rest = touched, n_touched, columns, rest
        self._listed = n_touched <= LISTED * len(touched)
        size_of_rows = 4 * n_touched if self._listed else -(-len(touched) // 8)
        sizes = [size_of_rows, *(n_touched * column[:1].nbytes for column in columns.values())]
        self.size = sum(map(_in_lines, [*sizes, *(array.nbytes for array in rest.values())]))
        """Bytes of the copy."""

    def copied_to(self, memory: Bytes) -> State:
        """Return the delta as arrays in ``memory``, which begins at a cache line and has :attr:`size` bytes or more."""
        state: State = {}
        room = _Room(memory)
        rows: Rows | None = None
        if self._listed:
            state["rows"] = rows = room.take(4 * self._n).view(np.int32)
            rows_of(self._touched, rows)
        else:
            bits = np.packbits(self._touched, bitorder="little")
            state["rows"] = room.take(len(bits))
            state["rows"][:] = bits
        for name, column in self._columns.items():
            out = room.take(self._n * column[:1].nbytes)
            pick(column, self._touched, rows, out)
            picked = out.view(column.dtype).reshape(self._n, *column.shape[1:])
            state.update({field: picked[field] for field in column.dtype.names} if column.dtype.names else {name: picked})
        for name, array in self._rest.items():
            out = room.take(array.nbytes)
            copy(np.ascontiguousarray(array), out)
            state[name] = out.view(array.dtype).reshape(array.shape)
        return state


class _Room:
    """Memory that is taken piece by piece, each from a cache line on."""

    def __init__(self, memory: Bytes) -> None:
        self._left = memory

    def take(self, size: int) -> Bytes:
        piece, self._left = self._left[:size], self._left[_in_lines(size) :]
        return piece


def _in_lines(size: int) -> int:
    """Return ``size`` in whole cache lines."""
    return -(-size // LINE) * LINE
