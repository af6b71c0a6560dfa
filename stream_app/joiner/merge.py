"""The one sequence: the inputs of a joiner merged by (effective time, topic, topic partition, offset).

A record's effective time is the running maximum of ``ts`` within its own topic partition, marks included. An input that has no
known next record bounds the merge by its running maximum: the merge waits for it, until a record or a mark raises it. So the
merged order is a function of the logs and marks alone, whatever the polling.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from stream_app.events import RAW_TOPICS
from stream_app.topics import Record

from .pending import NO_EVENTS, Events

NEVER: Final = -1
"""Before all times: an input that has had no record, a record that moves no clock."""
Times = npt.NDArray[np.int64]
_NOTHING: Final = np.zeros(0, np.int64)


class Mark(msgspec.Struct, frozen=True):
    """Raises the running maximum of an input to ``time`` (UTC ms) when its position is ``offset``."""

    topic: str
    partition: int
    offset: int
    time: int


class Input:
    """One topic partition that a joiner reads.

    Args:
        topic, partition: where it comes from.
        position: offset of the next record to apply.
        high: running maximum of ``ts`` before it.
    """

    def __init__(self, topic: str, partition: int, position: int = 0, high: int = NEVER) -> None:
        self.topic = topic
        self.partition = partition
        self.rank = (RAW_TOPICS.index(topic), partition)
        self.position = position
        self.high = high
        self.read = position
        """Offset of the next record to be fed."""
        self.read_high = high
        """Lower bound of the effective time of the next record to be fed."""
        self.records: Sequence[Record] = ()
        self.events = NO_EVENTS
        self.effective: Times = np.zeros(0, np.int64)
        self._marks: list[Mark] = []

    def add_mark(self, mark: Mark) -> None:
        """Take a mark of this input; those of earlier positions have had their effect."""
        if mark.offset >= self.position:
            self._marks.append(mark)
            if mark.offset <= self.read:
                self.read_high = max(self.read_high, mark.time)

    def feed(self, records: Sequence[Record], events: Events, stamps: Times) -> None:
        """Take the next records; only when all earlier ones are applied.

        Args:
            records: in the order of their offsets, from :attr:`read` on.
            events: what they decode to.
            stamps: their ``ts``, or :data:`NEVER`.
        """
        assert not len(self.events), "an input is fed when it is empty"
        ts = stamps.copy()
        ts[0] = max(int(ts[0]), self.read_high)
        self.records, self.events = records, events
        self.read = records[-1].offset + 1
        if self._marks:
            self._obey_marks(ts)
        self.effective = np.maximum.accumulate(ts)
        self.read_high = max([int(self.effective[-1]), *(mark.time for mark in self._marks if mark.offset == self.read)])

    def _obey_marks(self, ts: Times) -> None:
        offsets = np.array([record.offset for record in self.records], np.int64)
        for mark in self._marks:
            if mark.offset < self.read:
                at = int(np.searchsorted(offsets, mark.offset))
                ts[at] = max(int(ts[at]), mark.time)

    def take(self, n: int) -> None:
        """Drop the first ``n`` fed records: they have been applied."""
        if not n:
            return
        self.position, self.high = self.records[n - 1].offset + 1, int(self.effective[n - 1])
        self.records, self.events, self.effective = self.records[n:], self.events.after(n), self.effective[n:]
        self._marks = [mark for mark in self._marks if mark.offset >= self.position]


class Merged(NamedTuple):
    """A piece of the one sequence."""

    words: Times
    """Events, in any order."""
    starts: Times
    """``[N]``: where each begins in ``words``."""
    effective: Times
    """``[N]``."""
    sources: list[tuple[Input, int]]
    """Per run of ``places``: the input and its count; see :meth:`source`."""
    places: Times
    """``[N]``: index of each event in the concatenation of the inputs' heads."""
    bound: int
    """No later record has a lower effective time."""

    def source(self, index: int) -> tuple[Input, Record]:
        """Return where the ``index``-th event came from; only before the inputs' :meth:`Input.take`."""
        place = int(self.places[index])
        for source, n in self.sources:
            if place < n:
                return source, source.records[place]
            place -= n
        raise IndexError(index)


def merge(inputs: Sequence[Input]) -> Merged:
    """Return all known records that no record still unknown can come before, in order.

    Args:
        inputs: in the order of their ranks.
    """
    barrier = min(inputs, key=lambda source: (source.read_high, source.rank))
    bound = barrier.read_high
    sources: list[tuple[Input, int]] = []
    for source in inputs:
        if len(source.events):
            side: Literal["left", "right"] = "right" if source.rank <= barrier.rank else "left"
            n = int(source.effective.searchsorted(bound, side=side))
            if n:
                sources.append((source, n))
    words, starts, first = [_NOTHING], [_NOTHING], 0
    for source, n in sources:
        words.append(source.events.words)
        starts.append(source.events.starts[:n] + first)
        first += len(source.events.words)
    effective = np.concatenate([_NOTHING, *(source.effective[:n] for source, n in sources)])
    # Stable: at equal times the order of inputs, which is that of ranks, and then of offsets stands.
    places = np.argsort(effective, kind="stable")
    return Merged(np.concatenate(words), np.concatenate(starts)[places], effective[places], sources, places, bound)
