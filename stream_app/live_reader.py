"""Live samples of all partitions, cut to steps as they come, on a thread of their own.

What the thread does may take as long as it likes, and so may a step or a checkpoint on the thread that learns: partitions are
read by position, there is no membership in a group, nothing has to be kept alive by heartbeats, and a full queue only makes the
reader wait.

Among the partitions that have rows in memory the one whose next row was due first gives rows to the step, so that a backlog
is learned in the order of time, roughly; a partition without rows is never waited for. The cut therefore depends on when rows
came: :mod:`stream_app.order` records it.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import NamedTuple, Self

from learners.samples import SampleBlock, SampleError, SampleSchema
from stream_app.follower import Follower, Piece, Taken
from stream_app.profile import Profile
from stream_app.samples_reader import Place
from stream_app.topics import Topic

LOOK_SECONDS = 5.0
"""Seconds between looks at how long the topic is."""
CLOSE_SECONDS = 10.0
"""How long a reader that waits for a cluster is waited for."""

__all__ = ["Lag", "LiveBatch", "LiveReader"]


class LiveBatch(NamedTuple):
    """Rows that are learned in one step, which they are, and the places after them."""

    block: SampleBlock
    taken: tuple[Taken, ...]
    places: tuple[Place, ...]
    order_due: int
    """The highest ``due`` of its rows, UTC ms."""


class Lag(NamedTuple):
    """How far the reader is behind the topic."""

    blocks: int
    """Blocks that were not read yet."""
    newest_ts: int
    """``due`` of the newest row that the topic is known to have, UTC ms."""


class LiveReader:
    """Reads ahead on a thread while entered; :meth:`take` gives steps.

    Args:
        topic: of samples.
        schema: what every block has to be.
        places: where the run stands, one per partition of the topic.
        batch_requests: rows of a step, at most.
        wait_ms: how long a row waits for its step to fill up while nothing else is to be done.
        queue_batches: steps made ahead, at most.
        partitions: to read; None is all of them.
        drain: end with the last block that is there now.
        profile: where the time goes.
        clock: wall time in seconds.
        prepare: called with the rows of each step, on the thread that reads; None where there is nothing to prepare.
    """

    def __init__(
        self,
        topic: Topic,
        schema: SampleSchema,
        places: Sequence[Place],
        *,
        batch_requests: int,
        wait_ms: int = 50,
        queue_batches: int = 8,
        partitions: Sequence[int] | None = None,
        drain: bool = False,
        profile: Profile | None = None,
        clock: Callable[[], float] = time.monotonic,
        prepare: Callable[[SampleBlock], None] | None = None,
    ) -> None:
        if len(places) != topic.n_partitions:
            raise SampleError(
                f"topic {topic.name!r} has {topic.n_partitions} partitions, the run began with {len(places)}: these are other "
                "samples. Give the topic that the run began with, or start a new run"
            )
        self.ended = False
        """All that was to be drained has been taken."""
        profile = profile or Profile()
        chosen = range(topic.n_partitions) if partitions is None else partitions
        self._followers = [Follower(topic, p, places[p], schema, profile, clock) for p in chosen]
        self._places = list(places)
        self._topic, self._profile, self._clock, self._prepare = topic, profile, clock, prepare
        self._batch_requests, self._wait = batch_requests, wait_ms / 1_000
        self._ends = {p: topic.end(p) for p in chosen} if drain else None
        for p, end in (self._ends or {}).items():
            if places[p].position > end:
                raise SampleError(
                    f"topic {topic.name!r}, partition {p} ends at block {end}, the run was at {places[p].position}: these are "
                    "other samples. Give the topic that the run began with, or start a new run"
                )
        self._lag = Lag(0, max((place.due for place in places), default=0))
        self._look_at = 0.0
        self._waiting_since: float | None = None
        self._ready: queue.Queue[LiveBatch | BaseException | None] = queue.Queue(queue_batches)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="live-reader", daemon=True)

    def take(self, timeout: float) -> LiveBatch | None:
        """Return the next step; None where there was none for ``timeout`` seconds, or at the end of what is drained.

        Raises:
            SequenceGapError: a row is missing.
            SampleError: a block is unreadable, newer, of another generation, or other samples than those of the run.
            TopicError: the topic cannot be read.
        """
        try:
            with self._profile.stage("wait for samples"):
                entry = self._ready.get(timeout=timeout)
        except queue.Empty:
            return None
        if isinstance(entry, BaseException):
            raise entry
        if entry is None:
            self.ended = True
        return entry

    def lag(self) -> Lag:
        """Return how far behind the reading is, as last looked."""
        return self._lag

    def queue_fill(self) -> float:
        """Return which part of the steps that may be made ahead are there."""
        return self._ready.qsize() / self._ready.maxsize

    def queue_rows(self) -> int:
        """Return the rows that were read and not taken, roughly."""
        return self._ready.qsize() * self._batch_requests + sum(follower.n_rows for follower in self._followers)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join(CLOSE_SECONDS)

    # -- on the thread

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                came, sent = self._fill(), self._send()
                if self._drained():
                    self._put(None)
                    return
                if not came and not sent:
                    self._stop.wait(self._pause())
        except BaseException as error:  # handed to the thread that learns
            self._put(error)

    def _fill(self) -> bool:
        """Read where fewer rows than a step takes are in memory."""
        now, came = self._clock(), False
        for follower in self._followers:
            if follower.n_rows < self._batch_requests and follower.poll_at <= now and not self._at_end(follower):
                came |= follower.fill()
        if now >= self._look_at:
            self._look_at = now + LOOK_SECONDS
            self._look()
        return came

    def _send(self) -> bool:
        """Make one step, if there are enough rows or they have waited long enough."""
        n_rows = sum(follower.n_rows for follower in self._followers)
        now = self._clock()
        if not n_rows:
            self._waiting_since = None
            return False
        if self._waiting_since is None:
            self._waiting_since = now
        if n_rows < self._batch_requests:
            # While the models are busy the step had better fill up.
            waited = now - self._waiting_since >= self._wait and self._ready.empty()
            if not waited and not self._all_read():
                return False
        self._waiting_since = None
        self._put(self._cut())
        return True

    def _cut(self) -> LiveBatch:
        pieces: list[Piece] = []
        left = self._batch_requests
        while left and (ready := [follower for follower in self._followers if follower.n_rows]):
            follower = min(ready, key=lambda each: each.next_due)
            piece = follower.take(left)
            pieces.append(piece)
            left -= len(piece.block)
            self._places[follower.partition] = follower.place
        with self._profile.stage("merge"):
            block = SampleBlock.concat([piece.block for piece in pieces])
        if self._prepare is not None:
            with self._profile.stage("prepare"):
                self._prepare(block)
        taken = tuple(piece.taken for piece in pieces)
        return LiveBatch(block, taken, tuple(self._places), max(piece.due for piece in pieces))

    def _put(self, entry: LiveBatch | BaseException | None) -> None:
        while not self._stop.is_set():
            try:
                self._ready.put(entry, timeout=0.1)
            except queue.Full:
                continue
            return

    def _pause(self) -> float:
        """Return the seconds until there may be something to do."""
        now = self._clock()
        times = [follower.poll_at for follower in self._followers]
        if self._waiting_since is not None:
            times.append(max(self._waiting_since + self._wait, now + 0.005))
        return max(0.001, min(times) - now)

    def _at_end(self, follower: Follower) -> bool:
        return self._ends is not None and follower.position >= self._ends[follower.partition]

    def _all_read(self) -> bool:
        return self._ends is not None and all(self._at_end(follower) for follower in self._followers)

    def _drained(self) -> bool:
        return self._all_read() and not any(follower.n_rows for follower in self._followers)

    def _look(self) -> None:
        """See how long the topic has become."""
        blocks, newest = 0, self._lag.newest_ts
        for follower in self._followers:
            behind = max(0, self._topic.end(follower.partition) - follower.position)
            newest = max(newest, follower.newest_ts)
            if behind and (last := self._topic.read(follower.partition, follower.position + behind - 1, 1)):
                newest = max(newest, last[0].ts)
            blocks += behind
        self._lag = Lag(blocks, newest)
