"""Reading a topic of Kafka: one consumer for all its partitions, what was fetched kept per partition."""

from __future__ import annotations

import threading
from typing import Any, Final, Protocol

from . import Record
from .checks import check_read, take
from .patience import Patience

__all__ = ["HOLD_BYTES", "Cluster", "KafkaReader"]

HOLD_BYTES: Final = 32 << 20
"""What may lie unread of a partition before no more of it is fetched."""


class Cluster(Protocol):
    """What a reader needs of a log."""

    @property
    def patience(self) -> Patience:
        """How long to wait."""

    def tp(self, name: str, partition: int) -> Any:
        """Return Kafka's name of a partition."""

    def consumer(self) -> Any:
        """Return a consumer without assignment."""

    def poll(self, consumer: Any, timeout_ms: int) -> tuple[dict[Any, list[Any]], list[Any]]:
        """Return what was fetched, and partitions whose position is not held."""

    def bounds(self, name: str, partition: int) -> tuple[int, int]:
        """Return the first offset held, and the one after all that are committed."""


class _Lane:
    """What was fetched of one partition and not read yet."""

    __slots__ = ("first", "held", "known_end", "n_bytes", "position", "records", "resume_at")

    def __init__(self) -> None:
        self.position: int | None = None  # where the next read is expected; None: it has to seek
        self.records: list[Record] = []
        self.first = 0  # of ``records`` that is not read yet
        self.known_end = 0
        self.n_bytes = 0  # of ``records``
        self.held = False  # whether nothing more is fetched until these are read
        self.resume_at = 0  # where fetching goes on then

    def put(self, found: list[Any]) -> None:
        new = tuple.__new__  # what Record does, without the call in between: this runs for every record
        fresh = [new(Record, (r.offset, r.timestamp, r.key or b"", r.value or b"")) for r in found]
        if not self.left():
            self.records, self.n_bytes = [], 0
        self.records = self.records[self.first :] + fresh if self.records else fresh
        self.n_bytes += sum([len(record[2]) + len(record[3]) for record in fresh])
        self.first = 0
        self.resume_at = fresh[-1].offset + 1

    def left(self) -> int:
        return len(self.records) - self.first

    def skip_to(self, position: int) -> bool:
        """Whether ``position`` lies ahead in what was fetched; if so, stand there."""
        if self.position is None or not self.left() or not self.position < position <= self.records[-1].offset:
            return False
        self.first = next(i for i in range(self.first, len(self.records)) if self.records[i].offset >= position)
        self.position = position
        return True

    def take(self, max_records: int, max_bytes: int) -> list[Record]:
        taken = self.records[self.first : self.first + max_records]
        if self.n_bytes > max_bytes:
            taken = take(taken, max_records, max_bytes)
        self.first += len(taken)
        if taken:
            self.position = taken[-1].offset + 1
        return taken


class KafkaReader:
    """Reads the partitions of a topic; what is read slowly is fetched no further for a while, and nothing of it is dropped.

    Memory: per partition :data:`HOLD_BYTES` and one poll, and for all together what one fetch brings (50 MB).

    A partition is held back by leaving it out of the consumer's assignment. Pausing would keep what was fetched, but
    kafka-python 3.0.12 may never return to the fetch that it parked (``Fetcher.fetched_records`` takes parked records up where
    the current ones are None, and they can be empty).
    """

    def __init__(self, cluster: Cluster, name: str, n_partitions: int) -> None:
        self._cluster = cluster
        self._name = name
        self._lock = threading.Lock()
        self._lanes = [_Lane() for _ in range(n_partitions)]
        self._tps = [cluster.tp(name, p) for p in range(n_partitions)]
        self._consumer: Any = None

    def read(self, partition: int, position: int, max_records: int, max_bytes: int) -> list[Record]:
        """Return records from ``position`` on, as :meth:`stream_app.topics.Topic.read`."""
        with self._lock:
            lane = self._lanes[partition]
            if position != lane.position and not lane.skip_to(position):
                self._seek(partition, lane, position)
            if not lane.left():
                self._fetch(partition, lane, position)
            return lane.take(max_records, max_bytes)

    def close(self) -> None:
        """Close the connections."""
        with self._lock:
            if self._consumer is not None:
                self._consumer.close(autocommit=False)

    def _seek(self, partition: int, lane: _Lane, position: int) -> None:
        lane.position = None
        start, end = self._cluster.bounds(self._name, partition)
        check_read(self._name, partition, position, start, end)
        if self._consumer is None:
            self._consumer = self._cluster.consumer()
        tp = self._tps[partition]
        if tp not in self._consumer.assignment():
            self._consumer.assign([*self._consumer.assignment(), tp])
        self._consumer.seek(tp, position)
        lane.records, lane.first, lane.n_bytes, lane.held = [], 0, 0, False
        lane.position, lane.known_end = position, end

    def _fetch(self, partition: int, lane: _Lane, position: int) -> None:
        """Have records of a partition, unless it has no more."""
        patience = self._cluster.patience
        self._let_go(partition, lane)
        self._poll(0)
        since = patience.now()
        while not lane.left():
            if lane.position is None:
                self._seek(partition, lane, position)  # raises, unless the position is held after all
            at = self._at(partition)
            if at >= lane.known_end:
                start, lane.known_end = self._cluster.bounds(self._name, partition)
                if at >= lane.known_end:
                    check_read(self._name, partition, at, start, lane.known_end)
                    return
            self._poll(1_000)
            if lane.position is None or self._at(partition) != at:
                since = patience.now()
            patience.check(f"read topic {self._name!r} partition {partition}", since)

    def _at(self, partition: int) -> int:
        return int(self._consumer.position(self._tps[partition], timeout_ms=1_000))

    def _let_go(self, partition: int, lane: _Lane) -> None:
        """Fetch a partition again that was held back."""
        if lane.held:
            lane.held = False
            tp = self._tps[partition]
            self._consumer.assign([*self._consumer.assignment(), tp])
            self._consumer.seek(tp, lane.resume_at)

    def _hold(self, tp: Any, lane: _Lane) -> None:
        if not lane.held:
            lane.held = True
            self._consumer.assign([each for each in self._consumer.assignment() if each != tp])

    def _poll(self, timeout_ms: int) -> None:
        found, lost = self._cluster.poll(self._consumer, timeout_ms)
        for tp in lost:
            lane = self._lanes[tp.partition]
            lane.position = None
            self._hold(tp, lane)
        for tp, records in found.items():
            lane = self._lanes[tp.partition]
            lane.put(records)
            if lane.n_bytes >= HOLD_BYTES:
                self._hold(tp, lane)
