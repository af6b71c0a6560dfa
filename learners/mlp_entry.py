"""The first layer of :class:`learners.request_mlp.RequestMLP` as its compiled passes take it, and the gradients by its parts.

Legend: ``C`` candidates, ``S`` rows of all shared parts, ``J`` shared parts, ``W`` width of the layer, ``k`` slots, ``T`` rows
of the tables of slot embeddings, ``d`` their width, ``V`` width of the dense columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from learners import mlp_shared, mlp_slots
from learners.mlp_ranges import First, Hidden
from learners.mlp_slots import SlotRows

__all__ = ["Entry", "Plan", "Wanted", "Weights"]

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
NO_SLOTS = SlotRows.none()


class Plan(NamedTuple):
    """Which columns of the first weight belong to which tensor, and the rows that each candidate takes."""

    dense: list[slice]
    """Neighbouring columns are one slice."""
    widths: list[int]
    """Of each dense part."""
    shared: list[slice]
    has_request: bool
    n_rows: list[int]
    """Of each shared part, the request's last."""
    slots: slice | None
    taken: Ints
    """Rows of the shared parts below each other, the request's last, ``[C, J]``."""
    bins: Ints
    positions: Ints
    n_bins: int


class Weights(NamedTuple):
    """The weights of an MLP, or the gradients by them, as views of one array (:class:`learners.flat.Flat`)."""

    first: Floats
    """Of the candidates' columns, ``[W, Dc]``."""
    request: Floats
    """Of the request's, ``[W, Dr]``."""
    bias: Floats
    """``[W]``."""
    hidden: Hidden
    """Normalisations and the linear layers behind them."""


@lru_cache(maxsize=64)
def _columns(dense: tuple[tuple[int, int], ...]) -> Ints:
    """Return the columns of some ranges of them."""
    return np.array([column for start, stop in dense for column in range(start, stop)], np.int64)


class Entry:
    """The first layer: its input by parts, and what the rows that candidates share contribute to it."""

    def __init__(self, plan: Plan, weights: Weights, tensors: Sequence[Tensor]) -> None:
        n_dense, n_shared, k = len(plan.widths), len(plan.n_rows), plan.bins.shape[1]
        dense = [tensor.detach().numpy() for tensor in tensors[:n_dense]]
        tables = [tensor.detach().numpy() for tensor in tensors[n_dense + n_shared :]]
        self.plan, self.weights = plan, weights
        self.columns = _columns(tuple((part.start, part.stop) for part in plan.dense))
        self._shared = [rows.detach().contiguous() for rows in tensors[n_dense : n_dense + n_shared]]
        self._sizes = [len(table) for table in tables]
        first_position = self._sizes[0] if len(tables) > 1 else -1
        self._slots, n_rows = NO_SLOTS, sum(self._sizes)
        if plan.slots is not None:
            table: Floats = np.concatenate(tables)  # [T, d]
            pairs = mlp_slots.occurring(plan.bins, plan.positions, plan.n_bins, first_position, n_rows)
            self._slots = SlotRows.of(table, pairs, plan.slots.start, len(weights.bias), plan.slots.stop - plan.slots.start)
        slots = plan.bins, plan.positions, plan.n_bins, first_position
        w_dense, bias = weights.first.take(self.columns, 1), weights.bias
        both = np.empty((sum(plan.n_rows), len(bias)), np.float32)
        contribution = np.empty((n_rows * k, len(bias)), np.float32)
        self.first = First(_beside(dense, len(plan.taken)), w_dense, bias, both, plan.taken, contribution, *slots)
        """What :mod:`learners.mlp_work` is still to write, the contributions of shared rows and of slots, as it is."""

    def parts(self) -> tuple[Ints, SlotRows, list[Floats]]:
        """Return what candidates share as kernels take it, of :func:`learners.mlp_shared.parts_of` and slots, and the gradients
        that those write: by the rows of each part and by the tables of slots. They hold while the entry does."""
        columns = [part.start for part in self.plan.shared] + [0] * self.plan.has_request
        parts, gradients = mlp_shared.parts_of(self._shared, self.plan.n_rows, columns, self.plan.has_request)
        if not self._sizes:
            return parts, NO_SLOTS, gradients
        slots = self._slots._replace(of_table=np.empty(self._slots.table.shape, np.float32))
        return parts, slots, [*gradients, *np.split(slots.of_table, np.cumsum(self._sizes)[:-1])]


def _beside(parts: Sequence[Floats], n: int) -> Floats:
    """Return the columns of some parts side by side, ``[n, V]``."""
    if len(parts) == 1 and parts[0].flags.c_contiguous:
        return parts[0]
    out = torch.empty(n, sum(part.shape[1] for part in parts)).numpy()  # begins at a cache line
    return np.concatenate(parts, 1, out) if parts else out


class Wanted:
    """The gradient by those dense columns that need one."""

    def __init__(self, entry: Entry, needed: Sequence[bool]) -> None:
        self.widths, self.needed = entry.plan.widths, needed[: len(entry.plan.widths)]
        w = entry.first.w
        if not all(self.needed):
            w = np.ascontiguousarray(w[:, np.repeat(np.array(self.needed), self.widths)])
        self.w = w
        self.gradient = np.empty((len(entry.plan.taken), w.shape[1]), np.float32)

    def split(self) -> list[Floats | None]:
        """Return it by dense part."""
        found: list[Floats | None] = []
        at = 0
        for width, wanted in zip(self.widths, self.needed, strict=True):
            found.append(self.gradient[:, at : at + width] if wanted else None)
            at += width * wanted
        return found
