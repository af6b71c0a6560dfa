"""Optimisers, sums, shards, admission, expiry, deltas and the torch twin of a table, on input that is meant to break them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learners.tables import EmbeddingTable, Shard, TableConfig, TorchTable, optimisers, shard_of
from learners.tables.admission import AdmitFrequent
from learners.tables.event_times import EventTimes
from learners.tables.eviction import lowest
from learners.tables.index import RowIndex
from negative_queues.draws import mix64

OPTIMISERS: tuple[Literal["adagrad", "adam", "sgd"], ...] = ("adagrad", "adam", "sgd")


def keys(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def copied(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.array(array) for name, array in state.items()}


def assert_same(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)


def learn(table: EmbeddingTable | TorchTable, ids: np.ndarray, ts: int = 1) -> None:
    gathered = (
        table.gather(torch.from_numpy(ids), learn=True)
        if isinstance(table, TorchTable)
        else table.gather(ids, learn=True, ts=ts)
    )
    vectors = gathered.of(0)
    torch.autograd.backward((vectors * torch.arange(1.0, vectors.numel() + 1).view_as(vectors).sin()).sum())
    table.apply_gradients()


def clashing(n: int) -> np.ndarray:
    """Return keys whose hashes end in the same twelve bits: in a small index all of them want one slot."""
    candidates = np.arange(1, 2_000_000)
    with np.errstate(over="ignore"):
        low = np.array([int(mix64(np.uint64(key))) & 0xFFF for key in candidates[: 4096 * n].tolist()])
    found: np.ndarray = candidates[: len(low)][low == 7][:n]
    return found


def same_but_for_the_key(n: int) -> np.ndarray:
    """Return keys whose hashes agree in all that a slot of a small index can tell: where they want to be, and the tag."""
    word, found = (1 << 64) - 1, []
    for middle in range(1, n + 1):
        x = (0x5A5 << 43) | (middle << 20) | 7
        x ^= (x >> 31) ^ (x >> 62)  # SplitMix64 backwards
        x = x * pow(0x94D049BB133111EB, -1, 1 << 64) & word
        x ^= (x >> 27) ^ (x >> 54)
        x = x * pow(0xBF58476D1CE4E5B9, -1, 1 << 64) & word
        found.append(x ^ (x >> 30) ^ (x >> 60))
    return np.array(found, np.uint64).view(np.int64)


BATCHES = {
    "one key": [np.full(300, 42), np.full(7, 42)],
    "empty": [np.zeros(0, np.int64), keys(1), np.zeros(0, np.int64)],
    "missing only": [np.zeros(9, np.int64)],
    "clashes": [clashing(12), clashing(16)[::-1].copy()],
    "clashes of tags": [same_but_for_the_key(5), same_but_for_the_key(600)[::-1].copy(), same_but_for_the_key(400)],
    "extremes": [keys(-(2**63), 2**63 - 1, -1, 1, 0, -(2**63))],
    "growth in the middle": [np.arange(1, 900), np.arange(500, 5_000)],
}


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("batches", BATCHES.values(), ids=BATCHES.keys())
def test_torch_twin_is_the_same_table(optimiser: Literal["adagrad", "adam", "sgd"], batches: list[np.ndarray]) -> None:
    config = TableConfig(dim=3, optimiser=optimiser, initial_accumulated=0.1)
    table, twin = EmbeddingTable("t", config, seed=5), TorchTable("t", config, seed=5)
    for batch in batches * 3:
        learn(table, batch)
        learn(twin, batch)
        assert table.index.find(batch).tolist() == twin.find(torch.from_numpy(batch)).tolist()
    for name, column in twin.columns.items():
        np.testing.assert_allclose(table.state()[name], column.numpy(), rtol=2e-5, atol=1e-6)
    unseen = keys(777_777, 0, 777_777)
    assert torch.equal(table.gather(unseen).of(0), twin.gather(torch.from_numpy(unseen)).of(0))


@given(st.lists(st.lists(st.integers(-3, 9), max_size=20), max_size=6), st.sampled_from([(1, 1.0), (3, 1.0), (1, 0.4)]))
@settings(deadline=None, max_examples=40)
def test_twin_admits_the_same(batches: list[list[int]], admission: tuple[int, float]) -> None:
    config = TableConfig(dim=2, admit_after=admission[0], admit_probability=admission[1], sketch_cells=1024)
    table, twin = EmbeddingTable("t", config), TorchTable("t", config)
    for batch in batches:
        learn(table, keys(*batch))
        learn(twin, keys(*batch))
    assert table.state()["key"].tolist() == twin.keys.tolist()
    np.testing.assert_allclose(table.state()["weight"], twin.columns["weight"].numpy(), rtol=2e-5, atol=1e-6)


def test_keys_with_one_tag_are_told_apart() -> None:
    ids = same_but_for_the_key(40)
    with np.errstate(over="ignore"):
        hashes = np.array([int(mix64(key)) for key in ids.view(np.uint64)], np.uint64)
    assert np.unique(hashes & np.uint64(0x7FF)).tolist() == [7]
    assert np.unique(hashes >> np.uint64(43)).tolist() == [0x5A5]
    index = RowIndex("t", 100)
    _, new = index.find_or_admit(ids[:20])
    assert index.find(ids[:20]).tolist() == sorted(new.tolist(), key=lambda row: np.flatnonzero(ids == index.keys[row])[0])
    assert index.find(ids[20:]).tolist() == [-1] * 20


def test_lazy_adam_is_adam_on_each_row_alone() -> None:
    rng = np.random.default_rng(0)
    table = EmbeddingTable("t", TableConfig(dim=3, optimiser="adam", rate=0.05))
    start = table.gather(np.arange(1, 6)).of(0).clone()
    alone = [torch.nn.Parameter(row.clone()) for row in start]
    peers = [torch.optim.Adam([row], lr=0.05) for row in alone]
    for _ in range(12):
        ids = rng.permutation(np.arange(1, 6))[: rng.integers(1, 6)]
        grad = torch.from_numpy(rng.normal(size=(len(ids), 3)).astype(np.float32))
        table.update(ids, grad)
        for key, row in zip(ids, grad, strict=True):
            alone[key - 1].grad = row
            peers[key - 1].step()
    torch.testing.assert_close(table.gather(np.arange(1, 6)).of(0), torch.stack([row.detach() for row in alone]))


def test_descent_by_hand() -> None:
    table = EmbeddingTable("t", TableConfig(dim=1, optimiser="sgd", rate=0.5, initial_scale=0.0))
    table.update(keys(4, 0, 5, 4), torch.tensor([[1.0], [8.0], [2.0], [3.0]]))
    assert table.gather(keys(4, 5, 0)).of(0).flatten().tolist() == [-2.0, -1.0, 0.0]


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("n", [0, 1, 300, 9_000])
def test_update_sums_the_gradients_of_a_key(optimiser: Literal["adagrad", "adam", "sgd"], n: int) -> None:
    """The fused sum against one gradient per key, summed by NumPy."""
    rng = np.random.default_rng(n)
    ids = np.concatenate([np.arange(n), rng.integers(0, max(n, 1), 2 * n), np.full(n // 2, 3)])
    grad = rng.integers(-4, 5, (len(ids), 2)).astype(np.float32)  # whole numbers: every order of summing gives the same
    one, other = (EmbeddingTable("t", TableConfig(dim=2, optimiser=optimiser)) for _ in range(2))
    distinct, inverse = np.unique(ids, return_inverse=True)
    summed = np.zeros((len(distinct), 2), np.float32)
    np.add.at(summed, inverse, grad)
    one.update(ids, torch.from_numpy(grad), ts=7)
    other.update(distinct, torch.from_numpy(summed), ts=7)
    assert_same(one.state(), other.state())
    rows = one.index.find(ids)
    one.update_rows(rows, torch.from_numpy(grad))
    other.update_rows(other.index.find(distinct), torch.from_numpy(summed))
    assert_same(one.state(), other.state())


def test_shards_together_are_one_table() -> None:
    config, rng = TableConfig(dim=2, rate=0.3), np.random.default_rng(1)
    whole = EmbeddingTable("t", config)
    parts = [EmbeddingTable("t", config, shard=Shard(at, 3)) for at in range(3)]
    for ts in range(1, 9):
        ids = rng.integers(-200, 200, 150)
        grad = torch.from_numpy(rng.normal(size=(150, 2)).astype(np.float32))
        whole.update(ids, grad, ts)
        for at, part in enumerate(parts):
            own = shard_of(ids, 3) == at
            part.update(ids[own], grad[torch.from_numpy(own)], ts)
    everything = np.setdiff1d(np.arange(-200, 200), [0])
    assert sum(map(len, parts)) == len(whole)
    for at, part in enumerate(parts):
        own = everything[shard_of(everything, 3) == at]
        assert len(own) > 100
        assert torch.equal(part.gather(own).of(0), whole.gather(own).of(0))
        np.testing.assert_array_equal(part.statistics(own), whole.statistics(own))
    with pytest.raises(ValueError, match="another shard than 0 of 3; route keys by shard_of"):
        parts[0].gather(everything[shard_of(everything, 3) == 1])


@given(st.lists(st.integers(0, 30), max_size=200), st.integers(2, 5))
@settings(deadline=None, max_examples=40)
def test_sketch_never_admits_too_late(ids: list[int], least: int) -> None:
    """Sixteen cells a row for thirty keys: counts are too high here and there, never too low."""
    admission, seen = AdmitFrequent(least, 16, seed=3), dict.fromkeys(ids, 0)
    for key in ids[:100]:
        seen[key] += 1
        if seen[key] >= least:
            assert admission.admit(keys(key)).tolist() == [key]
        else:
            admission.admit(keys(key))


def test_admission_by_chance_takes_its_share_and_says_the_same_again() -> None:
    config = TableConfig(dim=1, admit_probability=0.3)
    one, other = EmbeddingTable("t", config), EmbeddingTable("t", config)
    for table in (one, other):
        table.gather(np.arange(1, 10_001), learn=True)
    assert abs(len(one) - 3_000) < 200
    assert_same(one.state(), other.state())
    one.gather(np.arange(1, 10_001), learn=True)
    assert abs(len(one) - 5_100) < 200


def test_a_key_that_was_not_admitted_learns_nothing() -> None:
    table = EmbeddingTable("t", TableConfig(dim=2, admit_after=3))
    before = table.gather(keys(8)).of(0).clone()
    table.update(keys(8, 8), torch.ones(2, 2))
    assert len(table) == 0
    assert torch.equal(table.gather(keys(8)).of(0), before)
    table.update(keys(8), torch.ones(1, 2))
    assert len(table) == 1
    assert not torch.equal(table.gather(keys(8)).of(0), before)


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-(2**62), 2**62), st.booleans()), max_size=40), st.integers(0, 40))
@settings(deadline=None, max_examples=60)
def test_lowest_equals_a_stable_sort(rows: list[tuple[int, int, bool]], k: int) -> None:
    eligible = np.array([row[2] for row in rows], np.bool_)
    k = min(k, int(eligible.sum()))
    criteria = [np.array([row[c] for row in rows], np.int64) for c in range(2)]
    order = sorted(np.flatnonzero(eligible).tolist(), key=lambda row: (rows[row][0], rows[row][1], row))
    assert lowest(criteria, eligible, k).tolist() == sorted(order[:k])


@given(st.lists(st.tuples(st.integers(0, 7), st.one_of(st.just(0), st.integers(0, 2**33), st.integers(-(2**60), 2**60)))))
@settings(deadline=None, max_examples=60)
def test_times_are_exact_in_four_bytes_and_in_eight(writes: list[tuple[int, int]]) -> None:
    times, expected = EventTimes(np.zeros(8, np.uint32), np.zeros(8, np.uint32)), [0] * 8
    for row, ts in writes:
        code = times.code(ts)
        times.last[row], expected[row] = code, ts
        assert times.last_of(slice(0, 8)).tolist() == expected


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_a_gradient_that_is_no_number_is_not_hidden(optimiser: Literal["adagrad", "adam", "sgd"]) -> None:
    config = TableConfig(dim=4, optimiser=optimiser)
    grad = torch.ones(2, 4)
    grad[1, 2] = torch.nan
    rows = np.array([1, 2], np.int32)
    ends = [torch.ones(3, 4) for _ in range(2)]
    kept = [{name: torch.zeros(3, *shape) for name, shape in optimisers.columns(config).items()} for _ in ends]
    optimisers.compiled(config)(ends[0].numpy(), *(column.numpy() for column in kept[0].values()), rows, grad.numpy())
    optimisers.step_torch(config, ends[1], kept[1], torch.from_numpy(rows), grad)
    torch.testing.assert_close(*ends, equal_nan=True)
    assert ends[0][2].isnan().any()
    assert ends[0][:2].isfinite().all()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is counted as Linux does")
def test_longer_times_take_no_memory_for_rows_that_are_only_reserved() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    n, first_ts = 1 << 23, 1_600_000_000_000
    times = EventTimes(np.zeros(n, np.uint32), np.zeros(n, np.uint32))
    times.last[:10] = times.code(first_ts)
    EventTimes(np.zeros(1, np.uint32), np.zeros(1, np.uint32)).last_of(slice(0, 1))  # compiles
    before = resident()
    times.code(first_ts + 60 * 86_400_000)
    assert times.wide
    assert times.last_of(slice(8, 12)).tolist() == [first_ts, first_ts, 0, 0]
    assert resident() - before < n  # both are 16 n bytes


def test_expiry_by_event_time_reports_the_keys() -> None:
    table = EmbeddingTable("t", TableConfig(dim=1, expire_after_ms=800))
    gone: list[int] = []
    table.index.on_evict.append(lambda evicted: gone.extend(evicted.tolist()))
    table.gather(keys(1, 2), learn=True, ts=1_000)
    table.gather(keys(2), learn=True, ts=1_700)
    assert gone == []
    table.gather(keys(3), learn=True, ts=1_801)
    assert gone == [1]
    assert table.describe()["admitted"] == 3
    assert table.describe()["evicted"] == 1


def test_what_the_batch_asks_for_does_not_expire_in_it() -> None:
    """Else a row would be learned from another vector than it was scored with."""
    table = EmbeddingTable("t", TableConfig(dim=2, expire_after_ms=800))
    learn(table, keys(1, 2), ts=1_000)
    scored = table.gather(keys(1)).of(0)
    assert torch.equal(table.gather(keys(1), learn=True, ts=9_000).of(0).detach(), scored)
    assert table.index.last_evicted.tolist() == [2]


def test_the_rarest_give_way() -> None:
    table = EmbeddingTable("t", TableConfig(dim=1, max_rows=5, evict="rarest"))
    for ts, batch in enumerate([keys(1, 2, 3, 4), keys(1, 2, 4), keys(1, 4)], 1):
        table.gather(batch, learn=True, ts=ts)
    table.gather(keys(9), learn=True, ts=9)
    assert table.index.last_evicted.tolist() == [3]


def test_a_delta_needs_the_latest_mark_and_its_own_start() -> None:
    table = EmbeddingTable("t", TableConfig(dim=1))
    with pytest.raises(ValueError, match="mark 0 is not the latest one; write a whole state"):
        table.delta_state(0)
    learn(table, keys(1, 2))
    since = table.mark()
    learn(table, keys(2, 3))
    delta = copied(table.delta_state(since))
    assert delta["key"].tolist() == [2, 3]
    with pytest.raises(ValueError, match="the delta starts from 3 rows, this table has 1; load the state"):
        EmbeddingTable("t", TableConfig(dim=1)).apply_delta(delta)
    table.mark()
    with pytest.raises(ValueError, match="not the latest"):
        table.delta_state(since)


def test_a_step_after_the_mark_is_in_the_delta() -> None:
    table, other = (EmbeddingTable("t", TableConfig(dim=2)) for _ in range(2))
    gathered = table.gather(keys(5, 6), learn=True, ts=1)
    other.load_state(copied(table.state()))
    since = table.mark()
    torch.autograd.backward(gathered.weight.sum())
    table.apply_gradients()
    other.apply_delta(table.delta_state(since))
    assert_same(table.state(), other.state())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 0}, "dim = 0 must be at least 1"),
        ({"admit_after": 0}, "admit_after = 0 must be at least 1"),
        ({"admit_probability": 0.0}, r"admit_probability = 0.0 must be in \(0, 1\]"),
        ({"admit_after": 2, "admit_probability": 0.5}, "two ways to admit; set one"),
        ({"expire_after_ms": 0}, "expire_after_ms = 0 must be at least 1 ms"),
        ({"sketch_cells": 100}, "sketch_cells = 100 must be a power of two"),
        ({"betas": (0.9, 1.0)}, "betas"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EmbeddingTable("t", TableConfig(**options))


def test_all_of_this_without_compiling() -> None:
    """Some of the tests above as plain Python: what coverage sees, and what the kernels mean."""
    chosen = (
        "torch_twin and (one or empty or missing or extremes) or descent or lowest or admitted or delta or rarest or told_apart"
    )
    ignored = "ignore:overflow encountered:RuntimeWarning"  # the hash is arithmetic modulo 2**64
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            "-p",
            "no:cacheprovider",
            "-W",
            ignored,
            "-k",
            f"({chosen}) and not compiling",
            __file__,
        ],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-3000:]
    assert "passed" in run.stdout
