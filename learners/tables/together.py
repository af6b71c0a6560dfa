"""Several tables of one width looked up into one matrix: one leaf of autograd, one compiled look-up and one step for all.

Legend: ``T`` tables, ``N`` entries of each one's use, ``U`` distinct keys over all of them, ``D`` dim.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from numba.typed import List

from learners.device import compiled
from learners.tables.distinct import NO_SLOTS, Distinct, Keys, Rows
from learners.tables.probing import View, dedupe, look_up
from learners.tables.storage import power_of_two
from learners.tables.table import EmbeddingTable
from learners.tables.update import rowwise_adagrad
from learners.tape import Tape, recording
from negative_queues.kernels import kernel

__all__ = ["Asked", "Together", "asked_together"]

Floats = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]


class Asked(NamedTuple):
    """What is asked of some tables: a function of the batch alone."""

    keys: Keys
    """The distinct ones of each table, one table after another, ``[U]``."""
    bounds: Keys
    """Where the keys of each table begin, and where they end, ``[T + 1]``."""
    own: Keys
    """Place of each entry among the keys of its table, ``[T, N]``."""
    places: Keys
    """Place of each entry and table among all keys, ``[N * T]``."""

    def of(self, table: int) -> Distinct:
        """Return what is asked of one table."""
        keys = self.keys[self.bounds[table] : self.bounds[table + 1]]
        return Distinct(keys, [torch.from_numpy(self.own[table])], len(keys), NO_SLOTS)


def asked_together(columns: Sequence[Keys]) -> Asked:
    """Dedupe the keys of some tables, equally many, ``[N]`` each."""
    n, n_tables = len(columns[0]), len(columns)
    keys = np.empty((n_tables, n), np.int64)
    for at, column in enumerate(columns):
        keys[at] = column
    unique, bounds = np.empty(n * n_tables, np.int64), np.zeros(n_tables + 1, np.int64)
    own, places = np.empty((n_tables, n), np.int64), np.empty((n, n_tables), np.int64)
    n_keys = _dedupe_each(keys, power_of_two(2 * n + 1), unique, own, places, bounds)
    return Asked(unique[:n_keys], bounds, own, places.reshape(-1))


@kernel
def _dedupe_each(keys: Keys, n_slots: int, unique: Keys, own: Keys, places: Keys, bounds: Keys) -> int:
    slots = np.empty(n_slots, np.int32)
    for table in range(len(keys)):
        slots[:] = -1
        start = bounds[table]
        bounds[table + 1] = start + dedupe(keys[table], slots, unique[start:], own[table], 0)
        for i in range(keys.shape[1]):
            places[i, table] = start + own[table, i]
    return int(bounds[-1])


class Together:
    """Tables of one width that are looked up together and learn together.

    On the CPU all of it is one compiled call each, but for tables that meet a new key or whose options ask for more than that.

    Args:
        tables: of one dim and device; the step is theirs (:meth:`apply_gradients`), not each one's own.
    """

    def __init__(self, tables: Sequence[EmbeddingTable]) -> None:
        self.tables = list(tables)
        first = tables[0]
        self._device, self._dim = first.device, first.config.dim
        plain = all(table.config.expire_after_ms is None and table.shard.of == 1 for table in tables)
        one_step = all(table.config == first.config for table in tables) and first.config.optimiser == "adagrad"
        self._compiled = compiled(self._device) and plain and one_step
        self._held = _Held()
        self._pending: tuple[torch.Tensor, Rows, Keys] | None = None
        for table in self.tables:
            table.on_load.append(self._forget)

    def _forget(self) -> None:
        """Let go of what was looked up: a table has become another."""
        self._pending, self._held = None, _Held()

    def look_up(self, asked: Asked, *, learn: bool = False, ts: int = 0) -> torch.Tensor:
        """Return the vectors of the keys asked for, ``[U, D]``; arguments as of :meth:`EmbeddingTable.look_up`."""
        weight, rows = torch.empty(len(asked.keys), self._dim, device=self._device), np.empty(len(asked.keys), np.int32)
        for at in self._unknown(asked, rows, weight, learn, ts):
            start, end = asked.bounds[at : at + 2].tolist()
            rows[start:end] = self.tables[at].look_up_into(weight, start, asked.of(at), learn=learn, ts=ts)
        if learn:
            tape = recording()
            if tape is None:
                weight.requires_grad_()
                self._pending = weight, rows, asked.bounds
            else:
                tape.then(partial(self._back, tape, weight, rows, asked.bounds), weight)
        return weight

    def _unknown(self, asked: Asked, rows: Rows, weight: torch.Tensor, learn: bool, ts: int) -> Sequence[int]:
        """Look up what is known in one call; return the tables where that is not all, of which nothing has been counted."""
        held = self._current()
        if held is None or not held.earliest < ts < held.latest:
            return range(len(self.tables))
        unknown = np.empty(len(self.tables), np.bool_)
        _look_up_each(held.views, held.bases, asked.keys, asked.bounds, rows, weight.numpy(), unknown, learn, ts)
        return np.flatnonzero(unknown).tolist() if unknown.any() else ()

    def apply_gradients(self) -> None:
        """Take one step of each table's optimiser on the rows of the last learning :meth:`look_up`."""
        if self._pending is None:
            raise RuntimeError("apply_gradients needs a look_up(learn=True) before it")
        (leaf, rows, bounds), self._pending = self._pending, None
        if leaf.grad is not None:
            self._step(leaf.grad.contiguous(), rows, bounds)

    def _back(self, tape: Tape, leaf: torch.Tensor, rows: Rows, bounds: Keys) -> None:
        """Do what :meth:`apply_gradients` does, at the end of a tape."""
        grad = tape.take(leaf)
        if grad is not None:
            self._step(torch.from_numpy(grad), rows, bounds)

    def _step(self, of_leaf: torch.Tensor, rows: Rows, bounds: Keys) -> None:
        held, config = self._current(), self.tables[0].config
        if held is not None:
            grad = of_leaf.numpy()
            _step_each(held.views, held.accumulated, bounds, rows, grad, config.rate, config.eps, config.keep)
            return
        ends = bounds.tolist()
        for table, start, end in zip(self.tables, ends, ends[1:], strict=False):
            table.index.changed[rows[start:end].clip(min=0)] = True  # a mark may have been set since the look-up
            table.columns.step(rows[start:end], of_leaf[start:end])

    def _current(self) -> _Held | None:
        """Return the arrays of the tables; None where they do not fit into one call."""
        if not self._compiled:
            return None
        arrays: list[Any] = []
        for table in self.tables:
            index, columns = table.index, table.columns
            arrays += (index.slots, index.times.first, index.changed, *columns.arrays)
        if not self._held.same(arrays):
            self._held = _Held(self.tables, arrays)
        return self._held if self._held.fits else None


class _Held:
    """The arrays of some tables as kernels take them; tables get other arrays when they grow."""

    def __init__(self, tables: Sequence[EmbeddingTable] = (), arrays: Sequence[Any] = ()) -> None:
        self._arrays = arrays
        times = [table.index.times for table in tables]
        kinds = {(table.index.times.wide, table.index.changed.strides) for table in tables}  # of arrays: a call takes one
        self.fits = len(kinds) == 1 and all(each.begun for each in times)
        if self.fits:
            self.views = _listed([table.index.view(table.columns.arrays[0]) for table in tables])
            self.accumulated = _listed([table.columns.arrays[1] for table in tables])
            self.bases: Keys = np.array([each.base for each in times])
            limits = [each.limits() for each in times]
            self.earliest, self.latest = max(low for low, _ in limits), min(high for _, high in limits)

    def same(self, arrays: Sequence[Any]) -> bool:
        """Whether the tables' arrays are those held; those that grow are compared, the others come with them."""
        return self.fits and all(map(operator.is_, arrays, self._arrays))


def _listed(each: Sequence[Any]) -> Any:
    """Return a list that a kernel takes as one argument."""
    found = _list_of(each[0])
    for one in each[1:]:
        _append(found, one)
    return found


@kernel
def _list_of(one: Any) -> Any:
    found = List()
    found.append(one)
    return found


@kernel
def _append(found: Any, one: Any) -> None:
    found.append(one)


@kernel
def _look_up_each(
    views: Sequence[View],
    bases: Keys,
    keys: Keys,
    bounds: Keys,
    rows: Rows,
    out: Floats,
    unknown: Flags,
    learn: bool,
    ts: int,
) -> None:
    """Do what :func:`learners.tables.probing.look_up` does table by table, and write which has unknown keys, ``[T]``."""
    for table in range(len(views)):
        start, end = bounds[table], bounds[table + 1]
        own = keys[start:end], rows[start:end], out[start:end]
        unknown[table] = look_up(views[table], *own, learn, ts - bases[table], 0, 0, 0, 0.0)[0] > 0


@kernel
def _step_each(
    views: Sequence[View],
    accumulated: Sequence[Floats],
    bounds: Keys,
    rows: Rows,
    grad: Floats,
    rate: float,
    eps: float,
    keep: float,
) -> None:
    for table in range(len(views)):
        start, end = bounds[table], bounds[table + 1]
        for row in rows[start:end]:
            views[table].changed[max(row, 0)] = True  # a mark may have been set since the look-up
        rowwise_adagrad(views[table].weight, accumulated[table], rows[start:end], grad[start:end], rate, eps, keep)
