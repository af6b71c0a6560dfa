"""One partition of samples, read from a place on: each row once, in the order of ``seq``, and held against those before it.

Rows up to the place's mark are duplicates of a joiner that crashed and are dropped, and a ``seq`` that is missing stops the
reader. Blocks are taken in some at a time, as one; where something is the matter with them, one by one, so that what is wrong
is said of the block that it is in, after the rows before it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from learners.samples import SampleBlock, SampleError, SampleSchema

READ_ROWS = 2_048
"""Rows that are taken in at once, where there are so many: what follows costs per call more than per row."""
FIRST_ROWS = 256
"""Rows that are taken in at first; twice as many each time. A learner waits for the first ones."""
READ_BYTES = 4 << 20
"""Of rows in memory, after which no more are taken in at once."""

Ints = npt.NDArray[np.int64]

__all__ = ["EVERYTHING", "BlockSource", "Cursor", "Place", "Range", "Rows", "SequenceGapError", "check_block"]


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


class Rows(NamedTuple):
    """Rows of one partition that are in memory, and their order."""

    block: SampleBlock
    due: Ints
    seq: Ints


class Cursor:
    """Reads one partition, some blocks at once; checks what it reads.

    Args:
        source: of the blocks.
        partition: to read.
        place: where to begin.
        span: which requests count.
        slack_ms: how much later than its ``ts`` a row may be due.
        read_rows: rows that are taken in at once, at most a block more.
    """

    def __init__(
        self, source: BlockSource, partition: int, place: Place, span: Range, slack_ms: int, read_rows: int = READ_ROWS
    ) -> None:
        self.partition = partition
        self.place = place
        self.rows: Rows | None = None
        """In memory, and not merged yet."""
        self._done = False
        self._name = source.name
        self._span, self._read_rows, self._rows_at_once = span, read_rows, min(FIRST_ROWS, read_rows)
        self._last_due = None if span.stop is None else span.stop + slack_ms
        self._seq, self._due = place.seq, place.due
        self._blocks = source.blocks(partition, place.position, place.end)
        self._read: deque[tuple[int, SampleBlock]] = deque()
        self._error: Exception | None = None  # that reading on ended with; it comes when what was read before is used up
        self._held: deque[tuple[int, int]] = deque()  # (number, last seq) of blocks from the last row taken on

    def fill(self, schema: SampleSchema) -> None:
        """Have rows in memory, unless the partition has no more.

        Raises:
            SampleError: what comes next cannot be used.
        """
        while not self._done and self.rows is None:
            if not self._read:
                self._read_on()
            if not self._read:
                self._done = True
                if self._error is not None:
                    raise self._error
            elif not self._take_in_all(schema):
                self._take_in(*self._read.popleft(), schema)

    def _read_on(self) -> None:
        n_rows = n_bytes = 0
        try:
            while n_rows < self._rows_at_once and n_bytes < READ_BYTES and self._error is None:
                numbered = next(self._blocks, None)
                if numbered is None:
                    break
                self._read.append(numbered)
                n_rows += len(numbered[1])
                n_bytes += numbered[1].batch.nbytes
        except Exception as error:
            self._error = error
        self._rows_at_once = min(2 * self._rows_at_once, self._read_rows)

    def _take_in_all(self, schema: SampleSchema) -> bool:
        """Take in all that was read as one block, if nothing is the matter with it: else False, and nothing has changed."""
        numbers, blocks = zip(*self._read, strict=True)
        if len(blocks) == 1 or not all(len(block) and block.schema == schema for block in blocks):
            return False
        whole = SampleBlock.concat(blocks)
        seq = whole.column("seq")
        dense = int(seq[-1]) - int(seq[0]) == len(seq) - 1 and bool((np.diff(seq) == 1).all())
        new = self._seq is None or int(seq[0]) == self._seq + 1
        if not dense or not new or (whole.column("partition") != self.partition).any():
            return False
        self._read.clear()
        last = int(seq[0]) - 1 + np.cumsum([len(block) for block in blocks])
        self._hold(list(zip(numbers, last.tolist(), strict=True)), whole, seq)
        return True

    def held(self) -> list[tuple[int, int]]:
        """Return number and last ``seq`` of the blocks from the one of the last row that was taken on."""
        return list(self._held)

    def move_to(self, place: Place) -> None:
        """Note that the rows up to a place have left in batches."""
        self.place = place
        while self._held and place.seq is not None and self._held[0][1] < place.seq:
            self._held.popleft()

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
        if first:
            block, seq = block.slice(first, len(block)), seq[first:]
        self._hold([(number, int(seq[-1]))], block, seq)

    def _hold(self, numbers: Sequence[tuple[int, int]], block: SampleBlock, seq: Ints) -> None:
        """Have rows in memory that were checked: those of the range.

        Args:
            numbers: of the blocks that they come from, with the last ``seq`` of each.
            block: the rows.
            seq: its column.
        """
        due = np.maximum.accumulate(np.maximum(block.column("due"), self._due))
        self._seq, self._due = int(seq[-1]), int(due[-1])
        self._held.extend(numbers)
        if self._last_due is not None and self._due >= self._last_due:
            self._done = True  # Later rows were shown at or after the end of the range.
        ts = block.column("ts")
        inside = np.ones(len(ts), np.bool_)
        if self._span.start is not None:
            inside &= ts >= self._span.start
        if self._span.stop is not None:
            inside &= ts < self._span.stop
        if inside.all():
            self.rows = Rows(block, due, seq)
        elif inside.any():
            kept = np.flatnonzero(inside)
            self.rows = Rows(block.take(kept), due[kept], seq[kept])

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
