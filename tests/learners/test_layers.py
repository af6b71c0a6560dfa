"""Shared layers against the same thing written per request, with loops."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learners.batch import pairs
from learners.gather import add_at, add_sides_at, rows
from learners.layers import Standardise, pool
from learners.tables import EmbeddingTable, TableConfig

LENGTHS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5)), min_size=1, max_size=6)


def offsets(lengths: list[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


@given(lengths=LENGTHS)
@settings(deadline=None, max_examples=50)
def test_pairs_are_all_of_the_same_row(lengths: list[tuple[int, int]]) -> None:
    left, right = offsets([a for a, _ in lengths]), offsets([b for _, b in lengths])
    expected = [
        (i, j)
        for row in range(len(lengths))
        for i in range(left[row], left[row + 1])
        for j in range(right[row], right[row + 1])
    ]
    first, second = pairs(left, right)
    assert list(zip(first.tolist(), second.tolist(), strict=True)) == expected


def test_pool_is_a_mean_and_0_where_empty() -> None:
    table = EmbeddingTable("t", TableConfig(dim=3, initial_scale=1.0))
    gathered = table.gather(np.array([1, 2, 3, 1]))
    vectors = gathered.of(0)
    out = pool(gathered, 0, torch.tensor([0, 2, 2, 4]))
    torch.testing.assert_close(out, torch.stack([vectors[:2].mean(0), torch.zeros(3), vectors[2:].mean(0)]))


def test_rows_by_place_and_their_gradients_are_torchs() -> None:
    torch.manual_seed(0)
    weight, places = torch.randn(5, 3, requires_grad=True), torch.tensor([4, 0, 0, 2, 4, 4])
    ours, theirs = rows(weight, places), torch.nn.functional.embedding(places, weight)
    torch.testing.assert_close(ours, theirs, atol=0, rtol=0)
    pull = torch.randn(3, 6).t()  # not contiguous
    (one,), (other,) = (torch.autograd.grad((form * pull).sum(), weight) for form in (ours, theirs))
    torch.testing.assert_close(one, other)
    (empty,) = torch.autograd.grad(rows(weight, places[:0]).sum(), weight)
    assert not empty.any()


@given(side=st.integers(1, 4), n=st.integers(0, 5), dim=st.integers(1, 3), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=30)
def test_gradients_side_by_side_go_where_those_below_each_other_go(side: int, n: int, dim: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    places = generator.integers(0, 4, n * side)
    grad = generator.standard_normal((n, side * dim + 3), np.float32)[:, 2 : 2 + side * dim]
    one, other = np.ones((4, dim), np.float32), np.ones((4, dim), np.float32)
    add_sides_at(places, grad, one)
    add_at(places, grad.reshape(n * side, dim), other)
    np.testing.assert_array_equal(one, other)


@given(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=5), seed=st.integers(0, 50))
@settings(deadline=None, max_examples=40)
def test_standardise_has_the_moments_of_all_it_observed(sizes: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    layer, parts = Standardise(2), []
    for size in sizes:
        values = rng.normal(5, 3, (size, 2)).astype(np.float32)
        values[rng.random((size, 2)) < 0.2] = np.nan
        layer.observe(torch.from_numpy(values))
        parts.append(values)
    seen = np.concatenate(parts).astype(np.float64)
    for column in range(2):
        known = seen[~np.isnan(seen[:, column]), column]
        assert layer.count[column] == len(known)
        if len(known):
            np.testing.assert_allclose(float(layer.mean[column]), known.mean(), rtol=1e-6)
            np.testing.assert_allclose(float(layer.square[column]), known.var() * len(known), rtol=1e-5, atol=1e-6)


def test_standardise_marks_missing_and_clips() -> None:
    layer = Standardise(1)
    layer.observe(torch.tensor([[1.0], [3.0], [float("inf")]]))
    out = layer(torch.tensor([[2.0], [float("nan")], [1e9], [float("inf")]]))
    assert out.tolist() == [[0.0, 0.0], [0.0, 1.0], [5.0, 0.0], [0.0, 1.0]]


@given(size=st.integers(0, 9), seed=st.integers(0, 50))
@settings(deadline=None, max_examples=40)
def test_standardise_equals_its_torch_form(size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    one, other = Standardise(2), Standardise(2)
    for _ in range(3):
        values = torch.from_numpy(rng.normal(5, 3, (size, 2)).astype(np.float32))
        values[torch.from_numpy(rng.random((size, 2)) < 0.2)] = torch.nan
        torch.testing.assert_close(one(values), other.plain(values))
        one.observe(values)
        other.observe_plain(values)
        for name, buffer in one.named_buffers():
            torch.testing.assert_close(buffer, other.get_buffer(name), rtol=1e-6, atol=1e-9)
