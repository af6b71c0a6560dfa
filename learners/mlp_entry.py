"""The first layer of :class:`learners.request_mlp.RequestMLP` as its compiled passes take it, and the gradients by its parts.

Legend: ``C`` candidates, ``S`` rows of all shared parts, ``J`` shared parts, ``W`` width of the layer, ``k`` slots, ``T`` rows
of the tables of slot embeddings, ``d`` their width, ``V`` width of the dense columns.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from learners import mlp_shared, mlp_slots
from learners.blas import SGEMM
from learners.mlp_ranges import First, Hidden

__all__ = ["Entry", "Plan", "Wanted", "Weights"]

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


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
        arrays = [tensor.detach().numpy() for tensor in tensors]
        dense, tables = arrays[:n_dense], arrays[n_dense + n_shared :]
        self.plan = plan
        self.columns = _columns(tuple((part.start, part.stop) for part in plan.dense))
        self.shared = [np.ascontiguousarray(rows) for rows in arrays[n_dense : n_dense + n_shared]]
        ends = list(itertools.accumulate(plan.n_rows, initial=0))
        self.rows = [slice(*ends[j : j + 2]) for j in range(n_shared)]
        both = np.empty((ends[-1], len(weights.bias)), np.float32)
        self.weights = [(weights.first, part.start) for part in plan.shared] + [(weights.request, 0)] * plan.has_request
        for rows, (w, start), place in zip(self.shared, self.weights, self.rows, strict=True):
            mlp_shared.shared_forward(SGEMM, rows, w, start, both, place.start, place.stop)
        self.sizes = [len(table) for table in tables]
        self.table = np.concatenate(tables) if tables else np.empty((0, 1), np.float32)  # [T, d]
        self.w_slots = weights.first[:, plan.slots] if plan.slots is not None else weights.first[:, :0]  # [W, k d]
        contribution = np.empty((len(self.table), k * len(weights.bias)), np.float32)
        first_position = self.sizes[0] if len(tables) > 1 else -1
        if tables:
            self.pairs = mlp_slots.occurring(plan.bins, plan.positions, plan.n_bins, first_position, len(self.table))
            mlp_slots.slots_forward(self.table, self.w_slots, self.pairs, contribution)
        slots = plan.bins, plan.positions, plan.n_bins, first_position
        w_dense, bias = weights.first.take(self.columns, 1), weights.bias
        self.first = First(
            _beside(dense, len(plan.taken)), w_dense, bias, both, plan.taken, contribution.reshape(-1, len(bias)), *slots
        )

    def shared_gradient(self, j: int, of_both: Floats, of: Weights) -> Floats:
        """Return the gradient by the rows of a shared part; that by its weights goes into ``of``.

        Args:
            j: its number.
            of_both: of the rows by the first layer's output, ``[ranges, S, W]``.
            of: gradients by the weights.
        """
        rows, place, (w, start) = self.shared[j], self.rows[j], self.weights[j]
        of_w = of.first if j < len(self.plan.shared) else of.request
        of_rows = np.empty(rows.shape, np.float32)
        mlp_shared.shared_backward(SGEMM, of_both, place.start, place.stop, rows, w, start, of_rows, of_w)
        return of_rows

    def slot_gradient(self, of_slots: Floats, of_first: Floats) -> list[Floats]:
        """Return the gradients of the tables of slots; of the weight's columns they go into ``of_first``.

        Args:
            of_slots: of their contribution, ``[ranges, T k, W]``.
            of_first: of the first weight.
        """
        of_table = np.empty(self.table.shape, np.float32)
        by_row = of_slots.reshape(len(of_slots), len(self.table), -1)
        mlp_slots.slots_backward(self.table, self.w_slots, self.pairs, by_row, of_table, of_first[:, self.plan.slots])
        return np.split(of_table, np.cumsum(self.sizes)[:-1])


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
