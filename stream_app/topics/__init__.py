"""Where events come from and go to: one small interface, several kinds.

A *log* is a set of named *topics*; a topic is a fixed number of *partitions*; a partition is a sequence of records with
dense offsets that only grows at its end and may be trimmed at its start (retention). This is Kafka's model, so that Kafka
is one more kind.

========== ============================= ==============================================================
kind       module                        for
========== ============================= ==============================================================
embedded   :mod:`.embedded` (RocksDB)    one machine, no broker; durable; read by other processes as it grows
memory     :mod:`.memory`                tests, and joining on the fly
========== ============================= ==============================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import NamedTuple, Protocol, Self, runtime_checkable


class TopicError(ValueError):
    """A topic cannot be used as asked: unknown, of another shape, locked, or a position that it no longer holds."""


class PositionLostError(TopicError):
    """A position lies before the first record that the partition still holds: retention was shorter than the outage."""


class Record(NamedTuple):
    """One record of a partition. ``ts`` is the broker's time stamp in UTC ms."""

    offset: int
    ts: int
    key: bytes
    value: bytes


class Message(NamedTuple):
    """What is appended: a record that has no offset yet. ``ts`` in UTC ms; ``key`` may be empty."""

    ts: int
    key: bytes
    value: bytes


@runtime_checkable
class Topic(Protocol):
    """A named sequence of records in partitions."""

    @property
    def name(self) -> str:
        """The topic's name."""

    @property
    def n_partitions(self) -> int:
        """Partitions, fixed at creation."""

    def append(self, partition: int, messages: Sequence[Message]) -> int:
        """Append all of ``messages`` or none; return the offset after the last one. Durable when it returns."""

    def read(self, partition: int, position: int, max_records: int = 1_000, max_bytes: int = 16 << 20) -> list[Record]:
        """Return records from ``position`` on, at most ``max_records``, stopping after ``max_bytes`` (one at least).

        Empty at the end of the partition; never waits.

        Raises:
            PositionLostError: ``position`` is before :meth:`start`.
            TopicError: ``position`` is after :meth:`end`, so the log lost records that its reader had seen.
        """

    def position_at(self, partition: int, ts: int) -> int:
        """Return the offset of the first record held whose ``ts`` is at or after the given one; :meth:`end` if none is."""

    def start(self, partition: int) -> int:
        """Return the first offset that is still held."""

    def end(self, partition: int) -> int:
        """Return the offset that the next record will get."""


@runtime_checkable
class Log(Protocol):
    """A set of topics."""

    def topics(self) -> dict[str, int]:
        """Return the names of the topics that exist, with their partition counts."""

    def create(self, name: str, n_partitions: int, retention_ms: int | None = None) -> Topic:
        """Create a topic, or return the one that exists with this shape.

        Args:
            name: letters, digits, ``.``, ``_`` and ``-``.
            n_partitions: at least 1.
            retention_ms: records older than the newest one's ``ts`` by more than this may be dropped; None keeps
                all, and leaves the retention of a topic that exists as it is.

        Raises:
            TopicError: it exists with another partition count.
        """

    def topic(self, name: str) -> Topic:
        """Return a topic that exists.

        Raises:
            TopicError: it does not; the message names those that do.
        """

    def close(self) -> None:
        """Release files and locks; using a topic afterwards is an error."""

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...
