"""Vectors in kernels against NumPy, bit for bit."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import pytest

from learners.lanes import total_plain
from learners.simd import flat, gated, lanes, load, narrow, rectified, spread, store, summed, wide

_numba: Any = numba  # its config has no types
Floats = npt.NDArray[np.float32]


@numba.njit(nogil=True)
def walk(x: Any, y: Any, scale: np.float32, out: Any, first: int, end: int, so_far: Any) -> Any:
    for at in range(first, end, lanes(so_far)):
        a, b = load(x, at, so_far), load(y, at, so_far)
        store(out, at, rectified((a - b) * spread(scale, so_far)) + gated(a, b))
        so_far = so_far + a * b
    return so_far


@numba.njit(nogil=True)
def walked(x: Floats, y: Floats, scale: np.float32, out: Floats) -> np.float32:
    whole, eights, n = x.size // 32 * 32, x.size // 8 * 8, x.size
    xs, ys, outs = flat(x), flat(y), flat(out)
    bulk = walk(xs, ys, scale, outs, 0, whole, wide())
    eight = walk(xs, ys, scale, outs, whole, eights, narrow())
    return summed(bulk, eight, walk(xs, ys, scale, outs, eights, n, np.float32(0)))


def same(one: Any, other: Any) -> bool:
    """Whether all bits are the same; of what is no number, that it is none."""
    one, other = np.asarray(one, np.float32), np.asarray(other, np.float32)
    nan = np.isnan(one)
    return np.array_equal(nan, np.isnan(other)) and np.array_equal(one[~nan].view(np.int32), other[~nan].view(np.int32))


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("odd", [None, np.nan, np.inf, -np.inf, -0.0])
@pytest.mark.parametrize("n", [0, 1, 7, 8, 15, 16, 17, 80, 200, 201])
def test_every_length_has_the_bits_of_numpy(n: int, odd: float | None) -> None:
    x, y = np.random.default_rng(n).standard_normal((2, n), np.float32)
    if odd is not None and n:
        for array in (x, y):
            array[[0, n // 2, n - 1]] = odd
    out, scale = np.full(n, 7, np.float32), np.float32(0.3)
    total = walked(x, y, scale, out)
    moved = (x - y) * scale
    assert same(out, np.where(moved < 0, np.float32(0), moved) + np.where(y > 0, x, np.float32(0)))
    assert same(total, total_plain(x * y))


def test_rows_of_a_matrix_lie_one_behind_the_other() -> None:
    x = np.arange(48, dtype=np.float32).reshape(3, 16)
    out = np.zeros_like(x)
    assert walked(x, np.ones_like(x), np.float32(1), out) == total_plain(x.reshape(-1))
    assert np.array_equal(out, np.maximum(x - 1, 0) + x)


@pytest.mark.skipif(_numba.config.DISABLE_JIT, reason="arrays have no layout with the compiler off")
def test_what_is_not_in_one_piece_or_no_float32_is_refused_when_a_kernel_is_compiled() -> None:
    x = np.ones(64, np.float32)
    with pytest.raises(numba.TypingError, match="an array in one piece is wanted"):
        walked(x[::2], x[::2], np.float32(1), x)
    with pytest.raises(numba.TypingError, match=r"flat\(an array of float32\) is wanted"):
        walked(x.astype(np.float64), x, np.float32(1), x)
