"""Samples of all partitions as one sequence, cut to batches of an exact number of requests.

Rows come in the order of (due, partition, seq), so a batch is a function of the log alone: not of block sizes, not of where a
reader started again. ``due`` counts as the running maximum within its partition, because a request that had to leave early may
stand before one that was due before it.

Every row is taken once: rows up to a partition's mark are duplicates of a joiner that crashed and are dropped, and a ``seq``
that is missing stops the reader.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from learners.samples import SampleBlock, SampleError, SampleSchema
from stream_app.profile import Profile

Ints = npt.NDArray[np.int64]

__all__ = ["EVERYTHING", "Batch", "BlockSource", "Place", "Range", "SampleReader", "SequenceGapError", "check_block"]


class SequenceGapError(SampleError):
    """A row of a partition is missing: samples were lost or trimmed."""


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where a reader stands in one partition."""

    position: int
    """Number of the block that holds the last row that was taken; of the first one to read, where none was."""
    end: int
    """Number to stop at: the partition's end when the run began."""
    seq: int | None = None
    """Mark: the last row that was taken."""
    due: int = -(2**62)
    """Its place in the order: the highest ``due`` so far, UTC ms."""
    request: int = 0
    """Its request id, by which another log with the same ``seq`` is told from this one."""


class Range(NamedTuple):
    """Requests with ``start <= ts < stop``, UTC ms; None is no bound."""

    start: int | None = None
    stop: int | None = None


EVERYTHING = Range()
WAY_OUT = "Join the log again into a new folder, or start after the gap with --from"


class Batch(NamedTuple):
    """Rows that are learned in one step, and the places after them."""

    block: SampleBlock
    places: tuple[Place, ...]
    order_due: int
    """Place in the order of the last row, UTC ms."""


class BlockSource(Protocol):
    """What is read; see :mod:`stream_app.sample_sources`."""

    @property
    def name(self) -> str:
        """What to call it in an error."""

    @property
    def n_partitions(self) -> int:
        """Partitions of the samples."""

    def blocks(self, partition: int, position: int, end: int) -> Iterator[tuple[int, SampleBlock]]:
        """Yield (number, block) from ``position`` on and before ``end``."""


class _Rows(NamedTuple):
    """Rows of one partition that are in memory, and their order."""

    block: SampleBlock
    due: Ints
    seq: Ints


class _Cursor:
    """Reads one partition block by block; checks what it reads."""

    def __init__(self, source: BlockSource, partition: int, place: Place, span: Range, slack_ms: int) -> None:
        self.partition = partition
        self.place = place
        self.rows: _Rows | None = None
        self.done = False
        self._name = source.name
        self._span = span
        self._last_due = None if span.stop is None else span.stop + slack_ms
        self._seq, self._due = place.seq, place.due
        self._blocks = source.blocks(partition, place.position, place.end)
        self._held: deque[tuple[int, int]] = deque()  # (number, last seq) of blocks from the last row taken on

    def fill(self, schema: SampleSchema) -> None:
        """Have rows in memory, unless the partition has no more."""
        while not self.done and self.rows is None:
            numbered = next(self._blocks, None)
            if numbered is None:
                self.done = True
            else:
                self._take_in(*numbered, schema)

    def took(self, seq: int, due: int, request: int) -> Place:
        """Note that the row ``seq`` was the last one to leave in a batch; return the place after it."""
        while self._held[0][1] < seq:
            self._held.popleft()
        self.place = Place(position=self._held[0][0], end=self.place.end, seq=seq, due=due, request=request)
        return self.place

    def _take_in(self, number: int, block: SampleBlock, schema: SampleSchema) -> None:
        if block.schema != schema:
            raise SampleError(
                f"{self._where(number)}: samples of generation {block.schema.generation} after {schema.generation}: "
                "the joiner's config changed there. Read one generation with --from or --to, or join the log again"
            )
        if not len(block):
            return
        seq = block.column("seq")
        check_block(block, seq, self.partition, self.place, self._seq, self._where(number), WAY_OUT)
        first = 0 if self._seq is None else int(np.searchsorted(seq, self._seq, side="right"))
        if first == len(block):
            return
        due = np.maximum.accumulate(np.maximum(block.column("due"), self._due))[first:]
        if first:
            block, seq = block.slice(first, len(block)), seq[first:]
        self._seq, self._due = int(seq[-1]), int(due[-1])
        self._held.append((number, self._seq))
        if self._last_due is not None and self._due >= self._last_due:
            self.done = True  # Later rows were shown at or after the end of the range.
        ts = block.column("ts")
        inside = np.ones(len(ts), np.bool_)
        if self._span.start is not None:
            inside &= ts >= self._span.start
        if self._span.stop is not None:
            inside &= ts < self._span.stop
        if inside.all():
            self.rows = _Rows(block, due, seq)
        elif inside.any():
            kept = np.flatnonzero(inside)
            self.rows = _Rows(block.take(kept), due[kept], seq[kept])

    def _where(self, number: int) -> str:
        return f"{self._name}, partition {self.partition}, block {number}"


def check_block(
    block: SampleBlock, seq: Ints, partition: int, place: Place, last_seq: int | None, where: str, way_out: str
) -> None:
    """Hold a block against the rows before it: its partition, a dense ``seq``, the same request at the mark.

    Args:
        block: one row or more.
        seq: its column.
        partition: that it was read from.
        place: of the last row that was taken.
        last_seq: of the last row that was read; None where none was.
        where: the block was read, for the message.
        way_out: what to do about a gap.

    Raises:
        SequenceGapError: a row is missing.
        SampleError: it has rows of another partition, or other rows than those that were taken before.
    """
    if (block.column("partition") != partition).any():
        raise SampleError(f"{where}: rows of another partition; was the topic written by another joiner?")
    broken = np.flatnonzero(np.diff(seq) != 1)
    if len(broken):
        raise _gap(where, int(seq[broken[0]]) + 1, int(seq[broken[0] + 1]), way_out)
    if last_seq is not None and seq[0] > last_seq + 1:
        raise _gap(where, last_seq + 1, int(seq[0]), way_out)
    if place.seq is not None and seq[0] <= place.seq <= seq[-1]:
        request = int(block.column("request")[place.seq - int(seq[0])])
        if request != place.request:
            raise SampleError(
                f"{where}: row {place.seq} is not the request that was learned last: these are other samples. "
                "Give the log that the run began with, or start a new run"
            )


def _gap(where: str, expected: int, got: int, way_out: str) -> SequenceGapError:
    return SequenceGapError(f"{where}: seq {expected} was expected, {got} came: samples are missing. {way_out}")


class SampleReader:
    """Iterates over the batches of a range, once.

    Args:
        source: of the blocks.
        schema: what every block has to be.
        places: where to begin, one per partition: those of the source, or those of a :class:`Batch` to go on after it.
        batch_requests: rows of a batch; the last one may be shorter.
        span: which requests count, by ``ts``.
        slack_ms: how much later than its ``ts`` a row may be due (the label window): where to stop reading.
        profile: where the time goes.

    Raises:
        SequenceGapError: a row is missing.
        SampleError: a block is unreadable, newer, of another generation, or from other samples than ``places``.
    """

    def __init__(
        self,
        source: BlockSource,
        schema: SampleSchema,
        places: Sequence[Place],
        batch_requests: int,
        span: Range = EVERYTHING,
        slack_ms: int = 0,
        profile: Profile | None = None,
    ) -> None:
        if len(places) != source.n_partitions:
            raise SampleError(f"{source.name}: {source.n_partitions} partitions, the run began with {len(places)}")
        self._schema = schema
        self._batch_requests = batch_requests
        self._profile = profile or Profile()
        self._cursors = [_Cursor(source, p, place, span, slack_ms) for p, place in enumerate(places)]

    def __iter__(self) -> Iterator[Batch]:
        carry: list[_Rows] = []
        n_carried = 0
        for rows in self._merged():
            carry.append(rows)
            n_carried += len(rows.due)
            if n_carried < self._batch_requests:
                continue
            with self._profile.stage("merge"):
                joined = _joined(carry)
            start = 0
            while n_carried - start >= self._batch_requests:
                yield self._batch(joined, start, start + self._batch_requests)
                start += self._batch_requests
            carry, n_carried = [_part(joined, start, n_carried)], n_carried - start
        if n_carried:
            yield self._batch(_joined(carry), 0, n_carried)

    def _batch(self, rows: _Rows, start: int, stop: int) -> Batch:
        part = _part(rows, start, stop)
        partitions, requests = part.block.column("partition"), part.block.column("request")
        for p in np.unique(partitions):
            last = int(np.flatnonzero(partitions == p)[-1])
            self._cursors[p].took(int(part.seq[last]), int(part.due[last]), int(requests[last]))
        return Batch(part.block, tuple(cursor.place for cursor in self._cursors), int(part.due[-1]))

    def _merged(self) -> Iterator[_Rows]:
        """Yield pieces of the merged sequence: all rows that no row still unread can come before."""
        while True:
            for cursor in self._cursors:
                cursor.fill(self._schema)
            held = [(cursor, cursor.rows) for cursor in self._cursors if cursor.rows is not None]
            if not held:
                return
            if len(held) == 1:
                cursor, rows = held[0]
                cursor.rows = None
                yield rows
                continue
            with self._profile.stage("merge"):
                yield _merge(held)


def _merge(held: Sequence[tuple[_Cursor, _Rows]]) -> _Rows:
    """Take from each cursor the rows up to the earliest end of what is held, and order them by (due, partition, seq).

    The cursor with the earliest last row gives all it has; ties go to the lower partition, whose next row, were it due at the
    same time, would come before those of the higher ones.
    """
    horizon, lowest = min((int(rows.due[-1]), cursor.partition) for cursor, rows in held)
    pieces: list[_Rows] = []
    for cursor, rows in held:
        side: Literal["left", "right"] = "right" if cursor.partition <= lowest else "left"
        n = int(np.searchsorted(rows.due, horizon, side=side))
        if n:
            pieces.append(_part(rows, 0, n))
        cursor.rows = _part(rows, n, len(rows.due)) if n < len(rows.due) else None
    joined = _joined(pieces)
    order = np.argsort(joined.due, kind="stable")  # pieces are in the order of partitions
    return _Rows(joined.block.take(order), joined.due[order], joined.seq[order])


def _part(rows: _Rows, start: int, stop: int) -> _Rows:
    return _Rows(rows.block.slice(start, stop), rows.due[start:stop], rows.seq[start:stop])


def _joined(pieces: Sequence[_Rows]) -> _Rows:
    if len(pieces) == 1:
        return pieces[0]
    return _Rows(
        SampleBlock.concat([piece.block for piece in pieces]),
        np.concatenate([piece.due for piece in pieces]),
        np.concatenate([piece.seq for piece in pieces]),
    )
