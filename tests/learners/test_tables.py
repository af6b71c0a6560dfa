"""Tables against plain Python: look-ups, growth, eviction, the optimiser and its torch twin, exact state."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from learners.checkpoint.manifest import INITIALISATION
from learners.tables import CountTable, EmbeddingTable, TableConfig, distinct
from learners.tables.index import RowIndex
from learners.tables.update import rowwise_adagrad, rowwise_adagrad_torch

KEYS = st.lists(st.one_of(st.integers(-(2**63), 2**63 - 1), st.integers(0, 6)), max_size=40)


def keys(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


class IndexMachine(RuleBasedStateMachine):
    """RowIndex beside a dict: rows are stable while held, distinct, and only the longest unseen ones give way."""

    def __init__(self) -> None:
        super().__init__()
        self.index = RowIndex("t", 24)
        self.rows: dict[int, int] = {}
        self.seen: dict[int, int] = {}
        self.now = 0

    @rule(wanted=st.lists(st.integers(-60, 60), max_size=12))
    def admit(self, wanted: list[int]) -> None:
        self.now += 1
        found, new = self.index.find_or_admit(keys(*wanted))
        for gone in set(self.rows) - set(self.index.keys[: self.index.n].tolist()):
            assert gone not in wanted
            del self.rows[gone], self.seen[gone]
        for key, row in zip(wanted, found.tolist(), strict=True):
            if key == 0:
                assert row == 0
                continue
            assert self.rows.setdefault(key, row) == row
            self.seen[key] = self.now
        assert sorted(self.index.keys[new].tolist()) == sorted(
            {k for k in wanted if k in self.rows and k} & set(self.index.keys[new].tolist())
        )
        self.index.touch(np.unique(found), self.now)

    @rule(wanted=st.lists(st.integers(-60, 60), max_size=12))
    def find(self, wanted: list[int]) -> None:
        expected = [0 if key == 0 else self.rows.get(key, -1) for key in wanted]
        assert self.index.find(keys(*wanted)).tolist() == expected

    @rule()
    def reload(self) -> None:
        state = {name: np.array(array) for name, array in self.index.state().items()}
        self.index = RowIndex("t", 24)
        self.index.load_state(state)

    @invariant()
    def rows_are_distinct_and_bounded(self) -> None:
        assert len(set(self.rows.values())) == len(self.rows) == len(self.index)
        assert all(0 < row < 24 for row in self.rows.values())
        assert all(self.index.last_ts[row] == self.seen[key] for key, row in self.rows.items())


IndexMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestIndex = IndexMachine.TestCase


def test_eviction_takes_the_longest_unseen() -> None:
    index = RowIndex("t", 9)
    for ts, key in enumerate([5, 6, 7, 8, 1, 2, 3, 4]):
        rows, _ = index.find_or_admit(keys(key))
        index.touch(rows, ts)
    index.touch(index.find(keys(5)), 100)
    index.find_or_admit(keys(50))
    assert index.last_evicted.tolist() == [6]
    assert index.find(keys(5, 6)).min() == -1
    assert index.find(keys(5))[0] > 0


def test_a_batch_larger_than_the_table_is_refused() -> None:
    table = EmbeddingTable("t", TableConfig(dim=2, max_rows=4))
    with pytest.raises(ValueError, match="max_rows = 4 is smaller than one batch needs; raise max_rows"):
        table.gather(keys(1, 2, 3, 4), learn=True)


def test_first_vectors_are_those_that_checkpoints_know() -> None:
    """Models on disk learn on with them: whoever changes these figures raises INITIALISATION."""
    table = EmbeddingTable("egin/item", TableConfig(dim=3, initial_scale=0.5), seed=7)
    first = table.gather(keys(1, -5)).weight
    assert (INITIALISATION, EmbeddingTable.seed_of("egin/item", 7)) == (2, 4649805523671741833)
    assert first.numpy() == pytest.approx(
        np.array([[0.34465870, -0.05853872, 0.45780322], [0.20290312, 0.02332277, -0.26517108]]), abs=1e-7
    )
    assert torch.equal(
        first, EmbeddingTable("din/item", TableConfig(dim=3, initial_scale=0.5), seed=7).gather(keys(1, -5)).weight
    )


@given(first=KEYS, second=KEYS)
@settings(deadline=None, max_examples=60)
def test_gather_equals_a_dict_of_vectors(first: list[int], second: list[int]) -> None:
    table = EmbeddingTable("t", TableConfig(dim=3, initial_scale=1.0))
    unseen = table.gather(keys(*first), keys(*second))
    assert len(table) == 0
    learned = table.gather(keys(*first), keys(*second), learn=True)
    vectors: dict[int, list[float]] = {}
    for use, wanted in enumerate((first, second)):
        np.testing.assert_array_equal(unseen.of(use).numpy(), learned.of(use).detach().numpy())
        for key, vector in zip(wanted, learned.of(use).tolist(), strict=True):
            assert vectors.setdefault(key, vector) == vector
            assert (vector == [0.0, 0.0, 0.0]) == (key == 0)
    assert len(learned.weight) == len(set(first + second))
    assert len(table) == len(set(first + second) - {0})


def test_first_vectors_do_not_depend_on_order_but_on_seed_and_name() -> None:
    config = TableConfig(dim=4)
    one, two = EmbeddingTable("t", config, seed=1), EmbeddingTable("t", config, seed=1)
    one.gather(keys(1, 2, 3), learn=True)
    two.gather(keys(3, 9, 1), learn=True)
    assert torch.equal(one.gather(keys(1, 3)).of(0), two.gather(keys(1, 3)).of(0))
    assert torch.equal(one.gather(keys(1)).of(0), EmbeddingTable("model/t", config, seed=1).gather(keys(1)).of(0))
    for other in (EmbeddingTable("t", config, seed=2), EmbeddingTable("u", config, seed=1)):
        assert not torch.equal(one.gather(keys(1)).of(0), other.gather(keys(1)).of(0))


def test_growth_keeps_vectors_and_what_was_learned() -> None:
    table = EmbeddingTable("t", TableConfig(dim=2, rate=0.5))
    gathered = table.gather(keys(7), learn=True)
    gathered.weight.sum().backward()  # type: ignore[no-untyped-call]
    table.apply_gradients()
    before = table.gather(keys(7)).of(0).clone()
    for start in range(1_000, 60_000, 5_000):
        table.gather(np.arange(start, start + 5_000), learn=True)
    assert torch.equal(table.gather(keys(7)).of(0), before)
    assert table.describe()["rows"] == 60_001


def test_reused_row_starts_afresh() -> None:
    """TRAPS 17: when a row is given to a new key, vector, optimiser state, count and age go too."""
    table = EmbeddingTable("t", TableConfig(dim=2, max_rows=3, rate=0.5))
    for ts, key in enumerate([1, 2]):
        gathered = table.gather(keys(key), learn=True, ts=ts)
        (gathered.weight * 3).sum().backward()  # type: ignore[no-untyped-call]
        table.apply_gradients()
    table.gather(keys(3), learn=True, ts=9)
    assert table.index.last_evicted.tolist() == [1]
    row = int(table.index.find(keys(3))[0])
    assert table.state()["accumulated"][row] == 0.0
    assert [int(part[0]) for part in table.statistics(keys(3))] == [1, 9]
    fresh = EmbeddingTable("t", TableConfig(dim=2))
    assert torch.equal(table.gather(keys(3)).of(0), fresh.gather(keys(3)).of(0))


@given(rows=st.lists(st.integers(0, 9), unique=True, min_size=1), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=50)
def test_kernel_equals_twin(rows: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    weight, accumulated = rng.normal(size=(10, 4)).astype(np.float32), rng.random(10).astype(np.float32)
    grad = rng.normal(size=(len(rows), 4)).astype(np.float32)
    grad[0] = 0
    twin_weight, twin_accumulated = torch.from_numpy(weight.copy()), torch.from_numpy(accumulated.copy())
    where = np.array(rows, np.int32)
    rowwise_adagrad(weight, accumulated, where, grad, 0.1, 1e-8, 0.9)
    rowwise_adagrad_torch(twin_weight, twin_accumulated, torch.from_numpy(where), torch.from_numpy(grad), 0.1, 1e-8, 0.9)
    np.testing.assert_allclose(weight, twin_weight.numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(accumulated, twin_accumulated.numpy(), rtol=1e-5, atol=1e-6)


def test_rowwise_adagrad_by_hand() -> None:
    weight, accumulated = np.zeros((2, 2), np.float32), np.zeros(2, np.float32)
    rowwise_adagrad(weight, accumulated, np.array([1], np.int32), np.array([[3.0, 4.0]], np.float32), 0.1, 0.0, 1.0)
    root = np.sqrt(12.5)
    np.testing.assert_allclose(weight[1], [-0.3 / root, -0.4 / root], rtol=1e-6)
    assert accumulated[1] == 12.5
    rowwise_adagrad(weight, accumulated, np.array([1], np.int32), np.array([[1.0, 1.0]], np.float32), 0.1, 0.0, 0.5)
    assert accumulated[1] == 0.5 * 12.5 + 1.0


def test_gradients_of_repeated_keys_add_up() -> None:
    table = EmbeddingTable("t", TableConfig(dim=1))
    gathered = table.gather(keys(4, 4, 5), keys(4), learn=True)
    (gathered.of(0).sum() + 2 * gathered.of(1).sum()).backward()  # type: ignore[no-untyped-call]
    assert gathered.weight.grad is not None
    assert gathered.weight.grad.flatten().tolist() == [4.0, 1.0]


def test_state_round_trip_after_eviction() -> None:
    table = EmbeddingTable("t", TableConfig(dim=2, max_rows=40))
    for ts in range(12):
        gathered = table.gather(np.arange(ts * 7, ts * 7 + 20), learn=True, ts=ts)
        gathered.weight.square().sum().backward()  # type: ignore[no-untyped-call]
        table.apply_gradients()
    state = {name: np.array(array) for name, array in table.state().items()}
    other = EmbeddingTable("t", TableConfig(dim=2, max_rows=40))
    other.load_state(state)
    for twin in (table, other):
        gathered = twin.gather(np.arange(70, 110)[:30], learn=True, ts=99)
        gathered.weight.sum().backward()  # type: ignore[no-untyped-call]
        twin.apply_gradients()
    left, right = table.state(), other.state()
    assert all(np.array_equal(left[name], right[name]) for name in left)


def test_state_of_another_dim_is_refused() -> None:
    state = EmbeddingTable("t", TableConfig(dim=2)).state()
    with pytest.raises(ValueError, match="the checkpoint has dim 2, the config dim = 3; resume with the config"):
        EmbeddingTable("t", TableConfig(dim=3)).load_state(state)


def test_apply_gradients_needs_a_gather() -> None:
    with pytest.raises(RuntimeError, match="needs a gather"):
        EmbeddingTable("t", TableConfig()).apply_gradients()


@given(batches=st.lists(st.lists(st.tuples(st.integers(0, 9), st.integers(-3, 3)), max_size=10), max_size=6))
@settings(deadline=None, max_examples=60)
def test_counts_equal_a_dict(batches: list[list[tuple[int, int]]]) -> None:
    table, sums = CountTable("c", 1), dict.fromkeys(range(10), 0)
    for ts, batch in enumerate(batches):
        for key, amount in batch:
            sums[key] += amount if key else 0
        ids = keys(*(key for key, _ in batch))
        table.add(ids, np.array([[float(amount)] for _, amount in batch]).reshape(-1, 1), ts)
    assert table.read(np.arange(10))[:, 0].tolist() == [float(sums[key]) for key in range(10)]


def test_counts_forget_once_per_batch() -> None:
    table, start = CountTable("c", 1), 1_000
    table.add(keys(1, 1), np.array([[3.0], [1.0]]), start)
    table.add_asked(distinct(keys(1, 1, 7)), np.array([[1.0], [1.0], [2.0]]), start + 5, half_life_ms=5.0)
    assert table.read(keys(1, 2, 7))[:, 0].tolist() == [4.0, 0.0, 2.0]
    asked, later = distinct(keys(7, 1, 2, 0, 1)), start + 5 + np.array([0, 5, 5, 5, -9])  # the past is as good as now
    assert table.lately(asked, later, 5.0)[:, 0].tolist() == [2.0, 2.0, 0.0, 0.0, 4.0]
    assert table.lately(asked, later, math.inf)[:, 0].tolist() == [2.0, 4.0, 0.0, 0.0, 4.0]
    far = 1 << 50  # too far from the first for 4 bytes
    table.add(keys(7), np.array([[1.0]]), far)
    assert table.lately(distinct(keys(1, 7)), np.array([far, far]), 1e18)[:, 0] == pytest.approx([4.0, 3.0], rel=1e-2)
    assert table.lately(distinct(keys(1, 7)), np.array([start + 5, far + 5]), 5.0)[:, 0].tolist() == [4.0, 1.5]
