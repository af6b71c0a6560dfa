"""What rows that several candidates share contribute to the first layer of :class:`learners.request_mlp.RequestMLP`, and back.

Legend: ``S`` rows of all shared parts, ``U`` of one, ``d`` their width, ``W`` width of the layer.
"""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

from learners.blas import product

__all__ = ["add_weights", "shared_backward", "shared_forward"]

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
