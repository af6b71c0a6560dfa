"""Item vectors merged into the stream: order, point of the stream, restart, what is refused."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learners.vectors import VectorError, VectorStore
from stream_app.config import ConfigError, Layer, RunConfig, resolve
from stream_app.events import ITEMS, Item, hash_id
from stream_app.item_vectors import ItemVectors, item_vectors
from stream_app.joiner.config import JoinConfig
from stream_app.topics import Message, TopicError
from stream_app.topics.memory import MemoryLog
from stream_app.vectors_config import VectorsConfig

NOW = 1_700_000_000_000
DIM, SKEW = 2, 1_000_000
RECORDS = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 30), st.integers(0, 6) | st.none()), max_size=40)


def message(item: str, ts: int, vector: Sequence[float] | None) -> Message:
    return Message(NOW, item.encode(), msgspec.json.encode(Item(item, NOW + ts, vector=None if vector is None else [*vector])))


def log_of(partitions: Sequence[Sequence[Message]]) -> MemoryLog:
    log = MemoryLog()
    topic = log.create(ITEMS, len(partitions))
    for partition, messages in enumerate(partitions):
        topic.append(partition, messages)
    return log


def reader(log: MemoryLog, capacity: int = 100, *, live: bool = False) -> ItemVectors:
    return ItemVectors(log.topic(ITEMS), VectorStore(None, DIM, capacity), max_clock_skew_ms=SKEW, live=live)


def held(items: ItemVectors, names: Sequence[str]) -> dict[str, list[float]]:
    vectors, found = items.store.get(np.array([hash_id("item", name) for name in names]))
    return {name: vector.tolist() for name, vector, there in zip(names, vectors, found, strict=True) if there}


def same(one: ItemVectors, other: ItemVectors) -> bool:
    a, b = one.state(), other.state()
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def partitions_of(records: Sequence[tuple[int, int, int | None]]) -> list[list[Message]]:
    parts: list[list[Message]] = [[], []]
    for n, (partition, ts, item) in enumerate(records):
        parts[partition].append(message(f"i{item}", ts, None if item is None else (n, -n)))
    return parts


def oracle(parts: Sequence[Sequence[Message]], ts: int, capacity: int) -> dict[str, list[float]]:
    merged = []
    for partition, messages in enumerate(parts):
        high = -1
        for offset, each in enumerate(messages):
            item = msgspec.json.decode(each.value, type=Item)
            high = max(high, item.ts)
            merged.append((high, partition, offset, item))
    store: dict[str, list[float]] = {}
    for effective, _, _, item in sorted(merged, key=lambda row: row[:3]):
        if effective <= NOW + ts and item.vector is not None:
            store.pop(item.item_id, None)
            store[item.item_id] = item.vector
            if len(store) > capacity:
                del store[next(iter(store))]
    return store


NAMES = [f"i{n}" for n in range(7)]


@settings(max_examples=150, deadline=None)
@given(records=RECORDS, points=st.lists(st.integers(0, 35), min_size=1, max_size=6), capacity=st.integers(1, 8))
def test_what_is_held_is_a_function_of_the_log_and_the_point(
    records: list[tuple[int, int, int | None]], points: list[int], capacity: int
) -> None:
    parts = partitions_of(records)
    log = log_of(parts)
    stepwise, saved = reader(log, capacity), None
    for ts in sorted(points):
        stepwise.advance(NOW + ts)
        assert held(stepwise, NAMES) == oracle(parts, ts, capacity)
        restarted = reader(log, capacity)
        if saved is not None:
            restarted.load_state(saved)
        restarted.advance(NOW + ts)
        assert same(restarted, stepwise)
        saved = {name: np.array(array) for name, array in stepwise.state().items()}
    at_once = reader(log, capacity)
    at_once.advance(NOW + max(points))
    assert same(at_once, stepwise)


def test_many_records_are_merged_across_reads() -> None:
    """More than one read's worth in each partition, equal times among them."""
    parts = [[message(f"{p}-{n % 1500}", n // 3, (p, n)) for n in range(2_600)] for p in range(2)]
    items = reader(log_of(parts), capacity=700)
    names = [f"{p}-{n}" for p in range(2) for n in range(1_500)]
    for ts in (100, 101, 700):
        items.advance(NOW + ts)
        assert held(items, names) == oracle(parts, ts, 700)


@settings(max_examples=60, deadline=None)
@given(records=RECORDS, cuts=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 35)), min_size=1, max_size=6))
def test_a_live_run_is_repeated_by_its_positions(
    records: list[tuple[int, int, int | None]], cuts: list[tuple[int, int]]
) -> None:
    """Records come while steps are made, some after the step that would have had them."""
    log = log_of([[], []])
    topic, live = log.topic(ITEMS), reader(log, 5, live=True)
    stands, came = [], 0
    for upto, ts in sorted(cuts):
        for partition, messages in enumerate(partitions_of(records[came:upto])):
            topic.append(partition, messages)
        came = max(came, upto)
        live.advance(NOW + ts)
        stands.append(live.positions)
    again = reader(log, 5, live=True)
    for positions in stands:
        again.advance_to(positions)
    names = ["store.key", "store.older", "store.newer", "store.vector", "store.sizes"]
    assert again.positions == live.positions
    assert all(np.array_equal(again.state()[name], live.state()[name]) for name in names)


def test_a_live_run_never_waits_and_takes_what_has_come() -> None:
    log = log_of([[], []])
    items = reader(log, live=True)
    items.advance(NOW + 10)
    topic = log.topic(ITEMS)
    topic.append(1, [message("a", 5, (1, 2)), message("b", 15, (3, 4))])
    items.advance(NOW + 11)
    assert held(items, ["a", "b"]) == {"a": [1, 2]}
    items.advance(NOW + 15)
    assert held(items, ["a", "b"]) == {"a": [1, 2], "b": [3, 4]}


def test_a_replay_ends_where_the_topic_ended_when_it_began() -> None:
    log = log_of([[message("a", 1, (1, 2))]])
    items = reader(log)
    log.topic(ITEMS).append(0, [message("b", 2, (3, 4))])
    items.advance(NOW + 9)
    assert held(items, ["a", "b"]) == {"a": [1, 2]}


def test_a_log_that_has_become_shorter_is_refused() -> None:
    shorter = reader(log_of([[]]))
    shorter.load_state(reader(log_of([[message("a", 1, (1, 2))]])).state())
    with pytest.raises(TopicError, match="ends at 0, and had 1 records when the run began"):
        shorter.advance(NOW)


def test_what_a_joiner_refuses_is_passed_over_and_moves_no_time() -> None:
    bad = [
        Message(NOW, b"a", b"{"),
        Message(NOW, b"a", b'{"item_id": "a", "ts": 1, "vector": [1, 2]}'),
        message("a", SKEW + 1, (1, 2)),
        Message(NOW, b"a", msgspec.json.encode({"item_id": "a", "ts": NOW + 100, "vector": ["1", 2]})),
        message("a", 100, (1e39, 2)),
    ]
    items = reader(log_of([[*bad, message("b", 1, (3, 4)), message("c", 0, None)]]))
    items.advance(NOW + 1)
    assert held(items, ["a", "b", "c"]) == {"b": [3, 4]}
    assert items.positions == (7,)


def test_the_first_vector_must_have_the_config_s_length_and_later_ones_are_counted() -> None:
    with pytest.raises(VectorError, match=r"item 'a' has a vector of 3 numbers, vectors.dim = 2: set vectors.dim = 3"):
        reader(log_of([[message("a", 0, (1, 2, 3))]])).advance(NOW)
    items = reader(log_of([[message("a", 0, (1, 2)), message("a", 1, (1, 2, 3))]]))
    items.advance(NOW + 1)
    assert items.refused == 1
    assert held(items, ["a"]) == {"a": [1, 2]}


def test_another_length_is_as_if_it_were_not_there_where_the_joiner_makes_a_dead_letter_of_it() -> None:
    log = log_of([[message("a", 100, (1, 2, 3)), message("b", 1, (3, 4))]])
    items = item_vectors(log, RunConfig(vectors=VectorsConfig(dim=2), join=JoinConfig(vector_dim=2)))
    assert items is not None
    items.advance(NOW + 1)
    assert held(items, ["a", "b"]) == {"b": [3, 4]}
    assert items.refused == 0


def test_two_lengths_in_a_config_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"the config: join.vector_dim = 3 and vectors.dim = 2"):
        resolve([Layer("log.toml", {"join": {"vector_dim": 3}}), Layer("mine.toml", {"vectors": {"dim": 2}})])


def test_a_log_without_items_is_refused() -> None:
    config = RunConfig(vectors=VectorsConfig(dim=4))
    with pytest.raises(ConfigError, match=r"vectors.dim = 4, and the log has no topic 'items'"):
        item_vectors(MemoryLog(), config)
    assert item_vectors(MemoryLog(), RunConfig()) is None


def test_other_partitions_are_refused() -> None:
    with pytest.raises(VectorError, match="has 1 partitions, the run read 2"):
        reader(log_of([[]])).load_state(reader(log_of([[], []])).state())
