"""A partition's inbox: raw records that were delivered to the worker and wait, on disk, for its joiner.

It is a sparse embedded log in the partition's folder: records keep the offsets that they have in Kafka. What was delivered
twice is dropped by its offset. What was not delivered, or did not fit, the joiner reads from Kafka itself: the raw topics are
the changelog, and the inbox only spares it that way. So no offset that faust commits can lose a record, wherever it stands.

========================================= ==============================================================================
where the joiner stands                   what it reads
========================================= ==============================================================================
on a record of the inbox                  the inbox, up to the next gap
in a gap before a record of the inbox     Kafka, up to that record (a gap that Kafka has too, such as that of a transaction's
                                          marker, ends there)
where the inbox has nothing               nothing while records go on being delivered, and :data:`PATIENCE` seconds longer: it
                                          is on its way. Then Kafka, until that has nothing or delivery goes on
========================================= ==============================================================================

What is read from Kafka is delivered all the same, and twice is what costs: so a joiner that is ahead of the deliveries waits
for them. An empty answer means that Kafka itself has no more only where nothing is :attr:`~PartitionLog.awaited`: what a mark
may be based on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise, repeat
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from stream_app.events import ACTIONS, IMPRESSIONS, ITEMS, RAW_TOPICS, USERS
from stream_app.joiner.merge import Input
from stream_app.topics import Log, Message, Record, Topic, TopicError
from stream_app.topics.embedded import EmbeddedLog, EmbeddedTopic
from stream_app.topics.rocks_memory import RocksMemory

__all__ = ["DELIVERED", "PATIENCE", "Inbox", "InboxTopic", "PartitionLog"]

DELIVERED: Final = (ACTIONS, IMPRESSIONS, USERS)
"""Topics that are delivered: those with the partitions of users."""
PATIENCE: Final = 0.5
"""Seconds without a delivery before what should be delivered is read from Kafka; less than marks wait."""
_TRIM_RECORDS: Final = 20_000


class Inbox:
    """Records of one partition that were delivered, by topic; appended to by one thread, read and trimmed by another.

    Args:
        folder: made if it is not there; one process at a time.
        topics: those of :data:`DELIVERED` that exist.
        capacity: records of a topic that it may hold before it is :meth:`full`.
        memory: as :class:`~stream_app.topics.embedded.EmbeddedLog`.
    """

    def __init__(self, folder: Path, topics: Sequence[str], capacity: int, memory: RocksMemory | None = None) -> None:
        self.capacity = capacity
        self._log = EmbeddedLog(folder, sparse=True, memory=memory)
        self._topics = {name: self._log.create(name, 1) for name in topics}
        self._positions = dict.fromkeys(topics, 0)
        self._delivered = dict.fromkeys(topics, 0)
        for topic in self._topics.values():
            topic.append_at(0, [])  # Takes the lock, so that all that is known is this handle's.

    def append(self, name: str, records: Sequence[Record]) -> int:
        """Append delivered records that are not there yet, in one write; return how many."""
        topic = self._topics[name]
        runs = _runs(records, max(topic.end(0), self._positions[name]))
        topic.append_at(0, runs)
        if records:
            self._delivered[name] = records[-1].offset + 1
        return sum(len(messages) for _, messages in runs)

    def delivered(self, name: str) -> int:
        """Return the offset after the last record that was delivered here, whether it was new or not; 0 before the first."""
        return self._delivered[name]

    def full(self, name: str) -> bool:
        """Whether the joiner has to go on before more should be appended."""
        return self.held(name) >= self.capacity

    def held(self, name: str) -> int:
        """Return how many offsets of a topic wait for the joiner."""
        topic = self._topics[name]
        return max(0, topic.end(0) - max(topic.start(0), self._positions[name]))

    def disk_bytes(self) -> int:
        """Return the bytes of its files."""
        return sum(topic.disk_bytes(0) for topic in self._topics.values())

    def acknowledge(self, inputs: Sequence[Input]) -> None:
        """Forget what lies before the joiner's committed positions."""
        for source in inputs:
            topic = self._topics.get(source.topic)
            if topic is not None:
                self._positions[source.topic] = source.position
                before = min(source.position, topic.end(0))
                if before - topic.start(0) >= _TRIM_RECORDS:
                    topic.trim(0, before)

    @property
    def topics(self) -> Sequence[str]:
        """Names of its topics."""
        return tuple(self._topics)

    def topic(self, name: str) -> EmbeddedTopic:
        """Return a topic of it."""
        return self._topics[name]

    def close(self) -> None:
        """Release the folder."""
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class InboxTopic:
    """A raw topic as the joiner of one partition reads it: from the inbox, else from Kafka. See the table above.

    Args:
        kafka: the topic there.
        inbox: its part of the inbox; None for a topic that is not delivered but read from Kafka by assignment.
        clock: seconds.
        deliveries: how far the topic was delivered: while that changes, more is on its way. By default the inbox's end.
    """

    def __init__(
        self,
        kafka: Topic,
        inbox: EmbeddedTopic | None,
        clock: Callable[[], float] = time.monotonic,
        deliveries: Callable[[], int] | None = None,
    ) -> None:
        self.n_direct = 0
        """Records that came from Kafka."""
        self._kafka = kafka
        self._inbox = inbox
        self._clock = clock
        self.awaited: set[int] = set()
        """Partitions whose last answer was empty though Kafka may have more."""
        self._deliveries = deliveries or (lambda: 0 if inbox is None else inbox.end(0))
        self._missed_since: dict[int, tuple[int, float]] = {}
        """By partition: since when there has not been what the joiner asks for, and how far was delivered then."""
        self._catching_up: dict[int, int] = {}
        """Partitions where Kafka had what the inbox did not have: it is asked without waiting until more is delivered."""
        self._ended: dict[int, tuple[int, int]] = {}
        """By partition: where Kafka had no more, and how far was delivered then."""

    @property
    def name(self) -> str:
        """The topic's name."""
        return self._kafka.name

    @property
    def n_partitions(self) -> int:
        """Partitions of the topic in Kafka."""
        return self._kafka.n_partitions

    def read(self, partition: int, position: int, max_records: int = 1_000, max_bytes: int = 16 << 20) -> list[Record]:
        """Return records from ``position`` on; empty where they are still to be delivered, or at the end.

        Raises:
            PositionLostError: neither the inbox nor Kafka hold ``position`` any more.
        """
        reached = self._deliveries()
        delivered = self._delivered(position, max_records, max_bytes)
        self.awaited.discard(partition)
        if delivered and delivered[0].offset == position:
            self._missed_since.pop(partition, None)
            self._catching_up.pop(partition, None)
            return delivered
        if not delivered and not self._waited_long_enough(partition, reached):
            if self._ended.get(partition) != (position, reached):
                self.awaited.add(partition)
            return []
        direct = self._kafka.read(partition, position, max_records, max_bytes)
        if delivered:
            direct = [record for record in direct if record.offset < delivered[0].offset]
        self.n_direct += len(direct)
        if direct:
            self._catching_up[partition] = reached
            return direct
        self._catching_up.pop(partition, None)
        self._missed_since[partition] = reached, self._clock()
        self._ended[partition] = position, reached
        return delivered

    def append(self, partition: int, messages: Sequence[Message]) -> int:
        """Refuse: the worker writes no raw topic."""
        raise TopicError(f"topic {self.name!r}: a worker only reads the raw topics")

    def position_at(self, partition: int, ts: int) -> int:
        """As the topic in Kafka."""
        return self._kafka.position_at(partition, ts)

    def start(self, partition: int) -> int:
        """As the topic in Kafka."""
        return self._kafka.start(partition)

    def end(self, partition: int) -> int:
        """As the topic in Kafka."""
        return self._kafka.end(partition)

    def _delivered(self, position: int, max_records: int, max_bytes: int) -> list[Record]:
        inbox = self._inbox
        if inbox is None or position >= inbox.end(0):
            return []
        return inbox.read(0, max(position, inbox.start(0)), max_records, max_bytes)

    def _waited_long_enough(self, partition: int, reached: int) -> bool:
        if self._catching_up.get(partition) == reached:
            return True
        now = self._clock()
        before, since = self._missed_since.get(partition, (reached, now if self._inbox is not None else now - PATIENCE))
        if before != reached:
            since = now
        self._missed_since[partition] = reached, since
        return now - since >= PATIENCE


class _FencedTopic:
    """A topic of results: appended to through the fenced connection, read through the shared one."""

    def __init__(self, reads: Topic, writes: Topic) -> None:
        self._writes = writes
        self.name, self.n_partitions = reads.name, reads.n_partitions
        self.read, self.position_at, self.start, self.end = reads.read, reads.position_at, reads.start, reads.end

    def append(self, partition: int, messages: Sequence[Message]) -> int:
        """Append all of ``messages`` or none."""
        return self._writes.append(partition, messages)


class PartitionLog:
    """The log as the joiner of one partition sees it: raw topics of users by way of the inbox, all else in Kafka.

    Topic ``items`` is read by assignment, each partition's joiner for itself: all of them need all of it.

    Args:
        reads: Kafka, shared by the partitions of a worker.
        writes: Kafka for this partition alone, fenced; closed with this log.
        inbox: of the partition.
        clock: seconds, for :class:`InboxTopic`.
    """

    def __init__(self, reads: Log, writes: Log, inbox: Inbox, clock: Callable[[], float] = time.monotonic) -> None:
        self._reads = reads
        self._writes = writes
        self._names = dict(reads.topics())
        # Each joiner stands elsewhere in the items, so each has a reader of its own.
        self._raw = {
            name: InboxTopic(writes.topic(name), None, clock)
            if name == ITEMS
            else InboxTopic(reads.topic(name), inbox.topic(name), clock, partial(inbox.delivered, name))
            for name in RAW_TOPICS
            if name in self._names
        }

    @property
    def n_direct(self) -> int:
        """Raw records that were read from Kafka, not from the inbox; those of ``items`` do not count."""
        return sum(topic.n_direct for name, topic in self._raw.items() if name != ITEMS)

    @property
    def awaited(self) -> bool:
        """Whether an input's last answer was empty though Kafka may have more of it."""
        return any(topic.awaited for topic in self._raw.values())

    def topics(self) -> dict[str, int]:
        """Return the names of the topics that existed when this was made or were created since, with their partitions."""
        return dict(self._names)

    def create(self, name: str, n_partitions: int, retention_ms: int | None = None) -> Topic:
        """Create a topic in Kafka, or return the one that exists."""
        self._names[name] = n_partitions
        return _FencedTopic(
            self._reads.create(name, n_partitions, retention_ms), self._writes.create(name, n_partitions, retention_ms)
        )

    def topic(self, name: str) -> Topic:
        """Return a topic that exists."""
        return self._raw[name] if name in self._raw else self._reads.topic(name)

    def close(self) -> None:
        """Close the connection that is this partition's own."""
        self._writes.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _runs(records: Sequence[Record], end: int) -> list[tuple[int, list[Message]]]:
    """Cut the records from ``end`` on into runs without gaps; what comes again within the batch is dropped."""
    offsets = [record[0] for record in records]
    if offsets and offsets[0] >= end and offsets == list(range(offsets[0], offsets[0] + len(offsets))):
        return [(offsets[0], _messages(records))]
    fresh: list[Record] = []
    for record in records:
        if record.offset >= end:
            fresh.append(record)
            end = record.offset + 1
    if not fresh:
        return []
    cuts = [0, *(i for i, (one, two) in enumerate(pairwise(fresh), 1) if two.offset != one.offset + 1), len(fresh)]
    return [(fresh[begin].offset, _messages(fresh[begin:stop])) for begin, stop in pairwise(cuts)]


def _messages(records: Sequence[Record]) -> list[Message]:
    # What Message(...) does, without the call in between: this runs for every record, in the thread that delivers.
    return list(map(tuple.__new__, repeat(Message), [record[1:] for record in records]))
