"""One suite over every kind of log that is shipped: what a Topic promises, and what it refuses."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest

from stream_app.topics import Log, Message, PositionLostError, Record, Topic, TopicError
from stream_app.topics.embedded import EmbeddedLog, EmbeddedTopic
from stream_app.topics.memory import MemoryLog, MemoryTopic

AnyLog = EmbeddedLog | MemoryLog
AnyTopic = EmbeddedTopic | MemoryTopic


@pytest.fixture(params=["embedded", "memory"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[AnyLog]:
    kinds: dict[str, Callable[[], AnyLog]] = {"embedded": lambda: EmbeddedLog(tmp_path / "log"), "memory": MemoryLog}
    with kinds[request.param]() as opened:
        yield opened


@pytest.fixture
def topic(log: AnyLog) -> AnyTopic:
    return log.create("impressions", 2)


def messages(*ts: int) -> list[Message]:
    return [Message(t, b"key-%d" % i, b"value-%d" % t) for i, t in enumerate(ts)]


def records(first: int, appended: list[Message]) -> list[Record]:
    return [Record(first + i, *message) for i, message in enumerate(appended)]


def test_kinds_have_the_shape_of_the_protocols(log: AnyLog, topic: AnyTopic) -> None:
    assert isinstance(log, Log)
    assert isinstance(topic, Topic)
    assert (topic.name, topic.n_partitions) == ("impressions", 2)


def test_appended_records_are_read_back_in_order_with_dense_offsets(topic: AnyTopic) -> None:
    first, second = messages(10, 20, 30), [Message(-5, b"", b"\x00\xff"), Message((1 << 63) - 1, b"k", b"")]
    assert topic.append(0, first) == 3
    assert topic.append(0, second) == 5
    assert topic.read(0, 0) == records(0, first + second)
    assert topic.read(0, 4) == records(4, second[1:])
    assert topic.read(0, 5) == []
    assert all(type(record) is Record for record in topic.read(0, 0))


def test_partitions_are_independent(topic: AnyTopic) -> None:
    topic.append(0, messages(1, 2))
    topic.append(1, messages(9))
    assert (topic.end(0), topic.end(1)) == (2, 1)
    assert topic.read(1, 0) == records(0, messages(9))


def test_a_partition_that_was_never_written_is_empty(topic: AnyTopic) -> None:
    assert (topic.start(1), topic.end(1), topic.position_at(1, 0), topic.read(1, 0)) == (0, 0, 0, [])


def test_appending_nothing_changes_nothing(topic: AnyTopic) -> None:
    assert topic.append(0, []) == 0
    topic.append(0, messages(1))
    assert topic.append(0, []) == 1


@pytest.mark.parametrize("batch", [1, 7, 256, 1000])
def test_reading_in_pieces_gives_every_record_once(topic: AnyTopic, batch: int) -> None:
    appended = messages(*range(2_000))
    for begin in range(0, 2_000, batch):
        topic.append(0, appended[begin : begin + batch])
    found: list[Record] = []
    while piece := topic.read(0, len(found), max_records=17):
        assert len(piece) <= 17
        found += piece
    assert found == records(0, appended)


def test_max_bytes_is_kept_and_one_record_always_comes(topic: AnyTopic) -> None:
    topic.append(0, [Message(i, b"k" * 4, b"v" * 6) for i in range(600)])
    topic.append(0, [Message(600, b"", b"x" * 5_000), Message(601, b"", b"")])
    assert len(topic.read(0, 0, max_bytes=99)) == 9
    assert len(topic.read(0, 0, max_bytes=100)) == 10
    assert len(topic.read(0, 0, max_bytes=1)) == 1
    assert len(topic.read(0, 250, max_bytes=3_000)) == 300
    assert len(topic.read(0, 599, max_bytes=5_009)) == 1
    assert len(topic.read(0, 599, max_bytes=5_010)) == 3
    assert len(topic.read(0, 600, max_bytes=10)) == 1


def test_a_ten_megabyte_record_among_small_ones(topic: AnyTopic) -> None:
    big = random.Random(0).randbytes(10 << 20)
    appended = [Message(1, b"a", b"small"), Message(2, b"b", big), Message(3, b"c", b"small")]
    topic.append(0, appended)
    assert topic.read(0, 0) == records(0, appended)
    assert topic.read(0, 1, max_bytes=100) == [Record(1, *appended[1])]


@pytest.mark.parametrize("seed", range(3))
def test_position_at_agrees_with_brute_force_when_ts_is_out_of_order(topic: AnyTopic, seed: int) -> None:
    draw = random.Random(seed)
    appended = messages(*(i * 10 + draw.randint(-400, 400) for i in range(1_500)))
    begin = 0
    while begin < len(appended):
        size = draw.choice([1, 5, 300])
        topic.append(0, appended[begin : begin + size])
        begin += size
    for start in (0, 3, 700, 1_499, 1_500):
        topic.trim(0, start)
        for ts in [draw.randint(-600, 15_600) for _ in range(60)] + [appended[900].ts, appended[1_499].ts]:
            expected = next((i for i in range(start, 1_500) if appended[i].ts >= ts), 1_500)
            assert topic.position_at(0, ts) == expected


def test_position_at_after_the_newest_record_was_trimmed(topic: AnyTopic) -> None:
    topic.append(0, messages(100, 5))
    topic.append(0, messages(7, 200))
    topic.trim(0, 1)
    assert [topic.position_at(0, ts) for ts in (5, 6, 8, 200, 201)] == [1, 2, 3, 3, 4]


def test_trim_moves_the_start_and_keeps_the_rest(topic: AnyTopic) -> None:
    appended = messages(*range(1_000))
    topic.append(0, appended)
    assert topic.trim(0, 613) == 613
    assert topic.trim(0, 10) == 613
    assert (topic.start(0), topic.end(0)) == (613, 1_000)
    assert topic.read(0, 613) == records(613, appended[613:])
    assert topic.trim(0, 1_000) == 1_000
    assert topic.read(0, 1_000) == []
    assert topic.append(0, messages(7)) == 1_001
    assert topic.read(0, 1_000) == records(1_000, messages(7))
    with pytest.raises(TopicError, match=r"cannot trim before 1002, its end is 1001"):
        topic.trim(0, 1_002)


def test_a_lost_position_says_where_and_what_to_do(topic: AnyTopic) -> None:
    topic.append(1, messages(1, 2, 3))
    topic.trim(1, 2)
    with pytest.raises(
        PositionLostError, match=r"'impressions' partition 1: position 1 .* first record is 2.*retention.*start over"
    ):
        topic.read(1, 1)


def test_a_position_after_the_end_is_refused(topic: AnyTopic) -> None:
    topic.append(0, messages(1))
    with pytest.raises(TopicError, match=r"position 5 is after its end 1"):
        topic.read(0, 5)


def test_retention_drops_what_is_too_old_and_nothing_else(log: AnyLog) -> None:
    topic = log.create("actions", 1, retention_ms=1_000)
    draw = random.Random(1)
    ts = [i + draw.randint(-50, 50) for i in range(6_000)]
    for begin in range(0, 6_000, 40):
        topic.append(0, messages(*ts[begin : begin + 40]))
        newest = max(ts[: begin + 40])
        start = topic.start(0)
        assert all(t < newest - 1_000 for t in ts[:start])
        # At most a sixteenth of the retention, a chunk and the disorder of ts stay longer than they must.
        assert start >= newest - 1_000 - 1_000 // 16 - 40 - 200
    assert topic.start(0) > 4_500
    assert [record.ts for record in topic.read(0, topic.start(0), 2_000)] == ts[topic.start(0) :]


def test_retention_can_be_given_later_and_stays_when_it_is_not_given(log: AnyLog) -> None:
    assert log.create("actions", 1).retention_ms is None
    assert log.create("actions", 1, retention_ms=500).retention_ms == 500
    assert log.create("actions", 1).retention_ms == 500
    assert log.topic("actions").retention_ms == 500


def test_topics_lists_names_and_partitions(log: AnyLog) -> None:
    assert log.topics() == {}
    log.create("b", 3)
    log.create("a.b_c-D", 1)
    assert log.topics() == {"a.b_c-D": 1, "b": 3}


def test_creating_again_returns_the_topic_and_refuses_another_partition_count(log: AnyLog, topic: AnyTopic) -> None:
    topic.append(0, messages(1))
    assert log.create("impressions", 2).end(0) == 1
    with pytest.raises(TopicError, match=r"'impressions' exists with 2 partition\(s\), asked for 4"):
        log.create("impressions", 4)


def test_an_unknown_topic_names_those_that_exist(log: AnyLog) -> None:
    with pytest.raises(TopicError, match=r"no topic 'clicks' in .*: none yet"):
        log.topic("clicks")
    log.create("impressions", 1)
    log.create("actions", 1)
    with pytest.raises(TopicError, match=r"no topic 'clicks' in .*: actions, impressions"):
        log.topic("clicks")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../x", "a b", "ä", "x" * 250])
def test_bad_names_are_refused(log: AnyLog, name: str) -> None:
    with pytest.raises(TopicError, match="topic name"):
        log.create(name, 1)
    with pytest.raises(TopicError, match="no topic"):
        log.topic(name)


def test_bad_shapes_are_refused(log: AnyLog) -> None:
    with pytest.raises(TopicError, match="n_partitions is 0"):
        log.create("a", 0)
    with pytest.raises(TopicError, match="retention_ms is 0"):
        log.create("a", 1, retention_ms=0)
    assert log.topics() == {}


@pytest.mark.parametrize("partition", [-1, 2])
def test_a_partition_out_of_range_is_refused(topic: AnyTopic, partition: int) -> None:
    uses: list[Callable[[], object]] = [
        lambda: topic.append(partition, messages(1)),
        lambda: topic.read(partition, 0),
        lambda: topic.position_at(partition, 0),
        lambda: topic.start(partition),
        lambda: topic.end(partition),
        lambda: topic.trim(partition, 0),
    ]
    for use in uses:
        with pytest.raises(TopicError, match=rf"partitions 0 to 1, not {partition}"):
            use()


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (Message(1, b"k", cast(bytes, "text")), r"not \(int, bytes, str\)"),
        (Message(cast(int, 1.5), b"k", b"v"), r"not \(float, bytes, bytes\)"),
        (Message(1 << 63, b"k", b"v"), "64 bits"),
        (Message(-(1 << 63) - 1, b"k", b"v"), "64 bits"),
    ],
)
def test_one_bad_message_appends_nothing(topic: AnyTopic, bad: Message, why: str) -> None:
    topic.append(0, messages(1))
    with pytest.raises(TopicError, match=why):
        topic.append(0, [*messages(2, 3), bad])
    assert topic.end(0) == 1
    assert topic.append(0, messages(4)) == 2


def test_limits_below_one_are_refused(topic: AnyTopic) -> None:
    for limits in ((0, 1), (1, 0)):
        with pytest.raises(TopicError, match="must be at least 1"):
            topic.read(0, 0, *limits)


def test_use_after_close_is_refused(log: AnyLog, topic: AnyTopic) -> None:
    topic.append(0, messages(1))
    log.close()
    uses: list[Callable[[], object]] = [
        lambda: topic.append(0, messages(2)),
        lambda: topic.read(0, 0),
        lambda: topic.position_at(0, 0),
        lambda: topic.start(0),
        lambda: topic.end(0),
        lambda: topic.trim(0, 0),
        lambda: log.topic("impressions"),
        lambda: log.create("impressions", 2),
        log.topics,
    ]
    for use in uses:
        with pytest.raises(TopicError, match="closed"):
            use()
    log.close()
