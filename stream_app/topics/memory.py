"""A log in memory: the semantics of the embedded one without files, for tests and for joining on the fly."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from itertools import islice, starmap
from types import TracebackType
from typing import Self

from . import Message, Record, TopicError
from .checks import (
    check_limits,
    check_messages,
    check_partition,
    check_read,
    check_same_partitions,
    check_shape,
    check_trim,
    take,
    unknown_topic,
)


class MemoryTopic:
    """A topic of a :class:`MemoryLog`; may be used by several threads."""

    def __init__(self, name: str, n_partitions: int, retention_ms: int | None) -> None:
        self._name = name
        self.retention_ms = retention_ms
        self._lock = threading.Lock()
        self._partitions: list[list[Record]] = [[] for _ in range(n_partitions)]
        self._starts = [0] * n_partitions
        self._newest_ts: list[int | None] = [None] * n_partitions
        self._closed = False

    @property
    def name(self) -> str:
        """The topic's name."""
        return self._name

    @property
    def n_partitions(self) -> int:
        """Partitions, fixed at creation."""
        return len(self._partitions)

    def append(self, partition: int, messages: Sequence[Message]) -> int:
        """Append all of ``messages`` or none; return the offset after the last one."""
        with self._lock:
            records = self._records(partition)
            first = self._starts[partition] + len(records)
            if not messages:
                return first
            ts, keys, values = check_messages(self._name, messages)
            end = first + len(ts)
            records.extend(starmap(Record, zip(range(first, end), ts, keys, values, strict=True)))
            newest = self._newest_ts[partition]
            newest = self._newest_ts[partition] = max(ts) if newest is None else max(newest, *ts)
            if self.retention_ms is not None:
                self._drop_older(partition, newest - self.retention_ms)
            return end

    def _drop_older(self, partition: int, ts: int) -> None:
        records = self._partitions[partition]
        n_old = next((i for i, record in enumerate(records) if record.ts >= ts), len(records))
        self._drop(partition, n_old)

    def _drop(self, partition: int, n_records: int) -> None:
        del self._partitions[partition][:n_records]
        self._starts[partition] += n_records

    def read(self, partition: int, position: int, max_records: int = 1_000, max_bytes: int = 16 << 20) -> list[Record]:
        """Return records from ``position`` on, as :meth:`stream_app.topics.Topic.read`.

        Raises:
            PositionLostError: ``position`` is before :meth:`start`.
            TopicError: ``position`` is after :meth:`end`.
        """
        with self._lock:
            records = self._records(partition)
            check_limits(max_records, max_bytes)
            start = self._starts[partition]
            check_read(self._name, partition, position, start, start + len(records))
            first = position - start
            return take(islice(records, first, first + max_records), max_records, max_bytes)

    def position_at(self, partition: int, ts: int) -> int:
        """Return the offset of the first record held whose ``ts`` is at or after the given one, or the end."""
        with self._lock:
            records = self._records(partition)
            end = self._starts[partition] + len(records)
            return next((record.offset for record in records if record.ts >= ts), end)

    def start(self, partition: int) -> int:
        """Return the first offset that is still held."""
        with self._lock:
            self._records(partition)
            return self._starts[partition]

    def end(self, partition: int) -> int:
        """Return the offset that the next record will get."""
        with self._lock:
            records = self._records(partition)
            return self._starts[partition] + len(records)

    def trim(self, partition: int, before_offset: int) -> int:
        """Drop the records before ``before_offset`` (at most the end); return the new start."""
        with self._lock:
            records = self._records(partition)
            start = self._starts[partition]
            check_trim(self._name, partition, before_offset, start + len(records))
            self._drop(partition, max(0, before_offset - start))
            return self._starts[partition]

    def _records(self, partition: int) -> list[Record]:
        if self._closed:
            raise TopicError(f"topic {self._name!r}: its log is closed; open a log and use that one's topics")
        check_partition(self._name, partition, len(self._partitions))
        return self._partitions[partition]

    def _close(self) -> None:
        with self._lock:
            self._closed = True


class MemoryLog:
    """A set of topics that lives as long as this object."""

    def __init__(self) -> None:
        self._topics: dict[str, MemoryTopic] = {}
        self._closed = False

    def topics(self) -> dict[str, int]:
        """Return the names of the topics that exist, with their partition counts."""
        self._check_open()
        return {name: topic.n_partitions for name, topic in sorted(self._topics.items())}

    def create(self, name: str, n_partitions: int, retention_ms: int | None = None) -> MemoryTopic:
        """Create a topic, or return the one that exists with this shape, as :meth:`stream_app.topics.Log.create`."""
        self._check_open()
        check_shape(name, n_partitions, retention_ms)
        topic = self._topics.setdefault(name, MemoryTopic(name, n_partitions, retention_ms))
        check_same_partitions(name, n_partitions, topic.n_partitions)
        if retention_ms is not None:
            topic.retention_ms = retention_ms
        return topic

    def topic(self, name: str) -> MemoryTopic:
        """Return a topic that exists.

        Raises:
            TopicError: it does not; the message names those that do.
        """
        self._check_open()
        if name not in self._topics:
            raise unknown_topic(name, "the memory log", self._topics)
        return self._topics[name]

    def close(self) -> None:
        """Forget everything; using a topic afterwards is an error."""
        self._closed = True
        for topic in self._topics.values():
            topic._close()

    def _check_open(self) -> None:
        if self._closed:
            raise TopicError("the memory log is closed; open a new one")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
