"""What rows that several candidates share contribute to the first layer of :class:`learners.request_mlp.RequestMLP`, and back.

Legend: ``S`` rows of all shared parts, ``U`` of one, ``d`` their width, ``W`` width of the layer, ``k`` slots, ``T`` rows of
the tables of slot embeddings.
"""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

from learners.blas import product

__all__ = ["add_weights", "shared_backward", "shared_forward", "slots_backward", "slots_forward"]

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@numba.njit(cache=True, nogil=True)
def add_weights(
    packed: Floats, bias: Floats, w: Floats, of_packed: Floats, of_bias: Floats, of_first: Floats, columns: Ints
) -> None:
    """Add the ranges' sums up, in their order, into the gradients by the weights; of ``w [ranges, W, V]`` they go to
    ``columns [V]`` of the first weight's."""
    of_packed[:], of_bias[:] = packed[0], bias[0]
    for part in range(1, len(packed)):
        for i in range(len(of_packed)):
            of_packed[i] += packed[part, i]
        for i in range(len(of_bias)):
            of_bias[i] += bias[part, i]
    for row in range(w.shape[1]):
        for i in range(len(columns)):
            total = w[0, row, i]
            for part in range(1, len(w)):
                total += w[part, row, i]
            of_first[row, columns[i]] = total


@numba.njit(cache=True, nogil=True)
def shared_forward(sgemm: int, rows: Floats, w: Floats, start: int, both: Floats, first: int, last: int) -> None:
    """Write what the first rows of a shared part contribute, ``rows w'``, to ``both [S, W]`` from ``first`` to ``last``.

    Args:
        sgemm: of :func:`learners.blas.product`.
        rows: ``[U, d]``.
        w: its columns from ``start`` on are the part's, ``[W, ..]``.
        start: see above.
        both: see above.
        first: see above.
        last: exclusive.
    """
    end = start + rows.shape[1]
    product(sgemm, rows[: last - first], False, w[:, start:end], True, both[first:last], False)


@numba.njit(cache=True, nogil=True)
def shared_backward(
    sgemm: int, of_both: Floats, first: int, last: int, rows: Floats, w: Floats, start: int, of_rows: Floats, of_w: Floats
) -> None:
    """Go back through :func:`shared_forward`.

    Args:
        sgemm: of :func:`learners.blas.product`.
        of_both: gradients by the contributions, ``[ranges, S, W]``; the ranges are added up into the first.
        first: where the part's rows are among ``S``.
        last: where they end.
        rows: ``[U, d]``, of which only the first ``last - first`` were taken.
        w: as forward.
        start: as forward.
        of_rows: takes the gradient of the rows.
        of_w: takes that of ``w`` in the same columns.
    """
    n, end, total = last - first, start + rows.shape[1], of_both[0, first:last]
    for part in range(1, len(of_both)):
        for row in range(n):
            for i in range(total.shape[1]):
                total[row, i] += of_both[part, first + row, i]
    product(sgemm, total, False, w[:, start:end], False, of_rows[:n], False)
    of_rows[n:] = 0
    product(sgemm, total, True, rows[:n], False, of_w[:, start:end], False)


@numba.njit(cache=True, nogil=True)
def _add_up(parts: Floats) -> None:
    """Add the ranges' sums ``[ranges, ...]`` into the first, in their order."""
    flat = parts.reshape(len(parts), -1)
    for part in range(1, len(flat)):
        for i in range(flat.shape[1]):
            flat[0, i] += flat[part, i]


@numba.njit(cache=True, nogil=True)
def _by_slot(w: Floats, k: int) -> Floats:
    """Return the slots' weights ``[W, k d]`` as ``[d, k W]``: one product then does for all slots."""
    width, dim = w.shape[0], w.shape[1] // k
    out = np.empty((dim, k * width), np.float32)
    for slot in range(k):
        for i in range(width):
            for d in range(dim):
                out[d, slot * width + i] = w[i, slot * dim + d]
    return out


@numba.njit(cache=True, nogil=True)
def slots_forward(sgemm: int, table: Floats, w: Floats, k: int, contribution: Floats) -> None:
    """Write what each row of ``table [T, d]`` contributes in each slot, ``[T, k W]``, of the slots' weights ``w [W, k d]``."""
    product(sgemm, table, False, _by_slot(w, k), False, contribution, False)


@numba.njit(cache=True, nogil=True)
def slots_backward(sgemm: int, table: Floats, w: Floats, k: int, of_slots: Floats, of_table: Floats, of_w: Floats) -> None:
    """Go back through :func:`slots_forward`.

    Args:
        sgemm: of :func:`learners.blas.product`.
        table: as forward.
        w: as forward.
        k: slots.
        of_slots: gradients by the contributions, ``[ranges, T, k W]``; the ranges are added up into the first.
        of_table: takes the gradient of the table.
        of_w: takes that of ``w``.
    """
    _add_up(of_slots)
    width, dim = w.shape[0], table.shape[1]
    turned = np.empty((dim, len(table)), np.float32)  # this way round the products take a quarter of the time
    product(sgemm, _by_slot(w, k), False, of_slots[0], True, turned, False)
    of_table[:] = turned.T
    by_slot = np.empty((dim, k * width), np.float32)
    product(sgemm, table, True, of_slots[0], False, by_slot, False)
    for slot in range(k):
        for i in range(width):
            for d in range(dim):
                of_w[i, slot * dim + d] = by_slot[d, slot * width + i]
