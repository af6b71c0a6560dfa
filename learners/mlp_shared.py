"""What rows that several candidates share contribute to the first layer of :class:`learners.request_mlp.RequestMLP`, and back.

Legend: ``S`` rows of all shared parts, ``U`` of one, ``d`` their width, ``W`` width of the layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt
import torch

from learners.blas import product
from learners.flat import LINE

__all__ = ["Parts", "add_weights", "part_backward", "part_forward", "parts_of", "shared_backward", "shared_forward"]

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
TAKEN, WIDTH, START, OF_START, COLUMN, OF_REQUEST, FIRST, HEIGHT = range(8)
"""Columns of :attr:`Parts.at`: rows that are taken, their width, where they and their gradients begin, the first column of the
weight that is theirs and whether it is the request's, their first row among ``S``, rows that have a gradient."""


class Parts(NamedTuple):
    """The shared parts below each other, each from a cache line on: the bits of a product depend on where its factors begin."""

    rows: Floats
    """Of each those that candidates take."""
    of_rows: Floats
    """Takes the gradients by all of them."""
    at: Ints
    """``[J, 8]``."""


def parts_of(
    rows: Sequence[Floats], n_taken: Sequence[int], columns: Sequence[int], has_request: bool
) -> tuple[Parts, list[Floats]]:
    """Return parts side by side, and the gradients by the rows of each, for :func:`part_backward` to write.

    Args:
        rows: of each, ``[U, d]``.
        n_taken: so many of each, the first ones, are taken.
        columns: of the weight, where each one's begin.
        has_request: whether the last part is the request's, which has a weight of its own.
    """
    table, start, of_start, first, last = [], 0, 0, 0, len(rows) - 1
    for j, (own, n, column) in enumerate(zip(rows, n_taken, columns, strict=True)):
        height, width = own.shape
        table.append((n, width, start, of_start, column, has_request and j == last, first, height))
        start += -(-n * width // LINE) * LINE
        of_start += -(-height * width // LINE) * LINE
        first += n
    flat: Floats = torch.empty(start + of_start).numpy()
    flat, of_flat = flat[:start], flat[start:]
    gradients: list[Floats] = []
    for own, (n, width, begin, of_begin, *_, height) in zip(rows, table, strict=True):
        flat[begin : begin + n * width].reshape(n, width)[:] = own[:n]
        gradients.append(of_flat[of_begin : of_begin + height * width].reshape(height, width))
    return Parts(flat, of_flat, np.array(table, np.int64).reshape(-1, 8)), gradients


@numba.njit(cache=True, nogil=True)
def _rows_of(parts: Parts, j: int) -> Floats:
    start, n, width = parts.at[j, START], parts.at[j, TAKEN], parts.at[j, WIDTH]
    return parts.rows[start : start + n * width].reshape(n, width)


@numba.njit(cache=True, nogil=True)
def part_forward(sgemm: int, parts: Parts, j: int, w_first: Floats, w_request: Floats, both: Floats) -> None:
    """Write what the rows of a part contribute to their place in ``both [S, W]``.

    Args:
        sgemm: of :func:`learners.blas.product`.
        parts: all of them.
        j: which.
        w_first: weights of the candidates' columns.
        w_request: those of the request's.
        both: see above.
    """
    first, at = parts.at[j, FIRST], parts.at[j]
    w = w_request if at[OF_REQUEST] else w_first
    shared_forward(sgemm, _rows_of(parts, j), w, at[COLUMN], both, first, first + at[TAKEN])


@numba.njit(cache=True, nogil=True)
def part_backward(
    sgemm: int,
    parts: Parts,
    j: int,
    w_first: Floats,
    w_request: Floats,
    of_both: Floats,
    of_first: Floats,
    of_request: Floats,
) -> None:
    """Go back through :func:`part_forward`: into :attr:`Parts.of_rows` and the part's columns of the gradients by the weights.

    Args:
        sgemm: as forward.
        parts: as forward.
        j: as forward.
        w_first: as forward.
        w_request: as forward.
        of_both: as :func:`shared_backward`.
        of_first: takes the gradient by ``w_first``, in the part's columns.
        of_request: takes that by ``w_request``.
    """
    at = parts.at[j]
    first, start, height, width = at[FIRST], at[OF_START], at[HEIGHT], at[WIDTH]
    w, of_w = (w_request, of_request) if at[OF_REQUEST] else (w_first, of_first)
    of_rows = parts.of_rows[start : start + height * width].reshape(height, width)
    shared_backward(sgemm, of_both, first, first + at[TAKEN], _rows_of(parts, j), w, at[COLUMN], of_rows, of_w)


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
