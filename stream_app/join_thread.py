"""The joiners of a worker: one thread that joins whatever partitions are assigned to it.

Membership comes from outside: :meth:`JoinThread.assign` and :meth:`JoinThread.revoke` follow the group's generations.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from typing import Final

from stream_app.durable_join import JoinReport
from stream_app.inbox import Inbox
from stream_app.lease import LeaseLostError
from stream_app.live_join import JoinMetrics, LivePartition
from stream_app.topics import Record

__all__ = ["JoinThread"]

log = logging.getLogger(__name__)
_POLL_SECONDS: Final = 0.02
_Command = tuple[Callable[[], None], "Future[None]"]


class JoinThread(threading.Thread):
    """Joins the partitions that are assigned; may be asked from any thread.

    Args:
        make: opens a partition of a generation.
        metrics: told what goes on.
        on_error: called when the thread ends by an error.
        leased: whether what is assigned is still ours. A partition is opened only then: a worker that stood still meanwhile
            would take its fence from the worker that has it by now.
    """

    def __init__(
        self,
        make: Callable[[int, int], LivePartition],
        metrics: JoinMetrics,
        on_error: Callable[[BaseException], None],
        leased: Callable[[], bool],
    ) -> None:
        super().__init__(name="joiner", daemon=True)
        self.report = JoinReport(n_partitions=0)
        self.turned = time.monotonic()
        """When the thread last came round."""
        self._make = make
        self._metrics = metrics
        self._on_error = on_error
        self._leased = leased
        self._commands: queue.Queue[_Command] = queue.Queue()
        self._partitions: dict[int, LivePartition] = {}
        self._lost: dict[int, int] = {}
        """Partitions closed in the middle of a step or not opened yet, as no heartbeat was answered, with their generations."""
        self._inboxes: dict[int, Inbox] = {}
        self._lock = threading.Lock()
        self._stopping = False

    # -- from other threads

    def assign(self, partitions: Collection[int], generation: int) -> Future[None]:
        """Open partitions; those that are open stay as they are."""
        return self._ask(lambda: self._open(partitions, generation))

    def revoke(self, partitions: Collection[int] | None = None) -> Future[None]:
        """Finish the current step and close partitions (None: all of them)."""
        return self._ask(lambda: self._close(partitions))

    def stop(self) -> Future[None]:
        """Close all partitions and end."""
        return self._ask(self._end)

    def deliver(self, topic: str, partition: int, records: Sequence[Record]) -> bool:
        """Append delivered records to their inbox; False if the partition is not open here: its owner reads them in Kafka."""
        with self._lock:
            inbox = self._inboxes.get(partition)
            if inbox is None:
                return False
            inbox.append(topic, records)
            return True

    def full(self, topic: str, partition: int) -> bool:
        """Whether an inbox has no room."""
        with self._lock:
            inbox = self._inboxes.get(partition)
            return inbox is not None and inbox.full(topic)

    def held(self) -> dict[tuple[str, int], int]:
        """Return how many records wait in the inboxes."""
        with self._lock:
            return {(name, p): inbox.held(name) for p, inbox in self._inboxes.items() for name in inbox.topics}

    def positions(self) -> Mapping[tuple[int, str, int], tuple[int, int]]:
        """Return (joiner's partition, topic, partition) -> (position, running maximum of ``ts``)."""
        owned = list(self._partitions.values())
        return {(p.partition, s.topic, s.partition): (s.position, s.read_high) for p in owned for s in p.inputs}

    @property
    def n_direct(self) -> int:
        """Raw records that were read from Kafka by the joiners themselves."""
        return sum(p.n_direct for p in list(self._partitions.values()))

    # -- the thread

    def run(self) -> None:
        """Join until stopped."""
        try:
            while not self._stopping:
                self._obey(wait=not self._turn())
                self.turned = time.monotonic()
        except BaseException as error:
            self._fail(error)

    def _turn(self) -> bool:
        moved = False
        self._reopen()
        for partition in list(self._partitions.values()):
            if self._commands.qsize():
                return True
            before = self.report.events, self.report.rows
            try:
                moved |= partition.step(self.report)
            except LeaseLostError as error:
                log.warning("%s; it is opened again when the group answers", error)
                self._close([partition.partition], snapshot=False)
                self._lost[partition.partition] = partition.generation
            self._metrics.joined(self.report.events - before[0], self.report.rows - before[1], self.report)
        return moved

    def _reopen(self) -> None:
        """Open what was closed in the middle of a step and is still ours: a heartbeat was answered since, nothing revoked."""
        for number, generation in list(self._lost.items()):
            if self._commands.qsize():
                return
            if self._leased():
                log.info("partition %d: opened again", number)
                self._open([number], generation)

    def _obey(self, wait: bool) -> None:
        try:
            do, done = self._commands.get(timeout=_POLL_SECONDS) if wait else self._commands.get_nowait()
        except queue.Empty:
            return
        try:
            do()
        except BaseException as error:
            done.set_exception(error)
            raise
        done.set_result(None)

    def _open(self, partitions: Collection[int], generation: int) -> None:
        for number in sorted(set(partitions) - set(self._partitions)):
            partition = self._opened(number, generation)
            if partition is None:
                self._lost[number] = generation
                continue
            self._lost.pop(number, None)
            self._partitions[number] = partition
            with self._lock:
                self._inboxes[number] = partition.inbox
        self.report.n_partitions = len(self._partitions)

    def _opened(self, number: int, generation: int) -> LivePartition | None:
        """Return a partition, opened; None where the lease has run out before it took its fence."""
        if not self._leased():
            return None
        try:
            return self._make(number, generation)
        except LeaseLostError as error:
            log.warning("%s; it is opened again when the group answers", error)
            return None

    def _close(self, partitions: Collection[int] | None, *, snapshot: bool = True) -> None:
        for number in list(self._lost) if partitions is None else partitions:
            self._lost.pop(number, None)
        for number in sorted(self._partitions) if partitions is None else sorted(set(partitions) & set(self._partitions)):
            with self._lock:
                del self._inboxes[number]
            # What is told at the end is told of the partitions that were owned last.
            self._partitions.pop(number).close(None if self._stopping else self.report, snapshot=snapshot)
        if not self._stopping:
            self.report.n_partitions = len(self._partitions)

    def _end(self) -> None:
        self._stopping = True
        self._close(None)

    def _fail(self, error: BaseException) -> None:
        self._stopping = True
        log.debug("the joiner ends", exc_info=error)
        try:
            self._close(None, snapshot=False)
        except Exception as second:
            log.warning("closing after an error: %s", second)
        self._on_error(error)
        while not self._commands.empty():
            self._commands.get_nowait()[1].set_exception(error)

    def _ask(self, do: Callable[[], None]) -> Future[None]:
        done: Future[None] = Future()
        if self._stopping:
            done.set_result(None)
        else:
            self._commands.put((do, done))
        return done
