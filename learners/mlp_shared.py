"""What rows that several candidates share contribute to the first layer of :class:`learners.request_mlp.RequestMLP`, and back.

Legend: ``S`` rows of all shared parts, ``U`` of one, ``d`` their width, ``W`` width of the layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from learners.blas import matrix_at, product
from negative_queues.kernels import kernel

__all__ = ["add_weights", "part_backward", "part_forward", "parts_of"]

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
ROWS, OF_ROWS, TAKEN, HEIGHT, WIDTH, COLUMN, OF_REQUEST, FIRST = range(8)
"""Columns of a table of parts, int64 ``[J, 8]``: addresses of the rows and of their gradients, rows that are taken and in all,
their width, the first column of the weight that is theirs, whether it is the request's, their first row among ``S``."""


def parts_of(
    rows: Sequence[Tensor], n_taken: Sequence[int], columns: Sequence[int], has_request: bool
) -> tuple[Ints, list[Floats]]:
    """Return the table of some parts, and the gradients by their rows, for :func:`part_backward` to write; both hold while the
    rows and the gradients do.

    Args:
        rows: of each, float32 ``[U, d]``, in one piece.
        n_taken: so many of each, the first ones, are taken.
        columns: of the weight, where each one's begin.
        has_request: whether the last part is the request's, which has a weight of its own.

    Raises:
        ValueError: a part has fewer rows than are taken of it, or is not float32: kernels would read what is not its own.
    """
    table: list[int] = []
    gradients: list[Floats] = []
    first, last = 0, len(rows) - 1
    for j, (own, n, column) in enumerate(zip(rows, n_taken, columns, strict=True)):
        height, width = own.shape
        if n > height or own.dtype is not torch.float32:
            raise ValueError(f"shared part {j} has {height} rows of {own.dtype}, of which {n} are taken as torch.float32")
        of_own = torch.empty(height, width)  # from a cache line on: the bits of a product depend on where its factors begin
        gradients.append(of_own.numpy())
        table += (own.data_ptr(), of_own.data_ptr(), n, height, width, column, has_request and j == last, first)
        first += n
    return np.array(table, np.int64).reshape(-1, 8), gradients


@kernel
def part_forward(sgemm: int, parts: Ints, j: int, w_first: Floats, w_request: Floats, both: Floats) -> None:
    """Write what the rows of a part contribute to their place in ``both [S, W]``.

    Args:
        sgemm: of :func:`learners.blas.product`.
        parts: of :func:`parts_of`.
        j: which.
        w_first: weights of the candidates' columns.
        w_request: those of the request's.
        both: see above.
    """
    at = parts[j]
    first, rows = at[FIRST], matrix_at(at[ROWS], at[TAKEN], at[WIDTH])
    w = w_request if at[OF_REQUEST] else w_first
    shared_forward(sgemm, rows, w, at[COLUMN], both, first, first + at[TAKEN])


@kernel
def part_backward(
    sgemm: int,
    parts: Ints,
    j: int,
    w_first: Floats,
    w_request: Floats,
    of_both: Floats,
    of_first: Floats,
    of_request: Floats,
) -> None:
    """Go back through :func:`part_forward`: into the gradients by the rows, and the part's columns of those by the weights.

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
    at = parts[j]
    first, last = at[FIRST], at[FIRST] + at[TAKEN]
    w, of_w = (w_request, of_request) if at[OF_REQUEST] else (w_first, of_first)
    rows, of_rows = matrix_at(at[ROWS], at[TAKEN], at[WIDTH]), matrix_at(at[OF_ROWS], at[HEIGHT], at[WIDTH])
    shared_backward(sgemm, of_both, first, last, rows, w, at[COLUMN], of_rows, of_w)


@kernel
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


@kernel
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


@kernel
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
