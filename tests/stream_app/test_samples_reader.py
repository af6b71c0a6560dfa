"""The sample reader: one order whatever the blocks, each row once, a stop at whatever is wrong."""

from __future__ import annotations

import re
from collections.abc import Callable

import hypothesis
import hypothesis.strategies as st
import msgspec
import pytest

from learners.samples import SampleBlock, SampleError
from stream_app.sample_sources import TopicSource
from stream_app.samples_reader import Batch, Range, SampleReader, SequenceGapError
from stream_app.topics import Message, Topic
from stream_app.topics.memory import MemoryLog

Make = Callable[..., SampleBlock]


def put(topic: Topic, *blocks: SampleBlock, partition: int = 0) -> None:
    for block in blocks:
        topic.append(partition, [Message(int(block.column("due")[-1]), b"", block.to_ipc())])


def read(topic: Topic, batch_requests: int = 3) -> list[Batch]:
    source = TopicSource(topic)
    return list(SampleReader(source, source.schema(), source.places(), batch_requests))


def keys(batches: list[Batch]) -> list[tuple[int, int]]:
    return [
        (int(p), int(s))
        for batch in batches
        for p, s in zip(batch.block.column("partition"), batch.block.column("seq"), strict=True)
    ]


PARTITIONS = st.lists(st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=6), max_size=6), min_size=1, max_size=4)
"""Per partition, per block, the dues of its rows."""


@hypothesis.given(PARTITIONS, st.integers(1, 7), st.data())
def test_order_is_due_partition_seq_and_going_on_gives_the_rest(
    make_block: Make, partitions: list[list[list[int]]], batch_requests: int, data: st.DataObject
) -> None:
    topic = MemoryLog().create("samples", len(partitions))
    expected = []
    for p, blocks in enumerate(partitions):
        seq, highest = 0, 0
        for dues in blocks:
            put(topic, make_block(range(seq, seq + len(dues)), dues, partition=p), partition=p)
            for due in dues:
                highest = max(highest, due)
                expected.append((highest, p, seq))
                seq += 1
    expected.sort()
    source = TopicSource(topic)
    if not expected:
        with pytest.raises(SampleError, match="is empty"):
            source.schema()
        return
    schema = source.schema()
    read_rows = data.draw(st.integers(1, 12))
    batches = list(SampleReader(source, schema, source.places(), batch_requests, read_rows=read_rows))
    assert keys(batches) == [(p, seq) for _, p, seq in expected]
    assert all(len(batch.block) == batch_requests for batch in batches[:-1])
    assert [batch.order_due for batch in batches] == [
        expected[min(i + batch_requests, len(expected)) - 1][0] for i in range(0, len(expected), batch_requests)
    ]
    k = data.draw(st.integers(0, len(batches) - 1))
    rest = list(SampleReader(source, schema, batches[k].places, batch_requests, read_rows=data.draw(st.integers(1, 12))))
    assert [batch.block.batch for batch in rest] == [batch.block.batch for batch in batches[k + 1 :]]
    assert [batch.places for batch in rest] == [batch.places for batch in batches[k + 1 :]]


@pytest.fixture
def topic() -> Topic:
    return MemoryLog().create("samples", 1)


def test_duplicates_of_a_joiner_that_crashed_are_dropped(topic: Topic, make_block: Make) -> None:
    put(topic, make_block([0, 1, 2], [1, 2, 3]), make_block([1, 2, 3, 4], [2, 3, 4, 5]), make_block([3, 4], [4, 5]))
    put(topic, make_block([5], [6]))
    assert keys(read(topic)) == [(0, seq) for seq in range(6)]


@pytest.mark.parametrize("seqs", [[[0, 1], [3]], [[0, 1, 3]]])
def test_a_gap_stops_the_reader(topic: Topic, make_block: Make, seqs: list[list[int]]) -> None:
    put(topic, *(make_block(part, part) for part in seqs))
    with pytest.raises(SequenceGapError, match=r"partition 0, block \d: seq 2 was expected, 3 came"):
        read(topic)


def test_a_gap_after_the_place_is_found(topic: Topic, make_block: Make) -> None:
    put(topic, make_block([0, 1], [0, 1]), make_block([3], [3]))
    source = TopicSource(topic)
    schema = source.schema()
    first = next(iter(SampleReader(source, schema, source.places(), 2)))
    with pytest.raises(SequenceGapError, match="seq 2 was expected"):
        list(SampleReader(source, schema, first.places, 2))


def test_the_first_row_seen_sets_the_mark(topic: Topic, make_block: Make) -> None:
    put(topic, make_block([7, 8], [0, 1]), make_block([9], [2]))
    assert keys(read(topic)) == [(0, 7), (0, 8), (0, 9)]


def test_what_is_wrong_is_said_after_the_rows_before_it(topic: Topic, make_block: Make) -> None:
    put(topic, make_block([0, 1], [0, 1]), make_block([2, 3], [2, 3]), make_block([5], [5]))
    source = TopicSource(topic)
    reading = iter(SampleReader(source, source.schema(), source.places(), 2))
    assert keys([next(reading), next(reading)]) == [(0, seq) for seq in range(4)]
    with pytest.raises(SequenceGapError, match="block 2: seq 4 was expected, 5 came"):
        next(reading)


def test_another_generation_stops_the_reader(topic: Topic, make_block: Make) -> None:
    block = make_block([1], [1])
    other = msgspec.structs.replace(block.schema, generation="other")
    put(topic, make_block([0], [0]), make_block([1], [1], schema=other))
    with pytest.raises(SampleError, match="block 1: samples of generation other after made by hand"):
        read(topic)


def test_an_unreadable_block_stops_the_reader(topic: Topic, make_block: Make) -> None:
    put(topic, make_block([0], [0]))
    topic.append(0, [Message(1, b"", b"nonsense")])
    with pytest.raises(SampleError, match=re.escape("topic 'samples', partition 0, block 1: not a block of samples")):
        read(topic)


def test_a_newer_block_stops_the_reader(topic: Topic, make_block: Make) -> None:
    schema = msgspec.structs.replace(make_block([0], [0]).schema, version=99)
    put(topic, make_block([0], [0]), make_block([1], [1], schema=schema))
    with pytest.raises(SampleError, match="version 99"):
        read(topic)


def test_a_row_of_another_partition_stops_the_reader(topic: Topic, make_block: Make) -> None:
    put(topic, make_block([0], [0], partition=1))
    with pytest.raises(SampleError, match="rows of another partition"):
        read(topic)


def test_other_samples_are_told_from_those_of_the_place(topic: Topic, make_block: Make) -> None:
    put(topic, make_block(range(4), range(4)))
    source = TopicSource(topic)
    schema = source.schema()
    place = msgspec.structs.replace(next(iter(SampleReader(source, schema, source.places(), 2))).places[0], request=12345)
    with pytest.raises(SampleError, match="row 1 is not the request that was learned last"):
        list(SampleReader(source, schema, [place], 2))


def test_another_number_of_partitions_is_refused(topic: Topic, make_block: Make) -> None:
    put(topic, make_block([0], [0]))
    source = TopicSource(topic)
    with pytest.raises(SampleError, match="1 partitions, the run began with 2"):
        SampleReader(source, make_block([0], [0]).schema, source.places() * 2, 2)


@hypothesis.given(st.integers(-5, 45), st.integers(-5, 45), st.integers(1, 9), st.integers(1, 5), st.integers(1, 8))
def test_a_range_is_by_ts(make_block: Make, start: int, stop: int, window: int, block_rows: int, batch_requests: int) -> None:
    """Every row with start <= ts < stop and no other, also where the place is looked up by time, and when gone on with."""
    topic = MemoryLog().create("samples", 1)
    ts = [i * 2 // 3 for i in range(60)]
    for i in range(0, 60, block_rows):
        part = range(i, min(i + block_rows, 60))
        put(topic, make_block(part, [ts[s] + window for s in part], ts=[ts[s] for s in part]))
    source = TopicSource(topic)
    schema = source.schema()
    span = Range(start, stop)
    batches = list(SampleReader(source, schema, source.places(start), batch_requests, span, window))
    expected = [(0, s) for s in range(60) if start <= ts[s] < stop]
    assert keys(batches) == expected
    for k, batch in enumerate(batches):
        rest = SampleReader(source, schema, batch.places, batch_requests, span, window)
        assert keys(list(rest)) == expected[(k + 1) * batch_requests :]


def test_what_is_appended_later_is_not_part_of_the_range(topic: Topic, make_block: Make) -> None:
    put(topic, make_block(range(4), range(4)))
    batches = read(topic, 2)
    put(topic, make_block(range(4, 8), range(4, 8)))
    rest = SampleReader(TopicSource(topic), batches[0].block.schema, batches[0].places, 2)
    assert keys(list(rest)) == [(0, 2), (0, 3)]
