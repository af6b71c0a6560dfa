"""Sequences and versions in the joiner's memory: insertion, point-in-time ends, trimming that nobody sees."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_app.joiner.core.arena import find, vector_at
from stream_app.joiner.core.layout import ENTRY, HEAD, ITEM, QUERIES, QUERY, QUERY_ENTRY, SEQUENCES, USER, VERSION_FEATURES
from stream_app.joiner.core.sequences import (
    SPARE,
    end_before,
    holds,
    insert_entry,
    insert_query,
    learn_category,
    trim,
    upsert,
    version_at,
)
from stream_app.joiner.core.slab import Slab
from stream_app.joiner.scan.compiled import kernel

TIMES = st.lists(st.integers(0, 30), max_size=60)


# Kernels are called from kernels only: these let a test in.


@kernel
def _insert_entries(m: Any, times: Any) -> None:
    vector = vector_at(m, find(m, USER, 1), SEQUENCES)
    for item, ts in enumerate(times):
        insert_entry(m, vector, item, 0, ts)


@kernel
def _insert_queries(m: Any, queries: Any) -> None:
    user, learned = find(m, USER, 1), find(m, QUERY, 1)
    for i in range(len(queries)):
        insert_query(m, vector_at(m, user, QUERIES), queries[i, 0], learned + HEAD, queries[i, 1])


@kernel
def _end_before(m: Any, ts: int) -> int:
    return int(end_before(m, vector_at(m, find(m, USER, 1), SEQUENCES), ENTRY, ts))


@kernel
def _holds(m: Any, item: int, ts: int) -> bool:
    return bool(holds(m, vector_at(m, find(m, USER, 1), SEQUENCES), item, ts))


@kernel
def _trim(m: Any, length: int, oldest: int) -> int:
    return int(trim(m, vector_at(m, find(m, USER, 1), SEQUENCES), ENTRY, length, oldest))


@kernel
def _upsert(m: Any, key: int, ts: int, category: int, oldest: int) -> None:
    at = upsert(m, find(m, ITEM, key), VERSION_FEATURES, ts, oldest)
    if at:
        m.words[at + 1], m.words[at + 2] = category, 0


@kernel
def _version(m: Any, key: int, ts: int) -> tuple[int, int]:
    at = version_at(m, find(m, ITEM, key), VERSION_FEATURES, ts)
    return (m.words[at], m.words[at + 1]) if at else (-1, -1)


@kernel
def _learn(m: Any, category: int) -> bool:
    return bool(learn_category(m, find(m, QUERY, 1) + HEAD, category))


@kernel
def _address(m: Any, kind: int, key: int, vector: int) -> int:
    return int(vector_at(m, find(m, kind, key), vector))


def slab() -> Slab:
    """Memory with user 1, query 1 and items 1 and 2."""
    made = Slab(1)
    made.load(np.array([[USER, 1], [QUERY, 1], [ITEM, 1], [ITEM, 2]]), [None] * 4)
    made._grow(1 << 16)
    return made


def entries(memory: Slab, kind: int, key: int, vector: int, width: int) -> list[list[int]]:
    at = _address(memory.memory, kind, key, vector)
    first, n = memory.words[at : at + 2].tolist()
    found: list[list[int]] = memory.words[first : first + n].reshape(-1, width).tolist()
    return found


def sequence(times: list[int]) -> Slab:
    made = slab()
    _insert_entries(made.memory, np.array(times, np.int64))
    return made


def items(memory: Slab) -> list[tuple[int, int]]:
    return [(item, ts) for item, _, ts in entries(memory, USER, 1, SEQUENCES, ENTRY)]


@given(times=TIMES)
def test_entries_are_ordered_by_time_and_then_by_arrival(times: list[int]) -> None:
    assert items(sequence(times)) == sorted(enumerate(times), key=lambda entry: entry[1])


@given(times=TIMES, ts=st.integers(-1, 31))
def test_the_end_before_a_time(times: list[int], ts: int) -> None:
    assert _end_before(sequence(times).memory, ts) == ENTRY * sum(entry < ts for entry in times)


@given(times=TIMES, item=st.integers(0, 60), ts=st.integers(0, 30))
def test_what_a_sequence_holds(times: list[int], item: int, ts: int) -> None:
    assert _holds(sequence(times).memory, item, ts) == ((item, ts) in enumerate(times))


@given(times=TIMES, length=st.integers(1, 9), oldest=st.integers(0, 30), later=st.integers(0, 9))
def test_trimming_changes_no_history_of_a_request_that_may_come(times: list[int], length: int, oldest: int, later: int) -> None:
    whole, trimmed = sequence(times), sequence(times)
    assert _trim(trimmed.memory, length, oldest) == 0
    ts = oldest + later

    def visible(memory: Slab) -> list[tuple[int, int]]:
        return items(memory)[: _end_before(memory.memory, ts) // ENTRY][-length:]

    assert visible(trimmed) == visible(whole)
    assert len([entry for entry in items(trimmed) if entry[1] < oldest]) <= length


def test_a_sequence_that_pending_requests_hold_up_is_cut_at_its_limit() -> None:
    limit = 5 + SPARE
    memory = sequence(list(range(limit + 7)))
    assert _trim(memory.memory, 5, 0) == 7
    assert len(items(memory)) == limit
    assert items(memory)[-1] == (limit + 6, limit + 6)


def queries(*pairs: tuple[int, int]) -> list[tuple[int, int]]:
    memory = slab()
    _insert_queries(memory.memory, np.array(pairs, np.int64))
    return [(entry[0], entry[-1]) for entry in entries(memory, USER, 1, QUERIES, QUERY_ENTRY)]


def test_equal_neighbouring_queries_merge_into_the_earlier_one() -> None:
    assert queries((1, 10), (1, 20), (2, 30), (1, 40)) == [(1, 10), (2, 30), (1, 40)]
    assert queries((1, 10), (2, 30), (1, 20)) == [(1, 10), (2, 30)]
    assert queries((1, 10), (2, 30), (2, 20)) == [(1, 10), (2, 20)]
    assert queries((1, 10), (2, 30), (3, 20)) == [(1, 10), (3, 20), (2, 30)]


VERSIONS = st.lists(st.integers(0, 20), max_size=12)


@given(times=VERSIONS, oldest=st.integers(0, 20), later=st.integers(0, 9))
@settings(max_examples=50)
def test_the_newest_version_by_time_survives_pruning(times: list[int], oldest: int, later: int) -> None:
    memory = slab()
    for category, ts in enumerate(times):
        _upsert(memory.memory, 1, ts, category, oldest)
        _upsert(memory.memory, 2, ts, category, -1)
    ts = oldest + later
    known = [(time, category) for category, time in enumerate(times) if time <= ts]
    expected = max(known, default=(-1, -1))
    assert _version(memory.memory, 1, ts) == _version(memory.memory, 2, ts) == expected
    assert len([entry for entry in entries(memory, ITEM, 1, 0, VERSION_FEATURES) if entry[0] <= oldest]) <= 1


def test_a_query_keeps_its_four_most_recent_distinct_categories() -> None:
    memory = slab()
    assert [_learn(memory.memory, category) for category in (1, 2, 3, 2, 2, 4, 5)] == [True] * 4 + [False] + [True] * 2
    at = memory.slots[memory.slots[:, 1] == 1, 0]
    record = next(record for record in at.tolist() if record and memory.words[record] == QUERY)
    assert memory.words[record + HEAD : record + HEAD + 4].tolist() == [5, 4, 2, 3]
