"""Chunks: the records of one append framed together, the unit in which the embedded log stores a partition.

A key per record is scanned at an eighth of the rate of a key per 256 records (measured here), so an append is cut into chunks
of at most 256 records or 64 KB; a larger record is a chunk of its own. A chunk never changes once it is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate, repeat
from typing import Any, Final, NamedTuple, Protocol

import msgspec

from . import Record
from .checks import Columns

CHUNK_RECORDS: Final = 256
CHUNK_BYTES: Final = 64 << 10
_KEY_BYTES: Final = 8


class ChunkHead(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """What can be known of a chunk without its records."""

    n_records: int
    running_max_ts: int
    """Largest ``ts`` in the partition up to this chunk's end: it only grows, so it can be searched."""
    max_ts: int
    """Largest ``ts`` in this chunk."""
    n_bytes: int
    """Keys and values together."""


class Chunk(ChunkHead, array_like=True, gc=False, frozen=True):
    """Neighbouring records as columns."""

    ts: list[int]
    keys: list[bytes]
    values: list[bytes]

    def records(self, first: int) -> list[Record]:
        """Return the records; ``first`` is the offset of the first one."""
        rows = zip(range(first, first + self.n_records), self.ts, self.keys, self.values, strict=True)
        # The C-level tuple.__new__ makes a Record in 0.6 of the time of Record(...); a scan spends most of its time here.
        return list(map(tuple.__new__, repeat(Record), rows))


def frame(columns: Columns, running_max_ts: int) -> Iterator[Chunk]:
    """Cut an append into chunks; ``running_max_ts`` is the partition's largest ``ts`` before it."""
    ts, keys, values = columns
    sizes = [len(key) + len(value) for key, value in zip(keys, values, strict=True)]
    for begin, end in _cuts(sizes):
        max_ts = max(ts[begin:end])
        running_max_ts = max(running_max_ts, max_ts)
        yield Chunk(
            n_records=end - begin,
            running_max_ts=running_max_ts,
            max_ts=max_ts,
            n_bytes=sum(sizes[begin:end]),
            ts=ts[begin:end],
            keys=keys[begin:end],
            values=values[begin:end],
        )


def _cuts(sizes: list[int]) -> Iterator[tuple[int, int]]:
    """Yield the [begin, end) of each chunk: full at CHUNK_RECORDS records or CHUNK_BYTES bytes."""
    begin = 0
    while begin < len(sizes):
        end = begin
        for n_bytes in accumulate(sizes[begin : begin + CHUNK_RECORDS]):
            if n_bytes > CHUNK_BYTES and end > begin:
                break
            end += 1
        yield begin, end
        begin = end


_encoder = msgspec.msgpack.Encoder()
_chunk_decoder = msgspec.msgpack.Decoder(Chunk)
_head_decoder = msgspec.msgpack.Decoder(ChunkHead)


def encode(chunk: Chunk) -> bytes:
    """Return the bytes of a chunk."""
    return _encoder.encode(chunk)


def chunk_key(offset: int) -> bytes:
    """Return the key of the chunk that begins at ``offset``: 8 bytes, in the order of the offsets."""
    return offset.to_bytes(_KEY_BYTES, "big")


class DecodedChunk(NamedTuple):
    """The records of a chunk, and their bytes."""

    records: list[Record]
    n_bytes: int


class _Cursor(Protocol):
    """A place among sorted keys (RocksDB's iterator)."""

    def valid(self) -> bool: ...
    def status(self) -> None: ...
    def key(self) -> Any: ...
    def value(self) -> Any: ...
    def next(self) -> None: ...
    def seek_to_last(self) -> None: ...
    def seek_for_prev(self, key: bytes) -> None: ...


class MissingChunkError(Exception):
    """A chunk is not where the chunks around it say; whoever opened the cursor knows if looking again can help."""


class ChunkCursor:
    """A place among the chunks of one partition.

    Args:
        cursor: over keys of :func:`chunk_key` and values of :func:`encode`.
        sparse: there may be offsets that no chunk holds.
    """

    def __init__(self, cursor: _Cursor, sparse: bool = False) -> None:
        self._cursor = cursor
        self._sparse = sparse

    def seek(self, offset: int) -> int:
        """Go to the chunk that holds ``offset``, or to the last one before where it lies in a gap; return its first offset."""
        self._cursor.seek_for_prev(chunk_key(offset))
        first = self._first(offset)
        if not self._sparse and first + self.head().n_records <= offset:
            raise MissingChunkError(f"no chunk holds offset {offset}")
        return first

    def seek_to_last(self) -> int | None:
        """Go to the last chunk; return its first offset, None if there is no chunk."""
        self._cursor.seek_to_last()
        self._cursor.status()
        return self._first(0) if self._cursor.valid() else None

    def next(self, offset: int) -> int:
        """Go to the next chunk, which begins at ``offset``, where there may be gaps also after it; return its first offset."""
        self._cursor.next()
        first = self._first(offset)
        if first != offset and not self._sparse:
            raise MissingChunkError(f"no chunk begins at offset {offset}")
        return first

    def _first(self, wanted: int) -> int:
        if not self._cursor.valid() or len(key := self._cursor.key()) != _KEY_BYTES:
            self._cursor.status()
            raise MissingChunkError(f"no chunk at or around offset {wanted}")
        return int.from_bytes(key, "big")

    def head(self) -> ChunkHead:
        """Return this chunk's head: the columns behind it are skipped, not built."""
        return _head_decoder.decode(self._cursor.value())

    def decoded(self) -> DecodedChunk:
        """Return this chunk's records."""
        chunk = _chunk_decoder.decode(self._cursor.value())
        return DecodedChunk(chunk.records(self._first(0)), chunk.n_bytes)

    def reaches(self, ts: int, start: int, end: int) -> int:
        """Return an offset in the first chunk in [``start``, ``end``) where the running maximum reaches ``ts``.

        Binary search, as the running maximum only grows; the last chunk if it never gets there.
        """
        low, high = start, end - 1
        while low < high:
            middle = (low + high) // 2
            first = self.seek(middle)
            head = self.head()
            if head.running_max_ts >= ts:
                high = first
            else:
                low = max(first + head.n_records, middle + 1)
        return low

    def first_at(self, position: int, end: int, ts: int) -> int:
        """Return the first offset in [``position``, ``end``) whose own ``ts`` is at or after the given one, or ``end``.

        From :meth:`reaches` on it is in the first chunk, unless what took the running maximum there has been trimmed.
        """
        first = self.seek(position)
        while True:
            head = self.head()
            if head.max_ts >= ts:
                for record in self.decoded().records[position - first :]:
                    if record.ts >= ts:
                        return record.offset
            position = first + head.n_records
            if position >= end:
                return end
            first = self.next(position)
