"""A topic of Kafka: what :mod:`.kafka` connects to, seen through the interface of all topics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from . import Message, Record, TopicError
from .checks import check_limits, check_messages, check_partition, check_trim
from .kafka_reader import KafkaReader

if TYPE_CHECKING:
    from .kafka import KafkaLog

__all__ = ["KafkaTopic"]

_LONG_MAX: Final = (1 << 63) - 1


class KafkaTopic:
    """A topic of a :class:`KafkaLog`; may be used by several threads. See :class:`stream_app.topics.Topic`."""

    def __init__(self, owner: KafkaLog, name: str, n_partitions: int) -> None:
        self._log = owner
        self._name = name
        self._n_partitions = n_partitions
        self._ends: dict[int, tuple[int, int]] = {}  # partition -> (end for Kafka, end for us)
        self.reader = KafkaReader(owner, name, n_partitions)

    @property
    def name(self) -> str:
        """The topic's name, without the prefix."""
        return self._name

    @property
    def n_partitions(self) -> int:
        """Partitions when it was opened."""
        return self._n_partitions

    @property
    def retention_ms(self) -> int | None:
        """How long records are kept by the wall clock; None is for ever."""
        kept = int(self._log.settings(self._name)["retention.ms"])
        return None if kept < 0 else kept

    def append(self, partition: int, messages: Sequence[Message]) -> int:
        """Append all of ``messages``; return the offset after the last one. All replicas in sync have them when it returns.

        Raises:
            FencedError: another process has the log's fence.
            TopicError: a message cannot be stored (nothing was), or the cluster was away for too long.
        """
        self._check(partition)
        if not messages:
            return self.end(partition)
        columns = check_messages(self._name, messages)
        ts, keys, values = columns
        if min(ts) < 0:
            raise TopicError(f"topic {self._name!r}: ts is UTC ms from 0 on in Kafka, got {min(ts)}; nothing was appended")
        largest = max(map(len, values)) + max(map(len, keys))
        if largest > self._log.config.max_block_bytes:
            raise TopicError(
                f"topic {self._name!r}: a record of {largest} bytes is more than kafka.max_block_bytes = "
                f"{self._log.config.max_block_bytes}; nothing was appended. Set it higher, and the topic's max.message.bytes"
            )
        last = self._log.writer.append(self._log.tp(self._name, partition), ts, keys, values)
        if last < 0:
            return self.end(partition)
        if self._log.fence is not None:
            self._log.await_committed(self._name, partition, last)
        return last + 1

    def read(self, partition: int, position: int, max_records: int = 1_000, max_bytes: int = 16 << 20) -> list[Record]:
        """Return records from ``position`` on, as :meth:`stream_app.topics.Topic.read`; waits for at most one fetch.

        Fastest where each call goes on after the one before it: partitions of a topic are fetched ahead together.

        Raises:
            PositionLostError: ``position`` is before :meth:`start`.
            TopicError: ``position`` is after the end, or the cluster was away for too long.
        """
        self._check(partition)
        check_limits(max_records, max_bytes)
        return self.reader.read(partition, position, max_records, max_bytes)

    def position_at(self, partition: int, ts: int) -> int:
        """Return the offset of the first record held whose ``ts`` is at or after the given one, or the end."""
        self._check(partition)
        if ts <= 0:
            return min(self.start(partition), self.end(partition))
        start, end = self._log.bounds(self._name, partition)
        begin = self._log.offset(self._name, partition, ts) if ts <= _LONG_MAX else -1
        if begin < 0 and start and self._log.newest_ts(self._name, partition) >= ts:
            begin = start  # Kafka gives up where the first such record of a segment was deleted, with others behind it.
        # What was found may be the marker of a transaction, which has the time of its commit.
        for piece in self._log.scan(self._name, partition, begin, end) if begin >= 0 else ():
            for record in piece:
                if record.timestamp >= ts:
                    return int(record.offset)
        return self.end(partition)

    def start(self, partition: int) -> int:
        """Return the first offset that is still held."""
        self._check(partition)
        return self._log.bounds(self._name, partition)[0]

    def end(self, partition: int) -> int:
        """Return the offset after the last record that can be read; :meth:`start` where there is none."""
        self._check(partition)
        start, end = self._log.bounds(self._name, partition)
        known = self._ends.get(partition)
        if known is None or known[0] != end:
            known = self._ends[partition] = (end, self._after_last_record(partition, start, end))
        return max(start, known[1])

    def _after_last_record(self, partition: int, start: int, end: int) -> int:
        """Return the offset after the last record before ``end``, going back over the markers of transactions."""
        back = 1
        while True:
            begin = max(start, end - back)
            offsets = [record.offset for piece in self._log.scan(self._name, partition, begin, end) for record in piece]
            if offsets:
                return int(offsets[-1]) + 1
            if begin <= start:
                return start
            back *= 8

    def trim(self, partition: int, before_offset: int) -> int:
        """Drop the records before ``before_offset`` (at most the end); return the new start."""
        self._check(partition)
        start, end = self._log.bounds(self._name, partition)
        check_trim(self._name, partition, before_offset, end)
        if before_offset > start:
            self._log.delete_before(self._name, partition, before_offset)
        return max(start, before_offset)

    def _check(self, partition: int) -> None:
        self._log.check_open()
        check_partition(self._name, partition, self._n_partitions)
