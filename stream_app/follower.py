"""One partition of live samples: read block by block as it grows, checked, decoded, handed out row by row."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import msgspec
import numpy as np

from learners.samples import SampleBlock, SampleError, SampleSchema
from stream_app.profile import Profile
from stream_app.samples_reader import Place, check_block
from stream_app.topics import PositionLostError, Record, Topic

READ_RECORDS = 16
READ_BYTES = 1 << 20
FIRST_PAUSE, LONGEST_PAUSE = 0.01, 0.1
"""Seconds until a partition that had nothing new is asked again: the first time, and after many times."""
WAY_OUT = (
    "Join the raw topics again, or start a new run after the gap: freshet train --from-run RUN --from TIME --run NEW keeps the "
    "weights"
)

__all__ = ["Follower", "Piece", "Taken"]


class Taken(NamedTuple):
    """Rows ``first`` to ``first + n - 1`` of a partition, by ``seq``."""

    partition: int
    first: int
    n: int


class Piece(NamedTuple):
    """Rows that left a follower."""

    block: SampleBlock
    taken: Taken
    due: int
    """Running maximum of ``due`` at the last row, UTC ms."""


class _Held(NamedTuple):
    """A block in memory, from row ``first`` on."""

    number: int
    block: SampleBlock
    first: int
    due: int
    """Running maximum of ``due`` before it."""


class Follower:
    """Reads one partition from a place on, for ever.

    Args:
        topic: of samples.
        partition: to read.
        place: where the run stands in it.
        schema: what every block has to be.
        profile: told how long reading and decoding take.
        clock: wall time in seconds.
    """

    def __init__(
        self,
        topic: Topic,
        partition: int,
        place: Place,
        schema: SampleSchema,
        profile: Profile,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.partition = partition
        self.place = place
        self.position = place.position
        """Number of the next block to read."""
        self.n_rows = 0
        """Rows in memory."""
        self.poll_at = 0.0
        """When it is worth asking again."""
        self.newest_ts = place.due
        """Time of the newest record read, UTC ms."""
        self._topic, self._schema, self._profile, self._clock = topic, schema, profile, clock
        self._seq, self._due = place.seq, place.due
        self._pause = FIRST_PAUSE
        self._held: deque[_Held] = deque()
        self._error: Exception | None = None

    @property
    def next_due(self) -> int:
        """Place in the order of the next row in memory, UTC ms."""
        head = self._held[0]
        return max(head.due, int(head.block.column("due")[head.first]))

    def fill(self) -> bool:
        """Read on; return whether anything came. An error comes only when the rows before it are gone.

        Raises:
            SequenceGapError: a row is missing.
            SampleError: a block is unreadable, newer, of another generation, or other samples than those of the run.
            TopicError: the topic cannot be read.
        """
        if self._error is not None:
            if not self.n_rows:
                raise self._error
            self.poll_at = self._clock() + LONGEST_PAUSE
            return False
        with self._profile.stage("read"):
            records = self._read()
        if not records:
            self.poll_at = self._clock() + self._pause
            self._pause = min(LONGEST_PAUSE, 2 * self._pause)
            return False
        self._pause = FIRST_PAUSE
        for record in records:
            try:
                self._take_in(record.offset, record.value)
            except SampleError as error:
                self._error = error
                break
            self.position, self.newest_ts = record.offset + 1, max(self.newest_ts, record.ts)
        return True

    def take(self, most: int) -> Piece:
        """Hand out rows of the oldest block in memory, at most so many."""
        number, block, first, due = self._held[0]
        stop = min(len(block), first + most)
        part = block.slice(first, stop)
        due = max(due, int(part.column("due").max()))
        seqs = part.column("seq")
        if stop == len(block):
            self._held.popleft()
        else:
            self._held[0] = _Held(number, block, stop, due)
        self.n_rows -= len(part)
        last, request = int(seqs[-1]), int(part.column("request")[-1])
        self.place = msgspec.structs.replace(self.place, position=number, seq=last, due=due, request=request)
        return Piece(part, Taken(self.partition, int(seqs[0]), len(part)), due)

    def _read(self) -> list[Record]:
        try:
            return self._topic.read(self.partition, self.position, READ_RECORDS, READ_BYTES)
        except PositionLostError:
            if self._seq is None:
                raise
        # The block of the last row was dropped by retention; the next row says whether any was lost.
        self.position = max(self.position, self._topic.start(self.partition))
        return []

    def _take_in(self, number: int, value: bytes) -> None:
        where = f"topic {self._topic.name!r}, partition {self.partition}, block {number}"
        try:
            with self._profile.stage("decode"):
                block = SampleBlock.from_ipc(value)
        except SampleError as error:
            raise SampleError(f"{where}: {error}") from error
        if block.schema != self._schema:
            raise SampleError(
                f"{where}: samples of generation {block.schema.generation} after {self._schema.generation}: the joiner's "
                "config changed there. Start a new run (another --run) there, with the config of the new join"
            )
        if not len(block):
            return
        seq = block.column("seq")
        check_block(block, seq, self.partition, self.place, self._seq, where, WAY_OUT)
        first = 0 if self._seq is None else int(np.searchsorted(seq, self._seq, side="right"))
        if first == len(block):
            return
        self._held.append(_Held(number, block, first, self._due))
        self.n_rows += len(block) - first
        self._seq = int(seq[-1])
        self._due = max(self._due, int(block.column("due")[first:].max()))
