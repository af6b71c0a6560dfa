"""Products in compiled code against NumPy's, by the BLAS and by the loops that stand in for it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learners.blas import SGEMM, matrix_at, product


def matrix(generator: np.random.Generator, rows: int, columns: int, *, wide: bool) -> np.ndarray:
    """Return a matrix, ``wide``: as columns of a wider one."""
    values = generator.normal(size=(rows, columns + 5 * wide)).astype(np.float32)
    return values[:, 2 : 2 + columns] if wide else values


@given(
    seed=st.integers(0, 1000),
    sizes=st.tuples(*[st.integers(0, 70)] * 3),
    turns=st.tuples(st.booleans(), st.booleans()),
    wide=st.booleans(),
    add=st.booleans(),
    sgemm=st.sampled_from([SGEMM, 0]),
)
@settings(deadline=None, max_examples=200)
def test_products_are_numpys(
    seed: int, sizes: tuple[int, int, int], turns: tuple[bool, bool], wide: bool, add: bool, sgemm: int
) -> None:
    (m, n, k), generator = sizes, np.random.default_rng(seed)
    a = matrix(generator, *((k, m) if turns[0] else (m, k)), wide=wide)
    b = matrix(generator, *((n, k) if turns[1] else (k, n)), wide=wide)
    around = generator.normal(size=(m + 2, n + 3)).astype(np.float32)
    expected = around.copy()
    expected[1 : m + 1, 1 : n + 1] *= add
    expected[1 : m + 1, 1 : n + 1] += (a.T if turns[0] else a) @ (b.T if turns[1] else b)
    product(sgemm, a, turns[0], b, turns[1], around[1 : m + 1, 1 : n + 1], add)
    np.testing.assert_allclose(around, expected, atol=1e-4, rtol=1e-4)  # and nothing beside it is touched


def test_what_was_there_does_not_count_unless_added_to() -> None:
    out = np.full((2, 2), np.nan, np.float32)
    for sgemm in {SGEMM, 0}:
        product(sgemm, np.eye(2, dtype=np.float32), False, np.eye(2, dtype=np.float32), False, out, False)
        np.testing.assert_array_equal(out, np.eye(2))
        out[:] = np.nan


@pytest.mark.parametrize("shapes", [((2, 3), (4, 5), (2, 5)), ((2, 3), (3, 5), (1, 5)), ((2, 3), (3, 5), (2, 6))])
def test_sizes_that_do_not_fit_are_refused(shapes: tuple[tuple[int, int], ...]) -> None:
    a, b, out = (np.zeros(shape, np.float32) for shape in shapes)
    with pytest.raises(ValueError, match="do not fit"):
        product(SGEMM, a, False, b, False, out, False)


def test_a_matrix_by_its_address_is_the_memory_itself() -> None:
    array = np.arange(12, dtype=np.float32)
    found = matrix_at(array.ctypes.data + 4 * 2, 3, 2)
    np.testing.assert_array_equal(found, [[2, 3], [4, 5], [6, 7]])
    found[1, 1] = -1
    assert array[5] == -1
    assert matrix_at(array.ctypes.data, 0, 2).shape == (0, 2)


def test_nan_stays_nan() -> None:
    a, out = np.array([[np.nan, 0.0]], np.float32), np.empty((1, 1), np.float32)
    for sgemm in {SGEMM, 0}:
        product(sgemm, a, False, np.ones((2, 1), np.float32), False, out, False)
        assert np.isnan(out[0, 0])


@pytest.mark.skipif(SGEMM == 0, reason="torch's library shows no BLAS here")
def test_the_blas_is_called_where_there_is_one() -> None:
    """A product of odd size by both ways: equal to rounding, so that neither is the other in disguise unless it is exact."""
    generator = np.random.default_rng(0)
    a, b = (generator.normal(size=(201, 201)).astype(np.float32) for _ in range(2))
    by_blas, by_loops = np.empty((201, 201), np.float32), np.empty((201, 201), np.float32)
    product(SGEMM, a, False, b, False, by_blas, False)
    product(0, a, False, b, False, by_loops, False)
    np.testing.assert_allclose(by_blas, by_loops, atol=1e-3)
    assert (by_blas != by_loops).any()
