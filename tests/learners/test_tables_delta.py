"""Deltas of tables: rows picked past the cache are the rows, and a base and its deltas are the table, slot for slot."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learners.checkpoint.background import StateCopy
from learners.tables import EmbeddingTable, TableConfig
from learners.tables.changes import WHOLE_FROM, Delta
from learners.tables.copying import BLOCK, aligned, copy, pick, rows_of

TS, DAY = 1_700_000_000_000, 86_400_000
SIZES = st.one_of(st.integers(1, 40), st.integers(BLOCK - 9, 4 * BLOCK + 9))


@given(n=SIZES, width=st.sampled_from([1, 2, 3, 6, 8, 16, 17, 32, 40]), share=st.floats(0, 1), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=150)
def test_picked_rows_are_the_rows_and_nothing_else_is_written(n: int, width: int, share: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    source = rng.integers(0, 1 << 32, (n, width), np.uint32)
    touched = (rng.random(n) < share).astype(np.uint8)
    expected = np.flatnonzero(touched)
    rows = np.empty(len(expected), np.int32)
    rows_of(touched, rows)
    assert rows.tolist() == expected.tolist()
    size = len(rows) * width * 4
    for listed in (rows, None):
        memory = aligned(size + 64)
        memory.fill(7)
        pick(source, touched, listed, memory[:size])
        assert np.array_equal(memory[:size].view(np.uint32).reshape(-1, width), source[expected])
        assert (memory[size:] == 7).all()


@given(size=st.integers(0, 300), skipped=st.integers(0, 3))
@settings(deadline=None)
def test_a_copy_is_the_bytes_and_nothing_else_is_written(size: int, skipped: int) -> None:
    source = np.random.default_rng(size).integers(0, 256, size + 4 * skipped, np.uint8)[4 * skipped :]
    memory = aligned(size + 64)
    memory.fill(7)
    copy(source, memory)
    assert np.array_equal(memory[:size], source)
    assert (memory[size:] == 7).all()


def grown(config: TableConfig, n: int, days: int) -> EmbeddingTable:
    """Return a table of ``n`` keys, learned over some days."""
    table = EmbeddingTable("t", config)
    table.update(np.arange(1, n + 1), torch.ones(n, config.dim), TS)
    table.update(np.arange(1, n, 3), torch.ones(len(range(1, n, 3)), config.dim), TS + days * DAY)
    return table


@pytest.mark.parametrize("optimiser", ["adagrad", "adam", "sgd"])
@pytest.mark.parametrize("days", [0, 60], ids=["times of 4 bytes", "times of 8 bytes"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.15, 0.4, 0.7, 1.0])
def test_a_base_and_its_deltas_are_the_table(optimiser: Any, days: int, share: float) -> None:
    """Few rows are listed and fetched, more are sifted and flagged by a bit each, nearly all are a whole state."""
    n, dim = 3_000, 5
    config = TableConfig(dim=dim, optimiser=optimiser, admit_after=1, expire_after_ms=400 * DAY)
    table, restored = grown(config, n, days), EmbeddingTable("t", config)
    copies, rng = StateCopy(), np.random.default_rng(5)
    restored.load_state({name: np.array(array) for name, array in copies.take({"t": table.state()})["t"].items()})
    for step in range(1, 3):
        mark = table.mark()
        keys = np.concatenate([rng.permutation(n)[: int(share * n)] + 1, [10 * n + step]])  # the last one is new
        table.update(keys, torch.randn(len(keys), dim, generator=torch.Generator().manual_seed(step)), TS + days * DAY + step)
        delta = table.delta(mark)
        assert isinstance(delta, Delta) == (share < WHOLE_FROM)
        taken = copies.take({"t": delta})["t"]
        assert taken.keys() >= table.state().keys()
        restored.apply_delta(taken)
        own, other = table.state(), restored.state()
        assert own.keys() == other.keys()
        for name in own:
            assert np.array_equal(own[name], other[name]), name
        assert np.array_equal(table.gather(keys).of(0), restored.gather(keys).of(0))


def test_a_delta_s_copy_stands_while_learning_goes_on() -> None:
    table = EmbeddingTable("t", TableConfig(dim=2, admit_after=2, sketch_cells=16))
    for ts in range(2):
        table.update(np.arange(1, 50), torch.ones(49, 2), TS + ts)
    mark = table.mark()
    table.update(np.arange(1, 9), torch.ones(8, 2), TS + 2)
    copies = StateCopy()
    taken = copies.take({"t": table.delta(mark)})["t"]
    before = {name: array.copy() for name, array in taken.items()}
    table.update(np.arange(1, 90), torch.ones(89, 2), TS + 3)
    for name, array in taken.items():
        assert np.array_equal(array, before[name]), name


def test_memory_for_a_delta_is_reserved_beforehand() -> None:
    n = 60_000
    table = grown(TableConfig(dim=8), n, 0)
    mark, copies = table.mark(), StateCopy()
    table.update(np.arange(1, n, 2), torch.ones(n // 2, 8), TS)
    lacking = copies.lacks({"t": table.delta(mark)})
    assert sum(lacking.values()) >= n // 2 * (24 + 32 + 4)
    copies.reserve(lacking)
    held = copies.take({"t": table.delta(mark)})["t"]
    assert copies.lacks({"t": table.delta(mark)}) == {}
    again = copies.take({"t": table.delta(mark)})["t"]
    assert all(np.shares_memory(held[name], again[name]) for name in ("key", "weight", "rows"))


def test_a_state_that_does_not_fit_changes_nothing() -> None:
    table, other = (EmbeddingTable("t", TableConfig(dim=2, admit_after=2, sketch_cells=cells)) for cells in (16, 32))
    for each, n in ((table, 9), (other, 3_000)):
        for ts in range(2):
            each.update(np.arange(1, n), torch.ones(n - 1, 2), TS + ts)
    before = {name: np.array(array) for name, array in table.state().items()}
    with pytest.raises(ValueError, match="sketch_cells"):
        table.load_state(other.state())
    for name, array in table.state().items():
        assert np.array_equal(array, before[name]), name


def test_a_delta_of_another_table_changes_nothing() -> None:
    table, other = (EmbeddingTable("t", TableConfig(dim=2)) for _ in range(2))
    for each, ts in ((table, TS), (other, TS + 1)):
        each.update(np.arange(1, 9), torch.ones(8, 2), ts)
    mark = other.mark()
    other.update(np.arange(11, 13), torch.ones(2, 2), TS + 2)
    before = {name: np.array(array) for name, array in table.state().items()}
    with pytest.raises(ValueError, match="not the same table"):
        table.apply_delta(other.delta_state(mark))
    for name, array in table.state().items():
        assert np.array_equal(array, before[name]), name
