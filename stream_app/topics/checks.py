"""What every kind of log refuses, in the same words: bad names, shapes, partitions, positions and messages."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

from . import Message, PositionLostError, Record, TopicError

Columns = tuple[list[int], list[bytes], list[bytes]]
"""Messages turned on their side: time stamps, keys, values."""

_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,249}")
_TS_LIMIT: Final = 1 << 63


def check_shape(name: str, n_partitions: int, retention_ms: int | None) -> None:
    """Refuse a topic that cannot be created (names follow Kafka's rule, so that a log can move there)."""
    if not _NAME.fullmatch(name) or name in {".", ".."}:
        raise TopicError(f"topic name {name!r}: use 1 to 249 letters, digits, '.', '_' and '-', and not '.' or '..' alone")
    if n_partitions < 1:
        raise TopicError(f"topic {name!r}: n_partitions is {n_partitions}, must be at least 1")
    if retention_ms is not None and retention_ms < 1:
        raise TopicError(f"topic {name!r}: retention_ms is {retention_ms}, must be at least 1 (None keeps all)")


def check_same_partitions(name: str, n_partitions: int, existing: int) -> None:
    """Refuse to create a topic that exists with another partition count."""
    if n_partitions != existing:
        raise TopicError(
            f"topic {name!r} exists with {existing} partition(s), asked for {n_partitions}; "
            "a partition count is fixed at creation: use that count, another topic name or another log"
        )


def unknown_topic(name: str, log: str, existing: Iterable[str]) -> TopicError:
    """Return the error for a topic that ``log`` does not hold, naming those that it does."""
    names = ", ".join(sorted(existing)) or "none yet"
    return TopicError(f"no topic {name!r} in {log}; topics there: {names}")


def check_partition(name: str, partition: int, n_partitions: int) -> None:
    """Refuse a partition that the topic does not have."""
    if not 0 <= partition < n_partitions:
        raise TopicError(f"topic {name!r} has partitions 0 to {n_partitions - 1}, not {partition}")


def check_read(name: str, partition: int, position: int, start: int, end: int) -> None:
    """Refuse a position outside [``start``, ``end``].

    Raises:
        PositionLostError: before ``start``.
        TopicError: after ``end``: whoever saved it had seen records that are not here, so waiting would never end.
    """
    if position < start:
        raise PositionLostError(
            f"topic {name!r} partition {partition}: position {position} is no longer held, the first record is {start}; "
            f"give the topic a retention longer than its readers' outages, or start over from {start}"
        )
    if position > end:
        raise TopicError(
            f"topic {name!r} partition {partition}: position {position} is after its end {end}; the log was replaced or lost "
            "its last records: restore it, or start over from its start"
        )


def check_trim(name: str, partition: int, before_offset: int, end: int) -> None:
    """Refuse to trim records that do not exist yet."""
    if before_offset > end:
        raise TopicError(f"topic {name!r} partition {partition}: cannot trim before {before_offset}, its end is {end}")


def check_limits(max_records: int, max_bytes: int) -> None:
    """Refuse limits under which nothing could ever be read."""
    if max_records < 1 or max_bytes < 1:
        raise TopicError(f"max_records ({max_records}) and max_bytes ({max_bytes}) must be at least 1")


def check_messages(name: str, messages: Sequence[Message]) -> Columns:
    """Return the columns of ``messages`` (at least one); refuse what could not be read back unchanged."""
    ts, keys, values = map(list, zip(*messages, strict=True))
    if set(map(type, ts)) != {int} or set(map(type, keys)) != {bytes} or set(map(type, values)) != {bytes}:
        wrong = next(m for m in messages if (type(m[0]), type(m[1]), type(m[2])) != (int, bytes, bytes))
        kinds = ", ".join(type(part).__name__ for part in wrong)
        raise TopicError(f"topic {name!r}: a message is (int ts, bytes key, bytes value), not ({kinds}); nothing was appended")
    if max(ts) >= _TS_LIMIT or min(ts) < -_TS_LIMIT:
        raise TopicError(f"topic {name!r}: ts must fit 64 bits (UTC ms), got {max(ts, key=abs)}; nothing was appended")
    return ts, keys, values


def take(records: Iterable[Record], max_records: int, max_bytes: int, at_least_one: bool = True) -> list[Record]:
    """Return the head of ``records``: at most ``max_records`` whose keys and values are ``max_bytes`` together."""
    taken: list[Record] = []
    n_bytes = 0
    for record in records:
        n_bytes += len(record.key) + len(record.value)
        if len(taken) >= max_records or (n_bytes > max_bytes and (taken or not at_least_one)):
            break
        taken.append(record)
    return taken
