"""Kafka as a kind of log: what every kind promises, and what only Kafka has."""

from __future__ import annotations

import random
import secrets
from collections.abc import Iterator

import pytest

from stream_app.events import murmur2, partition_of
from stream_app.kafka_config import KafkaConfig
from stream_app.topics import Log, Message, PositionLostError, Record, Topic, TopicError
from stream_app.topics.kafka import FencedError, KafkaLog, KafkaTopic, open_kafka
from stream_app.topics.memory import MemoryLog
from tests.stream_app.test_topics import (
    messages,
    test_a_lost_position_says_where_and_what_to_do,
    test_a_partition_out_of_range_is_refused,
    test_a_partition_that_was_never_written_is_empty,
    test_a_position_after_the_end_is_refused,
    test_a_ten_megabyte_record_among_small_ones,
    test_an_unknown_topic_names_those_that_exist,
    test_appending_nothing_changes_nothing,
    test_bad_names_are_refused,
    test_bad_shapes_are_refused,
    test_creating_again_returns_the_topic_and_refuses_another_partition_count,
    test_limits_below_one_are_refused,
    test_max_bytes_is_kept_and_one_record_always_comes,
    test_one_bad_message_appends_nothing,
    test_partitions_are_independent,
    test_reading_in_pieces_gives_every_record_once,
    test_retention_can_be_given_later_and_stays_when_it_is_not_given,
    test_topics_lists_names_and_partitions,
    test_trim_moves_the_start_and_keeps_the_rest,
    test_use_after_close_is_refused,
)

SHARED = [
    test_a_lost_position_says_where_and_what_to_do,
    test_a_partition_out_of_range_is_refused,
    test_a_partition_that_was_never_written_is_empty,
    test_a_position_after_the_end_is_refused,
    test_a_ten_megabyte_record_among_small_ones,
    test_an_unknown_topic_names_those_that_exist,
    test_appending_nothing_changes_nothing,
    test_bad_names_are_refused,
    test_bad_shapes_are_refused,
    test_creating_again_returns_the_topic_and_refuses_another_partition_count,
    test_limits_below_one_are_refused,
    test_max_bytes_is_kept_and_one_record_always_comes,
    test_one_bad_message_appends_nothing,
    test_partitions_are_independent,
    test_reading_in_pieces_gives_every_record_once,
    test_retention_can_be_given_later_and_stays_when_it_is_not_given,
    test_topics_lists_names_and_partitions,
    test_trim_moves_the_start_and_keeps_the_rest,
    test_use_after_close_is_refused,
]
"""The checks of every kind that run here too, with the fixtures below."""


def config_of(server: str, prefix: str | None = None) -> KafkaConfig:
    """Return a config with topics of its own."""
    return KafkaConfig(servers=(server,), topic_prefix=prefix or f"t{secrets.token_hex(4)}.")


@pytest.fixture
def config(kafka: str) -> KafkaConfig:
    return config_of(kafka)


@pytest.fixture
def log(config: KafkaConfig) -> Iterator[KafkaLog]:
    """A log whose appends are plain, so that offsets are dense as the shared checks have it."""
    with open_kafka(config) as opened:
        yield opened


@pytest.fixture
def topic(log: KafkaLog) -> KafkaTopic:
    return log.create("impressions", 2)


@pytest.fixture(params=["plain", "fenced"])
def any_topic(request: pytest.FixtureRequest, config: KafkaConfig) -> Iterator[KafkaTopic]:
    """A topic to which appends are plain, and one to which each is a transaction."""
    with open_kafka(config, fence="joiner-0" if request.param == "fenced" else None) as opened:
        yield opened.create("impressions", 2)


def everything(topic: Topic, partition: int = 0, max_records: int = 300) -> list[Record]:
    """Read a partition from its start to its end."""
    found: list[Record] = []
    position = topic.start(partition)
    while piece := topic.read(partition, position, max_records):
        found += piece
        position = piece[-1].offset + 1
    return found


def contents(found: list[Record]) -> list[Message]:
    return [Message(*record[1:]) for record in found]


def test_a_kafka_log_has_the_shape_of_the_protocols(log: KafkaLog, topic: KafkaTopic) -> None:
    assert isinstance(log, Log)
    assert isinstance(topic, Topic)
    assert (topic.name, topic.n_partitions) == ("impressions", 2)


def test_what_was_appended_is_read_back(any_topic: KafkaTopic) -> None:
    appended = [*messages(10, 20, 30), Message(0, b"", b"\x00\xff"), Message((1 << 63) - 1, b"k", b"")]
    end = any_topic.append(0, appended[:3])
    assert end == any_topic.end(0) == 3
    assert any_topic.append(0, appended[3:]) == any_topic.end(0)
    found = everything(any_topic)
    assert contents(found) == appended
    assert any_topic.read(0, any_topic.end(0)) == []
    assert any_topic.read(0, found[-1].offset) == found[-1:]
    assert any_topic.read(0, any_topic.end(0) - 1) == found[-1:]


def test_a_negative_time_is_refused(topic: KafkaTopic) -> None:
    with pytest.raises(TopicError, match=r"from 0 on in Kafka, got -5; nothing was appended"):
        topic.append(0, messages(3, -5))
    assert topic.end(0) == 0


def test_a_record_over_the_limit_is_refused(config: KafkaConfig) -> None:
    small = KafkaConfig(servers=config.servers, topic_prefix=config.topic_prefix, max_block_bytes=2_000)
    with open_kafka(small) as log:
        topic = log.create("a", 1)
        with pytest.raises(TopicError, match=r"2009 bytes is more than kafka.max_block_bytes = 2000"):
            topic.append(0, [Message(1, b"k" * 9, b"v" * 2_000)])


def test_a_topic_that_takes_less_says_what_to_set(config: KafkaConfig) -> None:
    with open_kafka(config) as log:
        topic = log.create("a", 1)
        log.alter("a", {"max.message.bytes": "1000"})
        with pytest.raises(TopicError, match=r"Set the topic's max.message.bytes"):
            topic.append(0, [Message(1, b"k", random.Random(0).randbytes(5_000))])
        log.alter("a", {"max.message.bytes": "100000"})
        topic.append(0, messages(1))
        assert contents(everything(topic)) == messages(1)


@pytest.mark.parametrize("seed", range(2))
def test_position_at_agrees_with_brute_force(any_topic: KafkaTopic, seed: int) -> None:
    draw = random.Random(seed)
    appended = messages(*(i * 10 + draw.randint(0, 800) for i in range(600)))
    begin = 0
    while begin < len(appended):
        size = draw.choice([5, 40, 100])
        any_topic.append(0, appended[begin : begin + size])
        begin += size
    found = everything(any_topic)
    assert contents(found) == appended
    for n_trimmed in (0, 300, 599):
        any_topic.trim(0, found[n_trimmed].offset)
        held = found[n_trimmed:]
        for ts in [draw.randint(-600, 7_000) for _ in range(12)] + [appended[400].ts, appended[599].ts, 1 << 70]:
            expected = next((record.offset for record in held if record.ts >= ts), any_topic.end(0))
            assert any_topic.position_at(0, ts) == expected


def test_random_use_agrees_with_memory(any_topic: KafkaTopic) -> None:
    """Appends, reads at any place in any order and trims: the records of the memory kind, at offsets with gaps."""
    draw, model = random.Random(7), MemoryLog().create("impressions", 2)
    offsets: list[list[int]] = [[], []]
    for step in range(60):
        p = draw.randrange(2)
        batch = messages(*(1_000 * step + i for i in range(draw.randint(1, 40))))
        kind = draw.random()
        if kind < 0.4:
            end = any_topic.append(p, batch)
            offsets[p] += range(end - len(batch), end)
            model.append(p, batch)
        elif kind < 0.45 and offsets[p]:
            before = draw.randint(model.start(p), model.end(p) - 1) if model.end(p) > model.start(p) else model.start(p)
            if before < len(offsets[p]):
                any_topic.trim(p, offsets[p][before])
                model.trim(p, before)
        else:
            first = draw.randint(model.start(p), model.end(p))
            position = offsets[p][first] if first < len(offsets[p]) else any_topic.end(p)
            n, n_bytes = draw.randint(1, 60), draw.randint(1, 400)
            wanted = contents(model.read(p, first, n, n_bytes))
            got = contents(any_topic.read(p, position, n, n_bytes))
            assert got == wanted[: len(got)]  # what one fetch brought may be less than there is
            assert bool(got) == bool(wanted)


def test_a_reader_follows_a_writer_across_partitions(config: KafkaConfig) -> None:
    with open_kafka(config) as writing, open_kafka(config) as reading:
        topic = writing.create("a", 3)
        reader = reading.topic("a")
        found: list[list[Message]] = [[], [], []]
        for round_ in range(10):
            for p in range(3):
                topic.append(p, messages(*range(round_ * 100, round_ * 100 + 100)))
            for p in range(3):
                while piece := reader.read(p, len(found[p]), 64):
                    found[p] += contents(piece)
        assert found == [messages_of_rounds(10)] * 3


def messages_of_rounds(n_rounds: int) -> list[Message]:
    return [message for i in range(n_rounds) for message in messages(*range(i * 100, i * 100 + 100))]


def test_a_partition_that_is_not_read_does_not_hold_up_the_others(config: KafkaConfig) -> None:
    """More of each than may lie unread, so that one is held back and taken up again."""
    value, n_records = random.Random(0).randbytes(1 << 20), 48
    with open_kafka(config) as log:
        topic = log.create("a", 2)
        for n in range(n_records):
            for p in range(2):
                topic.append(p, [Message(n, b"%d" % n, value)])
        assert len(topic.read(1, 0, 1)) == 1
        for p in (0, 1):
            assert [record.key for record in everything(topic, p, 5)] == [b"%d" % n for n in range(n_records)]


def test_many_small_records_are_read_in_turns(config: KafkaConfig) -> None:
    with open_kafka(config) as log:
        topic = log.create("a", 2)
        for begin in range(0, 30_000, 5_000):
            for p in range(2):
                topic.append(p, messages(*range(begin, begin + 5_000)))
        draw, positions = random.Random(5), [0, 0]
        while min(positions) < 30_000:
            p = draw.randrange(2)
            got = topic.read(p, positions[p], draw.choice([10, 1_000, 16_384]))
            assert [record.ts for record in got] == list(range(positions[p], positions[p] + len(got)))
            assert got or positions[p] == 30_000
            positions[p] += len(got)


def test_records_that_retention_takes_from_under_a_reader_are_lost_not_skipped(config: KafkaConfig) -> None:
    with open_kafka(config) as log, open_kafka(config) as other:
        topic = log.create("a", 1)
        topic.append(0, messages(*range(10)))
        assert len(topic.read(0, 0, 5)) == 5
        assert len(topic.read(0, 5, 5)) == 5
        topic.append(0, messages(*range(10)))
        other.topic("a").trim(0, 15)
        with pytest.raises(PositionLostError, match=r"position 10 .* first record is 15"):
            topic.read(0, 10)
        assert len(topic.read(0, 15)) == 5


def test_the_newer_of_two_with_the_same_fence_writes(config: KafkaConfig) -> None:
    with open_kafka(config, fence="joiner-0") as older:
        topic = older.create("samples", 1)
        topic.append(0, messages(1))
        with open_kafka(config, fence="joiner-0") as newer, open_kafka(config, fence="joiner-1") as another:
            with pytest.raises(FencedError, match=r"has taken over as 'joiner-0'.*nothing was appended"):
                topic.append(0, messages(2))
            with pytest.raises(FencedError):
                topic.append(0, messages(2))
            newer.topic("samples").append(0, messages(3))
            another.topic("samples").append(0, messages(4))
            assert contents(everything(newer.topic("samples"))) == [*messages(1), *messages(3), *messages(4)]
        assert contents(everything(topic)) == [*messages(1), *messages(3), *messages(4)]


def test_commits_are_kept_per_group(config: KafkaConfig) -> None:
    group = f"g{secrets.token_hex(4)}"
    with open_kafka(config) as log:
        log.create("a", 2).append(0, messages(1, 2, 3))
        log.create("b", 1)
        assert log.committed(group) == {}
        log.commit(group, {("a", 0): 3, ("a", 1): 0, ("b", 0): 0})
        log.commit(group, {("a", 0): 2})
        assert log.committed(group) == {("a", 0): 2, ("a", 1): 0, ("b", 0): 0}


def test_topics_are_created_for_blocks_and_old_times(config: KafkaConfig) -> None:
    with open_kafka(config) as log:
        log.create("a", 1)
        settings = log.settings("a")
        assert int(settings["max.message.bytes"]) > config.max_block_bytes
        assert (settings["retention.ms"], settings["message.timestamp.type"]) == ("-1", "CreateTime")
        log.create("b", 1, retention_ms=86_400_000)
        assert log.settings("b")["retention.ms"] == "86400000"


def test_prefixes_keep_logs_apart(kafka: str) -> None:
    one, two = config_of(kafka), config_of(kafka)
    with open_kafka(one) as first, open_kafka(two) as second:
        first.create("a", 1)
        assert second.topics() == {}
        second.create("a", 2)
        assert (first.topics(), second.topics()) == ({"a": 1}, {"a": 2})


def test_a_cluster_that_is_not_there_is_named() -> None:
    with pytest.raises(TopicError, match=r"Kafka at 127\.0\.0\.1:1: cannot connect"):
        open_kafka(KafkaConfig(servers=("127.0.0.1:1",), request_timeout_ms=300))


def test_the_partitioner_is_that_of_kafkas_clients() -> None:
    kafka_murmur2 = pytest.importorskip("kafka.partitioner.default").murmur2
    draw = random.Random(3)
    for _ in range(2_000):
        key = draw.randbytes(draw.randint(0, 40))
        assert murmur2(key) == kafka_murmur2(key) & 0xFFFFFFFF
        assert partition_of(key, 7) == (kafka_murmur2(key) & 0x7FFFFFFF) % 7
