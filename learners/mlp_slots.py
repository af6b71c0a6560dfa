"""What rows of slot embeddings contribute to the first layer of :class:`learners.request_mlp.RequestMLP`, and back.

A row contributes another vector in each slot, and of all pairs of a row and a slot a batch has less than half: histories are
short, similarities alike. Only those that occur are computed; they lie slot by slot, so that a slot's weights serve all of its
rows.

Legend: ``T`` rows of the tables, bins and then positions, ``d`` their width, ``k`` slots, ``P`` pairs of a row and a slot that
occur, ``W`` width of the layer, ``C`` candidates.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from learners.blas import product
from learners.flat import LINE
from learners.lanes import dot
from negative_queues.kernels import kernel

__all__ = [
    "Occurring",
    "SlotRows",
    "clear",
    "enter_slots",
    "enter_slots_backward",
    "occurring",
]

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


class Occurring(NamedTuple):
    """Which rows some candidate takes in which slot, or would take in a slot that is empty."""

    rows: Ints
    """Slot by slot, ``[P]``."""
    ends: Ints
    """Where the rows of a slot begin, and where the last one's end, ``[k + 1]``."""


class SlotRows(NamedTuple):
    """The pairs that occur and all that their kernels write; matrices begin at a cache line."""

    table: Floats
    """``[T, d]``."""
    rows: Ints
    """As :attr:`Occurring.rows`."""
    ends: Ints
    """As :attr:`Occurring.ends`."""
    column: int
    """Of the first weight, where the slots' begin."""
    taken: Floats
    """Scratch, ``[P, d]``."""
    made: Floats
    """Scratch, ``[P, W]``."""
    turned: Floats
    """Scratch, ``[k d, W]``."""
    of_turned: Floats
    """Scratch, ``[k d, W]``."""
    of_table: Floats
    """Takes the gradient of the table, ``[T, d]``."""

    @staticmethod
    def of(table: Floats, pairs: Occurring, column: int, width: int, wide: int) -> SlotRows:
        """Make room for ``table [T, d]``; ``wide`` columns from ``column`` on of a weight ``[width, ..]`` are the slots'."""
        n = len(pairs.rows)
        taken, made, turned, of_turned = _scratch((n, table.shape[1]), (n, width), (wide, width), (wide, width))
        return SlotRows(table, pairs.rows, pairs.ends, column, taken, made, turned, of_turned, table[:0])

    @staticmethod
    def none() -> SlotRows:
        """Return what stands for no slots."""
        return SlotRows.of(np.empty((0, 1), np.float32), Occurring(np.zeros(0, np.int64), np.zeros(1, np.int64)), 0, 0, 0)


def occurring(bins: Ints, positions: Ints, n_bins: int, first_position: int, n_rows: int) -> Occurring:
    """Return the pairs that occur.

    Args:
        bins: ``[C, k]``; ``n_bins`` is an empty slot, behind which all are empty.
        positions: ``[C, k]``.
        n_bins: see above.
        first_position: row of position 0; -1 where positions have no embedding.
        n_rows: ``T``.
    """
    k = bins.shape[1]
    rows, ends = np.empty(k * n_rows, np.int64), np.empty(k + 1, np.int64)
    _occurring(bins, positions, n_bins, first_position, np.zeros((k, n_rows), np.bool_), rows, ends)
    return Occurring(rows[: ends[k]], ends)


def _scratch(*shapes: tuple[int, int]) -> list[Floats]:
    """Return matrices from a cache line on each: the bits of a product depend on where its factors lie."""
    ends = list(itertools.accumulate((-(-n * width // LINE) * LINE for n, width in shapes), initial=0))
    floats: Floats = torch.empty(ends[-1]).numpy()
    return [floats[at : at + n * width].reshape(n, width) for at, (n, width) in zip(ends, shapes, strict=False)]


@kernel
def enter_slots(sgemm: int, of: SlotRows, w_first: Floats, contribution: Floats) -> None:
    """Write what the rows of :attr:`SlotRows.table` contribute in the slots that they occur in; other pairs keep theirs.

    Args:
        sgemm: of :func:`learners.blas.product`.
        of: the rows.
        w_first: its columns from :attr:`SlotRows.column` on are the slots' weights.
        contribution: ``[T k, W]``.
    """
    table, w, k = of.table, _own_weights(of, w_first), len(of.ends) - 1
    out = contribution.reshape(len(table), k * len(w))
    _forward(sgemm, table, w, of.rows, of.ends, of.taken, of.made, out)


@kernel
def enter_slots_backward(sgemm: int, of: SlotRows, w_first: Floats, of_slots: Floats, of_first: Floats) -> None:
    """Go back through :func:`enter_slots`, into :attr:`SlotRows.of_table` and the slots' columns of ``of_first``.

    Args:
        sgemm: as forward.
        of: as forward.
        w_first: as forward.
        of_slots: gradients by the contributions, ``[ranges, T k, W]``, summed in their order; those of pairs that do not occur
            are not read.
        of_first: takes the gradient by ``w_first``, in the slots' columns.
    """
    table, w, k = of.table, _own_weights(of, w_first), len(of.ends) - 1
    by_row = of_slots.reshape(len(of_slots), len(table), k * len(w))
    given = sgemm, table, w, of.rows, of.ends, by_row, of.taken, of.made, of.turned, of.of_turned, of.of_table
    _backward(*given, _own_weights(of, of_first))


@kernel
def _own_weights(of: SlotRows, w_first: Floats) -> Floats:
    return w_first[:, of.column : of.column + (len(of.ends) - 1) * of.table.shape[1]]


@kernel
def _occurring(
    bins: Ints, positions: Ints, n_bins: int, first_position: int, seen: npt.NDArray[np.bool_], rows: Ints, ends: Ints
) -> None:
    k = bins.shape[1]
    for slot in range(k):
        seen[slot, n_bins] = True
        if first_position >= 0:
            seen[slot, first_position] = True
    for c in range(len(bins)):
        for slot in range(k):
            if bins[c, slot] == n_bins:
                break
            seen[slot, bins[c, slot]] = True
            if first_position >= 0:
                seen[slot, first_position + positions[c, slot]] = True
    n = 0
    for slot in range(k):
        ends[slot] = n
        for row in range(seen.shape[1]):
            if seen[slot, row]:
                rows[n] = row
                n += 1
    ends[k] = n


@kernel
def clear(rows: Ints, ends: Ints, of_slots: Floats) -> None:
    """Write zeros to the rows of ``of_slots [T k, W]`` that are of pairs that occur: of the others, most of them, nobody reads.

    Args:
        rows: as :attr:`Occurring.rows`.
        ends: as :attr:`Occurring.ends`.
        of_slots: see above.
    """
    k = len(ends) - 1
    for slot in range(k):
        for pair in range(ends[slot], ends[slot + 1]):
            row = of_slots[rows[pair] * k + slot]
            for i in range(len(row)):
                row[i] = 0


@kernel
def _take(table: Floats, rows: Ints, out: Floats) -> None:
    for pair in range(len(rows)):
        for d in range(table.shape[1]):
            out[pair, d] = table[rows[pair], d]


@kernel
def _forward(sgemm: int, table: Floats, w: Floats, rows: Ints, ends: Ints, taken: Floats, made: Floats, out: Floats) -> None:
    width, dim = w.shape[0], table.shape[1]
    _take(table, rows, taken)
    for slot in range(len(ends) - 1):
        first, last = ends[slot], ends[slot + 1]
        product(sgemm, taken[first:last], False, w[:, slot * dim : (slot + 1) * dim], True, made[first:last], False)
        for pair in range(first, last):
            _copy(made[pair], out[rows[pair], slot * width : (slot + 1) * width])


@kernel
def _backward(
    sgemm: int,
    table: Floats,
    w: Floats,
    rows: Ints,
    ends: Ints,
    of_slots: Floats,
    taken: Floats,
    grad: Floats,
    turned: Floats,
    of_turned: Floats,
    of_table: Floats,
    of_w: Floats,
) -> None:
    """``taken [P, d]``, ``grad [P, W]``, ``turned`` and ``of_turned [k d, W]`` are scratch, at a cache line each."""
    width, dim = w.shape[0], table.shape[1]
    _take(table, rows, taken)
    _turn(w, turned)
    of_table[:] = 0
    for slot in range(len(ends) - 1):
        first, last, at = ends[slot], ends[slot + 1], slot * width
        weights, of_weights = turned[slot * dim : (slot + 1) * dim], of_turned[slot * dim : (slot + 1) * dim]
        for pair in range(first, last):
            _copy(of_slots[0, rows[pair], at : at + width], grad[pair])
            for part in range(1, len(of_slots)):
                _add(of_slots[part, rows[pair], at : at + width], grad[pair])
            for d in range(dim):
                of_table[rows[pair], d] += dot(grad[pair], weights[d])
        product(sgemm, taken[first:last], True, grad[first:last], False, of_weights, False)  # the other way round is slow
    _turn(of_turned, of_w)


@kernel
def _turn(matrix: Floats, out: Floats) -> None:
    for i in range(matrix.shape[0]):
        for j in range(matrix.shape[1]):
            out[j, i] = matrix[i, j]


@kernel
def _copy(row: Floats, out: Floats) -> None:
    for i in range(len(row)):
        out[i] = row[i]


@kernel
def _add(row: Floats, out: Floats) -> None:
    for i in range(len(row)):
        out[i] += row[i]
