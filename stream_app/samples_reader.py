"""Samples of all partitions as one sequence, cut to batches of an exact number of requests.

Rows come in the order of (due, partition, seq), so a batch is a function of the log alone: not of block sizes, not of where a
reader started again. ``due`` counts as the running maximum within its partition, because a request that had to leave early may
stand before one that was due before it. Every row is taken once (:mod:`stream_app.sample_cursor`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from learners.samples import SampleBlock, SampleError, SampleSchema
from stream_app.profile import Profile
from stream_app.sample_cursor import (
    EVERYTHING,
    READ_ROWS,
    BlockSource,
    Cursor,
    Place,
    Range,
    Rows,
    SequenceGapError,
    check_block,
)

__all__ = ["EVERYTHING", "Batch", "BlockSource", "Place", "Range", "SampleReader", "SequenceGapError", "check_block"]


class Batch(NamedTuple):
    """Rows that are learned in one step, and the places after them."""

    block: SampleBlock
    after: Callable[[], tuple[Place, ...]]
    """Makes :attr:`places`: they are asked for where a checkpoint is written, and not after each batch."""
    order_due: int
    """Place in the order of the last row, UTC ms."""

    @property
    def places(self) -> tuple[Place, ...]:
        """Where to go on after it, one per partition."""
        return self.after()


class _Leaving(NamedTuple):
    """Rows that leave in batches, and what places between them are made of."""

    before: tuple[Place, ...]
    """The places before the rows, one per partition."""
    held: list[list[tuple[int, int]]]
    """Per partition, number and last ``seq`` of the blocks from the one of its place on."""
    rows: Rows
    partitions: npt.NDArray[np.int32]
    requests: npt.NDArray[np.int64]

    @staticmethod
    def of(cursors: Sequence[Cursor], rows: Rows) -> _Leaving:
        before, held = tuple(cursor.place for cursor in cursors), [cursor.held() for cursor in cursors]
        return _Leaving(before, held, rows, rows.block.column("partition"), rows.block.column("request"))

    def after(self, n: int) -> tuple[Place, ...]:
        """Return the places after the first ``n`` rows."""
        places = []
        for partition, place in enumerate(self.before):
            own = np.flatnonzero(self.partitions[:n] == partition)
            if len(own):
                last = int(own[-1])
                seq, due, request = int(self.rows.seq[last]), int(self.rows.due[last]), int(self.requests[last])
                position = next(number for number, last_seq in self.held[partition] if last_seq >= seq)
                place = Place(position=position, end=place.end, seq=seq, due=due, request=request)
            places.append(place)
        return tuple(places)


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
        read_rows: rows of a partition that are taken in at once; changes speed and memory, never the batches.

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
        read_rows: int = READ_ROWS,
    ) -> None:
        if len(places) != source.n_partitions:
            raise SampleError(f"{source.name}: {source.n_partitions} partitions, the run began with {len(places)}")
        self._schema = schema
        self._batch_requests = batch_requests
        self._profile = profile or Profile()
        self._cursors = [Cursor(source, p, place, span, slack_ms, read_rows) for p, place in enumerate(places)]

    def __iter__(self) -> Iterator[Batch]:
        carried: list[Rows] = []
        missing = self._batch_requests  # rows that make what is carried a batch
        for rows in self._merged():
            n = len(rows.due)
            if n < missing:
                carried.append(rows)
                missing -= n
                continue
            for piece in carried:
                self._leave(piece, len(piece.due))
            stops = range(missing, n + 1, self._batch_requests)
            leaving = _Leaving.of(self._cursors, rows)
            self._leave(rows, stops[-1])
            first = _joined([*carried, _part(rows, 0, missing)])
            yield Batch(first.block, partial(leaving.after, missing), int(first.due[-1]))
            for stop in stops[1:]:
                block = rows.block.slice(stop - self._batch_requests, stop)
                yield Batch(block, partial(leaving.after, stop), int(rows.due[stop - 1]))
            carried = [_part(rows, stops[-1], n)] if stops[-1] < n else []
            missing = self._batch_requests - (n - stops[-1])
        if carried:
            for piece in carried:
                self._leave(piece, len(piece.due))
            after = tuple(cursor.place for cursor in self._cursors)
            rest = _joined(carried)
            yield Batch(rest.block, lambda: after, int(rest.due[-1]))

    def _leave(self, rows: Rows, stop: int) -> None:
        """Note that rows up to ``stop`` leave in batches."""
        for cursor, place in zip(self._cursors, _Leaving.of(self._cursors, rows).after(stop), strict=True):
            cursor.move_to(place)

    def _merged(self) -> Iterator[Rows]:
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
                merged = _merge(held)
            yield merged


def _merge(held: Sequence[tuple[Cursor, Rows]]) -> Rows:
    """Take from each cursor the rows up to the earliest end of what is held, and order them by (due, partition, seq).

    The cursor with the earliest last row gives all it has; ties go to the lower partition, whose next row, were it due at the
    same time, would come before those of the higher ones.
    """
    horizon, lowest = min((int(rows.due[-1]), cursor.partition) for cursor, rows in held)
    pieces: list[Rows] = []
    for cursor, rows in held:
        side: Literal["left", "right"] = "right" if cursor.partition <= lowest else "left"
        n = int(np.searchsorted(rows.due, horizon, side=side))
        if n:
            pieces.append(_part(rows, 0, n))
        cursor.rows = _part(rows, n, len(rows.due)) if n < len(rows.due) else None
    joined = _joined(pieces)
    order = np.argsort(joined.due, kind="stable")  # pieces are in the order of partitions
    return Rows(joined.block.take(order), joined.due[order], joined.seq[order])


def _part(rows: Rows, start: int, stop: int) -> Rows:
    return Rows(rows.block.slice(start, stop), rows.due[start:stop], rows.seq[start:stop])


def _joined(pieces: Sequence[Rows]) -> Rows:
    if len(pieces) == 1:
        return pieces[0]
    return Rows(
        SampleBlock.concat([piece.block for piece in pieces]),
        np.concatenate([piece.due for piece in pieces]),
        np.concatenate([piece.seq for piece in pieces]),
    )
