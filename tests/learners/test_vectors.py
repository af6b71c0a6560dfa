"""The store of vectors against a dict, over put, get, restart and eviction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from learners.vectors import VectorError, VectorStore

DIM, CAPACITY = 3, 7
ITEMS = st.lists(st.integers(1, 15) | st.integers(-(2**63), -(2**63) + 3), max_size=20)


def vectors_of(seeds: list[int]) -> npt.NDArray[np.float32]:
    return np.array([[seed, seed + 0.5, -seed] for seed in seeds], np.float32).reshape(-1, DIM)


def copied(store: VectorStore) -> dict[str, npt.NDArray[Any]]:
    return {name: np.array(array) for name, array in store.state().items()}


class StoreMachine(RuleBasedStateMachine):
    """A dict in the order of the last put is the oracle."""

    def __init__(self) -> None:
        super().__init__()
        self.store = VectorStore(None, DIM, CAPACITY)
        self.dict: dict[int, int] = {}
        self.evicted = self.version = 0

    @rule(items=ITEMS)
    def put(self, items: list[int]) -> None:
        versions = list(range(self.version, self.version + len(items)))
        self.version += len(items)
        self.store.put(np.array(items, np.int64), vectors_of(versions))
        for item, version in zip(items, versions, strict=True):
            self.dict.pop(item, None)
            self.dict[item] = version
            if len(self.dict) > CAPACITY:
                del self.dict[next(iter(self.dict))]
                self.evicted += 1

    @rule(items=ITEMS)
    def get(self, items: list[int]) -> None:
        keys = np.array([*items, 0], np.int64)
        hits, misses = self.store.hits, self.store.misses
        vectors, found = self.store.get(keys)
        expected = [self.dict.get(key) for key in keys.tolist()]
        assert found.tolist() == [version is not None for version in expected]
        np.testing.assert_array_equal(vectors[found], vectors_of([v for v in expected if v is not None]))
        assert not vectors[~found].any()
        assert (self.store.hits - hits, self.store.misses - misses) == (found.sum(), len(items) - found.sum())

    @rule()
    def restart(self) -> None:
        other = VectorStore(None, DIM, CAPACITY)
        other.put(np.arange(1, 30), vectors_of(list(range(900, 929))))
        other.load_state(copied(self.store))
        self.store = other

    @invariant()
    def sizes(self) -> None:
        assert (len(self.store), self.store.evicted) == (len(self.dict), self.evicted)


StoreMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestStore = StoreMachine.TestCase


def test_the_cut_of_puts_changes_nothing() -> None:
    rng = np.random.default_rng(3)
    items, vectors = rng.integers(1, 400, 2_000), rng.normal(size=(2_000, DIM)).astype(np.float32)
    states = []
    for pieces in (1, 7, 300):
        store = VectorStore(None, DIM, 100)
        for part in np.array_split(np.arange(2_000), pieces):
            store.put(items[part], vectors[part])
        states.append(copied(store))
    for other in states[1:]:
        assert all(np.array_equal(array, other[name]) for name, array in states[0].items())
    assert states[0]["sizes"].tolist()[0] == 100


def test_the_file_is_as_long_as_the_capacity_and_begins_empty(tmp_path: Path) -> None:
    path = tmp_path / "vectors"
    first = VectorStore(path, DIM, CAPACITY)
    first.put(np.array([5]), vectors_of([1]))
    assert path.stat().st_size == (CAPACITY + 1) * DIM * 4
    again = VectorStore(path, DIM, CAPACITY)
    assert len(again) == 0
    assert not again.get(np.array([5]))[1].any()


def test_a_state_of_another_size_is_refused_and_changes_nothing() -> None:
    store = VectorStore(None, DIM, CAPACITY)
    store.put(np.array([5]), vectors_of([1]))
    with pytest.raises(VectorError, match=r"has dim = 4, this run vectors.dim = 3: give vectors.dim = 4"):
        store.load_state(VectorStore(None, 4, CAPACITY).state())
    with pytest.raises(VectorError, match=r"has capacity = 8, this run vectors.capacity = 7"):
        store.load_state(VectorStore(None, DIM, 8).state())
    assert store.get(np.array([5]))[0].tolist() == vectors_of([1]).tolist()


def test_vectors_of_another_length_are_refused() -> None:
    with pytest.raises(VectorError, match=r"shape \(2, 4\) for 2 items, the store has dim = 3"):
        VectorStore(None, DIM, CAPACITY).put(np.array([1, 2]), np.zeros((2, 4), np.float32))
    with pytest.raises(VectorError, match="dim = 0 and capacity = 7 must be at least 1"):
        VectorStore(None, 0, CAPACITY)
