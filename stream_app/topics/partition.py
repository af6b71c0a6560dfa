"""A partition of the embedded log: chunks in a store of sorted keys, which another process may be filling.

The store maps the offset of a chunk's first record to the chunk (see :mod:`.chunks`), and one key more to the first offset
that is held. A writer knows start and end by heart; a reader has a *view* of the writer's files as it last looked, looks again
when it is asked for what it does not have, and can tell when a view has holes, because offsets are dense.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Protocol, TypeVar

from . import Message, Record, TopicError
from .checks import check_limits, check_messages, check_read, check_trim, take
from .chunks import ChunkCursor, DecodedChunk, chunk_key, encode, frame

_START: Final = b"\0"  # Sorts before all offsets; its value is the first offset held, 0 if it is not there.
_NO_TS: Final = -(1 << 63)
_RETRY_PAUSES: Final = (0.0, 0.01, 0.03, 0.1, 0.3)
_T = TypeVar("_T")


class Store(Protocol):
    """Sorted keys that one process writes, and others follow."""

    name: str
    writes: bool
    """Opened for writing."""
    sparse: bool
    """Offsets may have gaps."""

    @property
    def opened(self) -> bool:
        """Opened, for whatever."""

    def exists(self) -> bool:
        """Return whether anything was ever written."""

    def open_to_write(self) -> None:
        """Take the writer's lock; TopicError if it is taken."""

    def follow(self) -> None:
        """Open for reading, or look again: see all that was acknowledged before this call."""

    def chunks(self) -> ChunkCursor:
        """Return a new place among the chunks."""

    def get(self, key: bytes) -> bytes | None:
        """Return the value of one key."""

    def write(self, puts: Iterable[tuple[bytes, bytes]], delete: tuple[bytes, bytes] | None = None) -> None:
        """Put keys and values, and delete the keys from the first to before the second, all or nothing."""

    def disk_bytes(self) -> int:
        """Return the bytes of its files."""

    def release(self) -> None:
        """Close; may be opened again."""


class Partition:
    """One partition, as the methods of :class:`stream_app.topics.Topic` say; may be used by several threads."""

    def __init__(self, topic: str, index: int, store: Store, read_only: bool) -> None:
        self._topic = topic
        self._index = index
        self._store = store
        self._read_only = read_only
        self._lock = threading.Lock()
        self._closed = False
        self._start = 0
        self._end = 0
        self._newest_ts = _NO_TS
        self._oldest_ts: int | None = None
        """Running maximum at the end of the first chunk held, once retention has looked for it."""
        self._half_read: DecodedChunk | None = None
        """The chunk that the last read took a part of: the next read begins there."""

    def append(self, messages: Sequence[Message], retention_ms: int | None) -> int:
        """Append all of ``messages`` or none; return the end."""
        with self._lock:
            self._open_to_write()
            if messages:
                self._put([(self._end, messages)])
            if messages and retention_ms is not None:
                self._look(lambda: self._retain(retention_ms))
            return self._end

    def append_at(self, runs: Sequence[tuple[int, Sequence[Message]]]) -> int:
        """Append runs of messages, each dense from the offset given with it on, all or none; return the end."""
        with self._lock:
            self._open_to_write()
            end = self._end
            for first, messages in runs:
                if first < end or not messages:
                    raise TopicError(f"topic {self._topic!r}: {len(messages)} record(s) at {first} cannot follow its end {end}")
                if first > end and not self._store.sparse:
                    raise TopicError(f"topic {self._topic!r}: {first} would leave a gap after {end}; open the log as sparse")
                end = first + len(messages)
            if runs:
                self._put(runs)
            return self._end

    def _put(self, runs: Sequence[tuple[int, Sequence[Message]]]) -> None:
        puts: list[tuple[bytes, bytes]] = []
        newest_ts = self._newest_ts
        for first, messages in runs:
            end = first
            for chunk in frame(check_messages(self._topic, messages), newest_ts):
                puts.append((chunk_key(end), encode(chunk)))
                end, newest_ts = end + chunk.n_records, chunk.running_max_ts
        if self._newest_ts == _NO_TS and runs[0][0]:
            puts.append((_START, chunk_key(runs[0][0])))
            self._start = runs[0][0]
        self._store.write(puts)
        self._end, self._newest_ts = end, newest_ts

    def read(self, position: int, max_records: int, max_bytes: int) -> list[Record]:
        """Return records from ``position`` on, up to a gap in the offsets, if there is one."""
        check_limits(max_records, max_bytes)
        with self._lock:
            if position >= self._end or not self._store.opened:
                self._refresh()
            return self._look(lambda: self._scan(position, max_records, max_bytes))

    def position_at(self, ts: int) -> int:
        """Return the offset of the first record held whose ``ts`` is at or after the given one, or the end."""
        with self._lock:
            self._refresh()
            return self._look(lambda: self._search(ts))

    def start(self) -> int:
        """Return the first offset held."""
        with self._lock:
            self._refresh()
            return self._start

    def end(self) -> int:
        """Return the offset of the next record."""
        with self._lock:
            self._refresh()
            return self._end

    def trim(self, before_offset: int) -> int:
        """Drop the records before ``before_offset``; return the new start."""
        with self._lock:
            self._open_to_write()
            check_trim(self._topic, self._index, before_offset, self._end)
            if before_offset > self._start:
                self._look(lambda: self._trim(before_offset))
            return self._start

    def disk_bytes(self) -> int:
        """Return the bytes of its files."""
        return self._store.disk_bytes()

    def close(self) -> None:
        """Release files and lock."""
        with self._lock:
            self._closed = True
            self._store.release()

    # -- reading

    def _scan(self, position: int, max_records: int, max_bytes: int) -> list[Record]:
        """Return the head of the records in [``position``, end), up to a gap."""
        check_read(self._topic, self._index, position, self._start, self._end)
        found: list[Record] = []
        if position == self._end:
            return found
        n_bytes = 0
        chunks = self._store.chunks()
        first = chunks.seek(position)
        while True:
            chunk = self._decoded(chunks, first)
            held = chunk.records[position - first :]
            held_bytes = chunk.n_bytes if position == first else sum(len(record.key) + len(record.value) for record in held)
            if len(found) + len(held) > max_records or n_bytes + held_bytes > max_bytes:
                part = take(held, max_records - len(found), max_bytes - n_bytes, at_least_one=not found)
                self._half_read = chunk if len(part) < len(held) else None
                return found + part
            found += held
            n_bytes += held_bytes
            position = max(position, first + len(chunk.records))
            if position == self._end or len(found) == max_records:
                return found
            first = chunks.next(position)
            if first > position:
                if found:
                    return found
                position = first

    def _search(self, ts: int) -> int:
        """Return the first offset held whose ``ts`` is at or after the given one, or the end."""
        if self._start == self._end or self._newest_ts < ts:
            return self._end
        chunks = self._store.chunks()
        return chunks.first_at(chunks.reaches(ts, self._start, self._end), self._end, ts)

    def _decoded(self, chunks: ChunkCursor, first: int) -> DecodedChunk:
        kept, self._half_read = self._half_read, None
        return kept if kept is not None and kept.records[0].offset == first else chunks.decoded()

    # -- dropping

    def _retain(self, retention_ms: int) -> None:
        """Drop the chunks that are wholly too old, in steps of a sixteenth of the retention: each leaves a tombstone."""
        oldest_held = self._newest_ts - retention_ms
        chunks = self._store.chunks()
        if self._oldest_ts is None:
            chunks.seek(self._start)
            self._oldest_ts = chunks.head().running_max_ts
        if self._oldest_ts < oldest_held - retention_ms // 16:
            first = chunks.seek(chunks.reaches(oldest_held, self._start, self._end))
            self._trim(max(self._start, first))

    def _trim(self, start: int) -> None:
        """Move the start; delete the chunks before it, but never the last one: it knows the end and the newest ``ts``."""
        first_kept = self._store.chunks().seek(min(start, self._end - 1))
        self._store.write([(_START, chunk_key(start))], delete=(chunk_key(0), chunk_key(first_kept)))
        self._start, self._oldest_ts = start, None

    # -- opening

    def _open_to_write(self) -> None:
        self._check_open()
        if self._read_only:
            raise TopicError(
                f"topic {self._topic!r}: the log was opened for reading only; open it without read_only to change it"
            )
        if not self._store.writes:
            self._store.release()
            self._store.open_to_write()
            self._look(self._load)

    def _refresh(self) -> None:
        """Learn what the partition's writer has done; nothing to do if that is this handle."""
        self._check_open()
        if not self._store.writes and self._store.exists():
            self._look(self._catch_up)

    def _catch_up(self) -> None:
        self._store.follow()
        self._load()

    def _look(self, operation: Callable[[], _T]) -> _T:
        """Return what ``operation`` reads; a reader opens again and repeats it where files changed under its view."""
        failure: Exception | None = None
        try:
            for pause in (0.0,) if self._store.writes else _RETRY_PAUSES:
                try:
                    if failure is not None:
                        self._catch_up()
                    return operation()
                except TopicError:
                    raise
                except Exception as error:
                    # What it was at holds a cursor, and that the database, with its files, however it is released.
                    traceback.clear_frames(error.__traceback__)
                    failure = error
                self._store.release()
                time.sleep(pause)
            raise TopicError(f"cannot read {self._store.name}: {failure}; repair or restore it") from failure
        finally:
            failure = None  # An error knows this frame: kept in it, both would stay until somebody looks for garbage.

    def _load(self) -> None:
        """Read start, end and newest ``ts`` from the store."""
        chunks = self._store.chunks()
        last = chunks.seek_to_last()
        if last is not None:
            head = chunks.head()
            self._end = last + head.n_records
            self._newest_ts = head.running_max_ts
            self._start = int.from_bytes(self._store.get(_START) or chunk_key(0), "big")

    def _check_open(self) -> None:
        if self._closed:
            raise TopicError(f"topic {self._topic!r}: its log is closed; open the log again and use that one's topics")
