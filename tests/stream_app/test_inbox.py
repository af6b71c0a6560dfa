"""The inbox: whatever is delivered, dropped or doubled, the joiner reads each record of Kafka once and in order."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from stream_app.inbox import PATIENCE, Inbox, InboxTopic, PartitionLog
from stream_app.topics import Message, PositionLostError, Record, TopicError
from stream_app.topics.embedded import EmbeddedLog
from stream_app.topics.memory import MemoryLog

NAME = "actions"


def message(n: int) -> Message:
    return Message(1_000 + n, b"user", b"value %d" % n)


def as_records(log: MemoryLog, offsets: list[int]) -> list[Record]:
    return [log.topic(NAME).read(0, offset, 1)[0] for offset in offsets]


class InboxMachine(RuleBasedStateMachine):
    """A model of delivery: anything of what Kafka has, forwards, again, or not at all; and processes that end at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.now = 0.0
        self.kafka = MemoryLog()
        self.kafka.create(NAME, 1)
        self.seen: list[Record] = []
        self.committed = 0
        self.inbox, self.topic = self.opened()

    def opened(self) -> tuple[Inbox, InboxTopic]:
        inbox = Inbox(Path(self.folder.name), [NAME], capacity=50)
        return inbox, InboxTopic(self.kafka.topic(NAME), inbox.topic(NAME), lambda: self.now)

    @property
    def end(self) -> int:
        return self.kafka.topic(NAME).end(0)

    @rule(n=st.integers(1, 40))
    def produce(self, n: int) -> None:
        self.kafka.topic(NAME).append(0, [message(self.end + i) for i in range(n)])

    @precondition(lambda self: self.end > 0)
    @rule(data=st.data())
    def deliver(self, data: st.DataObject) -> None:
        first = data.draw(st.integers(0, self.end - 1))
        last = data.draw(st.integers(first, self.end - 1))
        left_out = data.draw(st.sets(st.integers(first, last), max_size=3))
        self.inbox.append(NAME, as_records(self.kafka, [o for o in range(first, last + 1) if o not in left_out]))

    @rule(n=st.integers(1, 30), seconds=st.sampled_from([0.0, 0.05, PATIENCE, 10.0]))
    def read(self, n: int, seconds: float) -> None:
        self.now += seconds
        if not self.take(n):
            self.now += 2 * PATIENCE
            assert self.take(n) or len(self.seen) == self.end, "an answer that stays empty means the end"

    def take(self, n: int) -> int:
        records = self.topic.read(0, len(self.seen), n)
        assert [record.offset for record in records] == list(range(len(self.seen), len(self.seen) + len(records)))
        assert [record.value for record in records] == [b"value %d" % record.offset for record in records]
        self.seen += records
        return len(records)

    @rule()
    def commit(self) -> None:
        self.committed = len(self.seen)
        self.inbox.acknowledge([cast(Any, SimpleNamespace(topic=NAME, position=self.committed))])

    @rule(lost=st.booleans())
    def start_again(self, lost: bool) -> None:
        self.inbox.close()
        if lost:
            self.folder.cleanup()
            self.folder = tempfile.TemporaryDirectory()
        self.seen = self.seen[: self.committed]
        self.inbox, self.topic = self.opened()
        self.inbox.acknowledge([cast(Any, SimpleNamespace(topic=NAME, position=self.committed))])

    @invariant()
    def nothing_is_left_over_for_ever(self) -> None:
        assert self.inbox.held(NAME) <= max(0, self.end - self.committed)

    def teardown(self) -> None:
        self.inbox.close()
        self.folder.cleanup()


TestInbox = InboxMachine.TestCase
TestInbox.settings = settings(
    max_examples=15, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


@pytest.fixture
def kafka() -> MemoryLog:
    log = MemoryLog()
    log.create(NAME, 1).append(0, [message(n) for n in range(100)])
    return log


def test_a_gap_is_read_from_kafka_at_once_and_what_is_on_its_way_is_waited_for(tmp_path: Path, kafka: MemoryLog) -> None:
    now = [0.0]
    with Inbox(tmp_path, [NAME], 1_000) as inbox:
        topic = InboxTopic(kafka.topic(NAME), inbox.topic(NAME), lambda: now[0])
        inbox.append(NAME, as_records(kafka, [10, 11, 12, 20, 21]))
        assert [r.offset for r in topic.read(0, 5)] == [5, 6, 7, 8, 9]
        assert [r.offset for r in topic.read(0, 10)] == [10, 11, 12]
        assert [r.offset for r in topic.read(0, 13)] == list(range(13, 20))
        assert topic.n_direct == 12
        assert [r.offset for r in topic.read(0, 20)] == [20, 21]
        assert topic.read(0, 22) == []
        now[0] += PATIENCE
        assert [r.offset for r in topic.read(0, 22, 3)] == [22, 23, 24]
        assert [r.offset for r in topic.read(0, 25, 3)] == [25, 26, 27], "what was missing once is not waited for again"


def test_a_joiner_that_is_ahead_waits_while_deliveries_go_on_and_no_longer(tmp_path: Path, kafka: MemoryLog) -> None:
    now = [0.0]
    with Inbox(tmp_path, [NAME], 1_000) as inbox, PartitionLog(kafka, MemoryLog(), inbox, lambda: now[0]) as log:
        topic = log.topic(NAME)
        assert topic.read(0, 50, 10) == []
        now[0] += PATIENCE
        assert [r.offset for r in topic.read(0, 50, 10)] == list(range(50, 60))
        inbox.acknowledge([cast(Any, SimpleNamespace(topic=NAME, position=60))])
        for first in range(0, 60, 10):  # What was applied already is delivered, and dropped.
            assert inbox.append(NAME, as_records(kafka, list(range(first, first + 10)))) == 0
            assert topic.read(0, 60, 10) == []
            assert log.awaited
            now[0] += PATIENCE * 0.9
        assert inbox.append(NAME, as_records(kafka, [60, 61])) == 2
        assert [r.offset for r in topic.read(0, 60, 10)] == [60, 61]
        assert topic.read(0, 62, 10) == []
        now[0] += PATIENCE
        assert [r.offset for r in topic.read(0, 62, 10)] == list(range(62, 72)), "deliveries have stopped"


def test_an_input_is_at_its_end_once_kafka_has_said_so_and_until_more_is_delivered(tmp_path: Path, kafka: MemoryLog) -> None:
    now = [0.0]
    with Inbox(tmp_path, [NAME], 1_000) as inbox, PartitionLog(kafka, MemoryLog(), inbox, lambda: now[0]) as log:
        topic = log.topic(NAME)
        for seconds, awaited in ((0.0, True), (PATIENCE, False), (0.1, False), (PATIENCE, False)):
            now[0] += seconds
            assert topic.read(0, 100) == []
            assert log.awaited == awaited
        inbox.append(NAME, as_records(kafka, [98, 99]))
        assert topic.read(0, 100) == []
        assert log.awaited


def test_a_gap_that_kafka_has_too_is_passed(tmp_path: Path, kafka: MemoryLog) -> None:
    class WithMarkers:
        """Offsets 30 to 39 are those of transactions' ends."""

        def __getattr__(self, name: str) -> Any:
            return getattr(kafka.topic(NAME), name)

        def read(self, partition: int, position: int, max_records: int, max_bytes: int) -> list[Record]:
            return [r for r in kafka.topic(NAME).read(0, position, max_records, max_bytes) if not 30 <= r.offset < 40]

    with Inbox(tmp_path, [NAME], 1_000) as inbox:
        inbox.append(NAME, as_records(kafka, [28, 29, 40, 41]))
        topic = InboxTopic(cast(Any, WithMarkers()), inbox.topic(NAME))
        assert [r.offset for r in topic.read(0, 28)] == [28, 29]
        assert [r.offset for r in topic.read(0, 30)] == [40, 41]


def test_what_kafka_does_not_hold_any_more_stops_the_joiner(tmp_path: Path, kafka: MemoryLog) -> None:
    kafka.topic(NAME).trim(0, 50)
    with Inbox(tmp_path, [NAME], 1_000) as inbox:
        inbox.append(NAME, as_records(kafka, [60, 61]))
        topic = InboxTopic(kafka.topic(NAME), inbox.topic(NAME))
        with pytest.raises(PositionLostError, match="retention"):
            topic.read(0, 40)


def test_what_is_committed_is_trimmed(tmp_path: Path) -> None:
    with Inbox(tmp_path, [NAME], 1_000) as inbox:
        inbox.append(NAME, [Record(n, 0, b"", b"x") for n in range(30_000)])
        assert inbox.full(NAME)
        assert inbox.held(NAME) == 30_000
        inbox.acknowledge([cast(Any, SimpleNamespace(topic=NAME, position=29_900))])
        assert inbox.held(NAME) == 100
        assert not inbox.full(NAME)
        assert inbox.topic(NAME).start(0) == 29_900


def test_items_come_from_kafka_and_results_go_through_the_fence(tmp_path: Path, kafka: MemoryLog) -> None:
    kafka.create("items", 2).append(1, [message(0)])
    asked: list[str] = []

    class Fenced(MemoryLog):
        def topic(self, name: str) -> Any:
            asked.append(name)
            return kafka.topic(name)

        def create(self, name: str, n_partitions: int, retention_ms: int | None = None) -> Any:
            asked.append(name)
            return kafka.create(name, n_partitions, retention_ms)

    with Inbox(tmp_path, [NAME], 1_000) as inbox, PartitionLog(kafka, Fenced(), inbox) as log:
        assert log.topics() == {NAME: 1, "items": 2}
        assert [r.offset for r in log.topic("items").read(1, 0)] == [0]
        samples = log.create("samples", 1)
        samples.append(0, [message(1)])
        assert kafka.topic("samples").end(0) == 1
        assert asked == ["items", "samples"]
        with pytest.raises(TopicError, match="only reads"):
            log.topic(NAME).append(0, [message(1)])


def test_a_dense_log_takes_no_gaps(tmp_path: Path) -> None:
    with EmbeddedLog(tmp_path) as log:
        topic = log.create(NAME, 1)
        topic.append(0, [message(0)])
        with pytest.raises(TopicError, match="sparse"):
            topic.append_at(0, [(5, [message(5)])])
        with pytest.raises(TopicError, match="cannot follow"):
            topic.append_at(0, [(0, [message(5)])])
