"""Sequences: insertion, point-in-time ends, trimming that nobody sees."""

from __future__ import annotations

from array import array

from hypothesis import given
from hypothesis import strategies as st

from stream_app.joiner.histories import ITEM, QUERY, SPARE, end_before, holds, insert, insert_query, limit, trim
from stream_app.joiner.metadata import query_categories_with, upserted, version_at
from stream_app.joiner.pending import Version

TIMES = st.lists(st.integers(0, 30), max_size=60)


def sequence(times: list[int]) -> array[int]:
    entries: array[int] = array("q")
    for item, ts in enumerate(times):
        insert(entries, (item, 0, ts))
    return entries


def items(entries: array[int]) -> list[tuple[int, int]]:
    return [(entries[at], entries[at + 2]) for at in range(0, len(entries), ITEM)]


@given(times=TIMES)
def test_entries_are_ordered_by_time_and_then_by_arrival(times: list[int]) -> None:
    assert items(sequence(times)) == sorted(enumerate(times), key=lambda entry: entry[1])


@given(times=TIMES, ts=st.integers(-1, 31))
def test_the_end_before_a_time(times: list[int], ts: int) -> None:
    assert end_before(sequence(times), ITEM, ts) == ITEM * sum(entry < ts for entry in times)


@given(times=TIMES, item=st.integers(0, 60), ts=st.integers(0, 30))
def test_what_a_sequence_holds(times: list[int], item: int, ts: int) -> None:
    assert holds(sequence(times), item, ts) == ((item, ts) in enumerate(times))


@given(times=TIMES, length=st.integers(1, 9), oldest=st.integers(0, 30), later=st.integers(0, 9))
def test_trimming_changes_no_history_of_a_request_that_may_come(times: list[int], length: int, oldest: int, later: int) -> None:
    whole, trimmed = sequence(times), sequence(times)
    assert trim(trimmed, ITEM, length, oldest) == 0
    ts = oldest + later
    visible = items(whole)[: end_before(whole, ITEM, ts) // ITEM][-length:]
    assert items(trimmed)[: end_before(trimmed, ITEM, ts) // ITEM][-length:] == visible
    assert len([entry for entry in items(trimmed) if entry[1] < oldest]) <= length


def test_a_sequence_that_pending_requests_hold_up_is_cut_at_its_limit() -> None:
    entries = sequence(list(range(limit(5) + 7)))
    assert trim(entries, ITEM, 5, oldest_needed=0) == 7
    assert len(entries) // ITEM == 5 + SPARE
    assert entries[-1] == limit(5) + 6


def queries(*pairs: tuple[int, int]) -> list[tuple[int, int]]:
    entries: array[int] = array("q")
    for query, ts in pairs:
        insert_query(entries, (query, 0, 0, 0, 0, ts))
    return [(entries[at], entries[at + QUERY - 1]) for at in range(0, len(entries), QUERY)]


def test_equal_neighbouring_queries_merge_into_the_earlier_one() -> None:
    assert queries((1, 10), (1, 20), (2, 30), (1, 40)) == [(1, 10), (2, 30), (1, 40)]
    assert queries((1, 10), (2, 30), (1, 20)) == [(1, 10), (2, 30)]
    assert queries((1, 10), (2, 30), (2, 20)) == [(1, 10), (2, 20)]
    assert queries((1, 10), (2, 30), (3, 20)) == [(1, 10), (3, 20), (2, 30)]


VERSIONS = st.lists(st.integers(0, 20), max_size=12)


@given(times=VERSIONS, oldest=st.integers(0, 20), later=st.integers(0, 9))
def test_the_newest_version_by_time_survives_pruning(times: list[int], oldest: int, later: int) -> None:
    pruned: list[Version] = []
    whole: list[Version] = []
    for category, ts in enumerate(times):
        version = Version(ts, category, 0, ())
        pruned, whole = upserted(pruned, version, oldest), upserted(whole, version, -1)
    ts = oldest + later
    known = [version for version in whole if version.ts <= ts]
    expected = max(known, key=lambda version: (version.ts, version.category), default=None)
    assert version_at(pruned, ts) == version_at(whole, ts) == expected
    assert len([version for version in pruned if version.ts <= oldest]) <= 1


def test_a_query_keeps_its_four_most_recent_distinct_categories() -> None:
    known: tuple[int, ...] = ()
    for category in (1, 2, 3, 2, 4, 5):
        known = query_categories_with(known, category)
    assert known == (5, 4, 2, 3)
