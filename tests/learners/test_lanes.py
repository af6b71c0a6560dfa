"""Sums in vector lanes, and eight at once, against the same order in NumPy, bit for bit."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learners.lanes import Floats, dot, dot_plain, total, total_plain
from learners.products8 import products8, products8_plain

_numba: Any = numba  # its config has no types


@numba.njit(nogil=True)
def sums(x: Floats, y: Floats) -> tuple[np.float32, np.float32]:
    return total(x), dot(x, y)


@given(n=st.integers(0, 300), start=st.integers(0, 9), seed=st.integers(0, 2**32 - 1))
def test_sums_are_those_of_the_order_that_is_written_down(n: int, start: int, seed: int) -> None:
    x, y = np.random.default_rng(seed).standard_normal((2, n + start), np.float32)[:, start:]
    assert sums(x, y) == (total_plain(x), dot_plain(x, y))
    exact = np.sum(x, dtype=np.float64), np.sum(x.astype(np.float64) * y)
    np.testing.assert_allclose(sums(x, y), exact, atol=1e-5 * max(1, n))


@numba.njit(nogil=True)
def products(row: Floats, columns: Floats, at: int, out: Floats) -> None:
    products8(row, columns, at, out)


@given(n=st.integers(0, 70), at=st.integers(0, 9), more=st.integers(0, 9), seed=st.integers(0, 2**32 - 1))
def test_eight_products_are_sums_from_the_first_on_and_go_to_their_place(n: int, at: int, more: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    row, columns = rng.standard_normal(n, np.float32), rng.standard_normal((n, at + 8 + more), np.float32)
    found, expected = np.full((2, at + 8 + more), 7, np.float32)
    products(row, columns, at, found)
    products8_plain(row, columns, at, expected)
    assert np.array_equal(found, expected)
    assert (np.delete(found, np.arange(at, at + 8)) == 7).all()
    exact = row.astype(np.float64) @ columns[:, at : at + 8]
    np.testing.assert_allclose(found[at : at + 8], exact, atol=1e-5 * max(1, n))


def test_what_is_no_number_stays_so_in_any_lane() -> None:
    for n in (1, 8, 41, 64):
        for i in range(n):
            x = np.ones(n, np.float32)
            x[i] = np.nan
            assert np.isnan(sums(x, np.ones(n, np.float32))).all()


@pytest.mark.skipif(_numba.config.DISABLE_JIT, reason="arrays have no layout with the compiler off")
def test_a_row_in_pieces_is_refused_when_a_kernel_is_compiled() -> None:
    x = np.ones(8, np.float32)
    with pytest.raises(numba.TypingError, match="a row of float32 in one piece is wanted"):
        sums(x[::2], x[::2])
    with pytest.raises(numba.TypingError, match="a row of float32 in one piece is wanted"):
        sums(x.astype(np.float64), x.astype(np.float64))
    with pytest.raises(numba.TypingError, match="float32 in one piece is wanted"):
        products(x, np.ones((8, 16), np.float32)[:, ::2], 0, x)
