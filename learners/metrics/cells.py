"""Which slice an impression is in: one cell per dimension (item cold or known, position 3, hour 14, a feature's value).

A dimension cuts the stream into disjoint cells. Those of the standard dimensions are fixed; a dimension of ids (domain, a
feature) gets a cell for each of the first :data:`VALUES` that it meets, and one for all others. Of a float feature the first
:data:`VALUES` values are *landmarks*: each later value belongs to the nearest one. They are a sample of the stream's beginning,
so they lie densely where the values do, and neighbouring cells can be added up to bins of about equal size
(:func:`stream_app.report.slices.slices_json` does). Cells are numbered over all dimensions, so that whoever adds figures up per
cell (:class:`learners.metrics.Breakdown`) knows of no dimension.

Shapes: ``R`` requests, ``C`` candidates, ``Dr`` dimensions of requests, ``Dc`` of candidates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from learners.metrics.rows import MetricError
from learners.metrics.seen import SeenCounts
from learners.samples import SampleBlock, SampleSchema
from negative_queues.kernels import kernel

COLD_ITEM = 100
"""An item is cold before it was shown so often, in this stream."""
COLD_USER = 5
"""A user is cold with fewer entries in all item sequences of the request."""
VALUES = 64
"""Values of a feature that get a cell of their own."""
ITEM_BITS, QUERY_BITS = 20, 18
OTHER, MISSING = "other", "missing"
POSITIONS = (*map(str, range(10)), "10 to 19", "20 on")
FREQUENCIES = ("new", "1 to 9 before", "10 to 99 before", "100 or more")
STANDARD = {
    "item": ("cold", "known"),
    "user": ("cold", "known"),
    "position": POSITIONS,
    "hour": tuple(f"{hour:02}" for hour in range(24)),
    "query": FREQUENCIES,
}
"""Fixed cells of the standard dimensions; ``domain`` is one of values."""
DOMAIN = "domain"

Cells = npt.NDArray[np.int16]
State = dict[str, npt.NDArray[Any]]

__all__ = ["COLD_ITEM", "COLD_USER", "STANDARD", "VALUES", "Cell", "CellIds", "SliceCells", "SliceOptions"]


class SliceOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Which dimensions there are."""

    standard: bool = True
    """Item cold or known, user cold or known, position, domain, hour of the day (UTC), how often the query came by."""
    features: tuple[str, ...] = ()
    """Request or candidate features, by value."""


class Cell(NamedTuple):
    """A slice."""

    dimension: str
    value: str
    """As people read it; of an id, its hash in hexadecimal digits."""
    landmark: float | None = None
    """Of a float feature: the value itself."""


class CellIds(NamedTuple):
    """The cells of a block, -1 where a dimension does not know."""

    requests: Cells
    """int16 ``[Dr, R]``."""
    candidates: Cells
    """int16 ``[Dc, C]``."""

    def kept(self, rows: npt.NDArray[np.bool_] | None, offsets: npt.NDArray[np.int64]) -> CellIds:
        """Return those of the given candidates, bool ``[C]``, and of the requests that have one; None keeps all."""
        if rows is None:
            return self
        before = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(rows, out=before[1:])
        some = np.diff(before[offsets]) > 0
        return CellIds(self.requests[:, some], self.candidates[:, rows])


class _Values:
    """The cells of one dimension of values."""

    def __init__(self, column: str | None, kind: type, other: int) -> None:
        self.column, self.kind, self.other = column, kind, other
        self.keys = np.zeros(VALUES, np.int64)
        self.cells = np.zeros(VALUES, np.int16)
        self.n = 0

    def cell(self, dimension: str, key: int) -> Cell:
        """Return the slice of a value."""
        if self.kind is not float:
            return Cell(dimension, MISSING if key == 0 else f"{key & 0xFFFFFFFFFFFFFFFF:016x}")
        value = float(np.int32(key).view(np.float32))
        return Cell(dimension, f"{value:g}", value)

    def add(self, key: int, cell: int) -> None:
        """Give a value a cell."""
        self.keys[self.n], self.cells[self.n] = key, cell
        self.n += 1

    def nearest(self, keys: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Return the cells of the landmarks next to some floats, the lower one of two; NaN is missing, which is ``other``."""
        landmarks = _floats(self.keys[: self.n])
        order = np.argsort(landmarks)
        floats = _floats(keys)
        bounds = (landmarks[order][1:] + landmarks[order][:-1]) / 2
        cells = self.cells[order[np.searchsorted(bounds, floats, side="left")]]
        return np.where(np.isnan(floats), np.int16(self.other), cells)


class SliceCells:
    """Tells the cells of blocks, in the order in which they are scored.

    What it has counted (items and queries so far, values met) is part of a run's state: 2.6 MB with the standard dimensions.

    Args:
        schema: of the samples.
        options: which dimensions.

    Raises:
        MetricError: the samples have no feature of a name.
    """

    def __init__(self, schema: SampleSchema, options: SliceOptions | None = None) -> None:
        self.options = options or SliceOptions()
        self.cells: list[Cell] = []
        """By number; grows as values are met."""
        self._sequences = [f"{name}.item" for name in schema.item_sequences]
        self._first: dict[str, int] = {}
        self._values: dict[str, _Values] = {}
        self._of_request: set[str] = set()
        self._items = SeenCounts(ITEM_BITS if self.options.standard else 0)
        self._queries = SeenCounts(QUERY_BITS if self.options.standard and schema.has_query else 0)
        if self.options.standard:
            self._add_standard(schema)
        for name in dict.fromkeys(self.options.features):
            self._add_feature(name, schema)
        self._n_fixed = len(self.cells)

    def _add_standard(self, schema: SampleSchema) -> None:
        for dimension, values in STANDARD.items():
            if dimension == "query" and not schema.has_query:
                continue
            self._first[dimension] = len(self.cells)
            self.cells += [Cell(dimension, value) for value in values]
        self._add_values(DOMAIN, None, int)

    def _add_feature(self, name: str, schema: SampleSchema) -> None:
        kinds = {
            "request_feature": (schema.request_floats, schema.request_ids),
            "candidate_feature": (schema.candidate_floats, schema.candidate_ids),
        }
        for where, (floats, ids) in kinds.items():
            if name in (*floats, *ids):
                dimension = f"feature {name}" if name in self._first or name in self._values else name
                self._add_values(dimension, f"{where}.{name}", float if name in floats else int)
                if where == "request_feature":
                    self._of_request.add(dimension)
                return
        known = [name for groups in kinds.values() for group in groups for name in group]
        raise MetricError(
            f"slice by {name!r}: the samples have no feature of that name; they have {', '.join(known) or 'none'} "
            "(item, user, position, domain, hour and query are always there)"
        )

    def _add_values(self, dimension: str, column: str | None, kind: type) -> None:
        self._values[dimension] = _Values(column, kind, len(self.cells))
        self.cells.append(Cell(dimension, MISSING if kind is float else OTHER))

    def assign(self, block: SampleBlock, cuts: Sequence[int] = ()) -> CellIds:
        """Return the cells of a block, and count it.

        Args:
            block: some requests.
            cuts: where it may be cut, by request: the cells are those of the parts, one after the other.
        """
        requests: list[npt.NDArray[Any]] = []
        candidates: list[npt.NDArray[Any]] = []
        if self.options.standard:
            items = block.ragged("candidate.item")
            before = self._items.count(items.values, items.offsets)
            candidates.append(self._first["item"] + (before >= COLD_ITEM))
            candidates.append(_position_cells(block.ragged("candidate.position").values, self._first["position"]))
            length = np.sum([block.ragged(name).lengths for name in self._sequences], axis=0, dtype=np.int64)
            requests.append(np.broadcast_to(self._first["user"] + (length >= COLD_USER), len(block)))
            requests.append(self._first["hour"] + block.column("ts") // 3_600_000 % 24)
            if "query" in self._first:
                requests.append(self._query_cells(block.column("query")))
        for dimension, cells in self._value_cells(block, cuts).items():
            (requests if dimension in self._of_request else candidates).append(cells)
        return CellIds(_stacked(requests, len(block)), _stacked(candidates, block.n_candidates))

    def _query_cells(self, query: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        before = self._queries.count(query, np.arange(len(query) + 1))
        level = (before >= 1).astype(np.int16) + (before >= 10) + (before >= 100)
        return np.where(query != 0, self._first["query"] + level, -1)

    def _value_cells(self, block: SampleBlock, cuts: Sequence[int]) -> dict[str, npt.NDArray[Any]]:
        """Return the cells of each dimension of values; a new value of any gets its cell in the order of the parts."""
        of_candidates = block.ragged("candidate.item").offsets[list(cuts)]
        keys = {
            dimension: np.split(_keys(block, values), list(cuts) if dimension in self._of_request else of_candidates)
            for dimension, values in self._values.items()
        }
        cells: dict[str, list[npt.NDArray[Any]]] = {dimension: [] for dimension in keys}
        for part in range(len(cuts) + 1):
            for dimension, values in self._values.items():
                cells[dimension].append(self._cells_of(dimension, values, keys[dimension][part]))
        return {dimension: np.concatenate(parts) for dimension, parts in cells.items()}

    def _cells_of(self, dimension: str, values: _Values, keys: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        if values.kind is float:
            return self._float_cells(dimension, values, keys)
        cells = np.empty(len(keys), np.int16)
        at = 0
        while (at := _look_up(keys, values.keys, values.cells, values.n, values.other, at, cells)) < len(keys):
            self._meet(dimension, values, int(keys[at]))
        return cells

    def _float_cells(self, dimension: str, values: _Values, keys: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        if values.n < VALUES:
            there = np.flatnonzero(~np.isnan(_floats(keys)))
            _, first = np.unique(keys[there], return_index=True)
            known = set(values.keys[: values.n].tolist())
            for key in keys[there[np.sort(first)]].tolist():
                if key not in known and values.n < VALUES:
                    self._meet(dimension, values, key)
        return values.nearest(keys) if values.n else np.full(len(keys), values.other, np.int16)

    def _meet(self, dimension: str, values: _Values, key: int) -> None:
        """Give a value that has none a cell."""
        values.add(key, len(self.cells))
        self.cells.append(values.cell(dimension, key))

    def merge(self, other: SliceCells) -> Cells:
        """Add what ``other`` counted and met; return the cell here of each of its cells, int16 ``[len(other.cells)]``.

        A landmark of ``other`` that finds no place here goes to the nearest one, and all that it stood for with it.

        Raises:
            MetricError: the two have other dimensions.
        """
        if other.cells[: other._n_fixed] != self.cells[: self._n_fixed]:
            raise MetricError("slices of other dimensions cannot be merged: give both runs the same --slice")
        self._items.merge(other._items)
        self._queries.merge(other._queries)
        mapping = np.arange(len(other.cells), dtype=np.int16)
        for dimension, values in other._values.items():
            keys = values.keys[: values.n]
            mapping[values.cells[: values.n]] = self._cells_of(dimension, self._values[dimension], keys)
        return mapping

    def state(self) -> State:
        """Return everything that must survive, as named arrays (views; copy before the next :meth:`assign`)."""
        numbers = {name: number for number, name in enumerate(self._values)}
        met = np.zeros((len(self.cells) - self._n_fixed, 2), np.int64)
        for name, values in self._values.items():
            met[values.cells[: values.n] - self._n_fixed, 0] = numbers[name]
            met[values.cells[: values.n] - self._n_fixed, 1] = values.keys[: values.n]
        return {"items": self._items.counters, "queries": self._queries.counters, "met": met}

    def load_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Become the cells that returned ``state``; they must be new and of the same schema and options.

        Raises:
            MetricError: it does not fit.
        """
        mine = self.state()
        shapes = {name: array.shape for name, array in state.items() if name != "met"}
        if set(state) != set(mine) or shapes != {name: mine[name].shape for name in shapes}:
            raise MetricError("the state of the slices does not fit: it was saved with other dimensions; give the same --slice")
        self._items.counters[:], self._queries.counters[:] = state["items"], state["queries"]
        names = list(self._values)
        for number, key in state["met"].tolist():
            self._meet(names[number], self._values[names[number]], key)


def _keys(block: SampleBlock, values: _Values) -> npt.NDArray[np.int64]:
    """Return a column's values as int64: ids, or the bits of floats."""
    if values.column is None:
        of_candidates, of_request = block.ragged("candidate.domain"), block.column(DOMAIN)
        return np.where(of_candidates.values != 0, of_candidates.values, np.repeat(of_request, of_candidates.lengths))
    column = block.ragged(values.column).values if block.is_ragged(values.column) else block.column(values.column)
    if values.kind is not float:
        return np.array(column, np.int64)
    floats = np.array(column, np.float32) + np.float32(0.0)  # -0 is 0
    floats[np.isnan(floats)] = np.float32(np.nan)  # one NaN of the many
    return floats.view(np.int32).astype(np.int64)


def _floats(keys: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return floats by their bits; infinite ones as the largest, so that midpoints are numbers."""
    most = float(np.finfo(np.float32).max)
    return np.clip(keys.astype(np.int32).view(np.float32).astype(np.float64), -most, most)


def _position_cells(positions: npt.NDArray[np.int32], first: int) -> npt.NDArray[Any]:
    level = np.where(positions < 10, positions, 10 + (positions >= 20))
    return np.where(positions >= 0, first + level, -1)


def _stacked(rows: list[npt.NDArray[Any]], width: int) -> Cells:
    return np.array(rows, np.int16) if rows else np.zeros((0, width), np.int16)


@kernel
def _look_up(
    keys: npt.NDArray[np.int64],
    known: npt.NDArray[np.int64],
    cells: Cells,
    n: int,
    other: int,
    start: int,
    out: Cells,
) -> int:
    """Fill ``out`` from ``start`` on; return where a new value stands that may have a cell of its own, else ``len(keys)``."""
    last = -1
    for i in range(start, len(keys)):
        if last < 0 or known[last] != keys[i]:
            last = -1
            for at in range(n):
                if known[at] == keys[i]:
                    last = at
                    break
            if last < 0 and n < len(known):
                return i
        out[i] = cells[last] if last >= 0 else other
    return len(keys)
