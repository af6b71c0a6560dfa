"""Layer normalisation with ReLU, row by row, compiled: the walks over rows that :mod:`learners.mlp_kernels` puts together.

    z_hat = (z - mean) / sqrt(var + eps),      out = max(z_hat * gain + shift, 0)

Between two walks over a row stands a sum over all of it, for which a processor would wait: so a group of rows, few enough to
stay in its nearest cache, takes each walk before the next one. Rows are vectors (:mod:`learners.simd`), sums over one are in
the order of :mod:`learners.lanes`, and arrays are flat: row ``c`` begins at ``c W``. NaN stays NaN.

Legend: ``W`` width of a row.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from learners.lanes import NARROW, WIDE
from learners.simd import gated, lanes, load, narrow, rectified, spread, store, summed, wide
from negative_queues.kernels import kernel

__all__ = ["GROUP", "Norm", "Pulled", "bulk", "passed_on", "pull_rows", "standardise_rows"]

GROUP = 8
"""Rows that take each walk together; even, as on the way back two share what they fetch."""
EPS = np.float32(1e-5)  # of torch's LayerNorm


class Norm(NamedTuple):
    """Rows and what they share, flat."""

    z: Any
    """Becomes ``z_hat``."""
    out: Any
    inverse: Any
    """1 / deviation of each row."""
    gain: Any


class Pulled(NamedTuple):
    """What all numbers of a row need on the way back."""

    mean: Any
    """Of the gradient by ``z_hat``."""
    along: Any
    """Mean of its product with ``z_hat``."""
    inverse: Any


@kernel(forceinline=True)
def bulk(width: int) -> tuple[int, int]:
    """Return where the vectors of 32 end, and those of 8 behind them."""
    return width // WIDE * WIDE, width // NARROW * NARROW


@kernel(forceinline=True)
def standardise_rows(norm: Norm, shift: Any, first: int, end: int, width: int, means: Any) -> None:
    """Write ``z_hat``, ``out`` and ``inverse`` of a group of rows; ``means`` are theirs."""
    whole, eights = bulk(width)
    for c in range(first, end):
        at, mean = c * width, means[c - first]
        squares = summed(
            _squares(norm, at, mean, 0, whole, wide()),
            _squares(norm, at, mean, whole, eights, narrow()),
            _squares(norm, at, mean, eights, width, np.float32(0)),
        )
        norm.inverse[c] = np.float32(1) / np.sqrt(squares / np.float32(width) + EPS)
    for c in range(first, end):
        at, mean, inverse = c * width, means[c - first], norm.inverse[c]
        _scale(norm, shift, at, mean, inverse, 0, whole, wide())
        _scale(norm, shift, at, mean, inverse, whole, eights, narrow())
        _scale(norm, shift, at, mean, inverse, eights, width, np.float32(0))


@kernel(forceinline=True)
def _squares(norm: Norm, at: int, mean: np.float32, first: int, end: int, so_far: Any) -> Any:
    """Return the sum of the squared distances from the mean, by lanes."""
    for w in range(first, end, lanes(so_far)):
        value = load(norm.z, at + w, so_far) - spread(mean, so_far)
        so_far = so_far + value * value
    return so_far


@kernel(forceinline=True)
def _scale(norm: Norm, shift: Any, at: int, mean: np.float32, inverse: np.float32, first: int, end: int, like: Any) -> None:
    for w in range(first, end, lanes(like)):
        value = (load(norm.z, at + w, like) - spread(mean, like)) * spread(inverse, like)
        store(norm.z, at + w, value)
        store(norm.out, at + w, rectified(value * load(norm.gain, w, like) + load(shift, w, like)))


@kernel(forceinline=True)
def pull_rows(norm: Norm, grad: Any, first: int, end: int, width: int, sums: Any, pulled: Any) -> None:
    """Turn ``grad`` by ``out`` of a group of rows into that by ``z_hat``; write ``mean`` and ``along`` of each to ``pulled``.

    To ``sums`` are added the gradients by gain and, behind it, by shift.
    """
    (whole, eights), n = bulk(width), np.float32(width)
    for c in range(first, end, 2):
        at, two = c * width, c + 1 < end
        a = _pull(norm, grad, at, two, sums, width, 0, whole, wide())
        b = _pull(norm, grad, at, two, sums, width, whole, eights, narrow())
        rest = _pull(norm, grad, at, two, sums, width, eights, width, np.float32(0))
        start = 2 * (c - first)
        pulled[start], pulled[start + 1] = summed(a[0], b[0], rest[0]) / n, summed(a[1], b[1], rest[1]) / n
        pulled[start + 2], pulled[start + 3] = summed(a[2], b[2], rest[2]) / n, summed(a[3], b[3], rest[3]) / n


@kernel(forceinline=True)
def _pull(
    norm: Norm, grad: Any, at: int, two: bool, sums: Any, width: int, first: int, end: int, zero: Any
) -> tuple[Any, Any, Any, Any]:
    """Do it for one row or two, for which the sums are fetched once; return what its means are made of, by lanes, of each."""
    total, along, next_total, next_along = zero, zero, zero, zero
    for w in range(first, end, lanes(zero)):
        of_gain, of_shift = load(sums, w, zero), load(sums, width + w, zero)
        of_gain, of_shift, total, along = _pull_lanes(norm, grad, at, w, of_gain, of_shift, total, along)
        if two:
            of_gain, of_shift, next_total, next_along = _pull_lanes(
                norm, grad, at + width, w, of_gain, of_shift, next_total, next_along
            )
        store(sums, w, of_gain)
        store(sums, width + w, of_shift)
    return total, along, next_total, next_along


@kernel(forceinline=True)
def _pull_lanes(
    norm: Norm, grad: Any, at: int, w: int, of_gain: Any, of_shift: Any, total: Any, along: Any
) -> tuple[Any, Any, Any, Any]:
    value = load(norm.z, at + w, total)
    pull = gated(load(grad, at + w, total), load(norm.out, at + w, total))
    of_gain = of_gain + pull * value
    of_shift = of_shift + pull
    pull = pull * load(norm.gain, w, total)
    store(grad, at + w, pull)
    return of_gain, of_shift, total + pull, along + pull * value


@kernel(forceinline=True)
def passed_on(norm: Norm, grad: Any, at: int, w: int, pulled: Pulled, like: Any) -> Any:
    """Write some lanes of the gradient by ``z`` of the row that begins at ``at``, and return them."""
    along = load(norm.z, at + w, like) * spread(pulled.along, like)
    by_z = (load(grad, at + w, like) - spread(pulled.mean, like) - along) * spread(pulled.inverse, like)
    store(grad, at + w, by_z)
    return by_z
