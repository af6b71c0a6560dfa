"""The joiners of a worker: one thread that joins whatever partitions are assigned to it. Knows nothing of faust.

Membership comes from outside: :meth:`JoinThread.assign` and :meth:`JoinThread.revoke` follow the group's generations, and a
:mod:`lease <stream_app.lease>` that each heartbeat renews says until when nobody else can own what is owned here. A worker that
lost its session stops before it touches state; what it still has under way in Kafka is fenced by the next owner.
"""

from __future__ import annotations

import logging
import queue
import shutil
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from typing import Final, Protocol

from stream_app.durable_join import READ_RECORDS, DurableJoin, JoinReport
from stream_app.inbox import DELIVERED, Inbox, PartitionLog
from stream_app.joiner.config import JoinConfig
from stream_app.joiner.merge import Input
from stream_app.lease import Lease, LeaseLostError
from stream_app.snapshots import Snapshots, restore_if_newer
from stream_app.topics import Log, Record
from stream_app.topics.rocks_memory import RocksMemory
from stream_app.worker_options import WorkerOptions

__all__ = ["JoinMetrics", "JoinThread", "Joiners", "LivePartition"]

log = logging.getLogger(__name__)
_POLL_SECONDS: Final = 0.02
STEP_SECONDS: Final = 0.25
"""From one step of a partition to its next, unless much waits: a step's transactions cost 10 ms of CPU whatever they hold."""


class JoinMetrics(Protocol):
    """Who is told what joiners do."""

    def joined(self, events: int, rows: int, report: JoinReport) -> None:
        """Take what a joiner's turn has done."""

    def step(self, publish_seconds: float, commit_seconds: float) -> None:
        """Take how long a batch's writes took."""

    def snapshot(self, partition: int) -> None:
        """A snapshot was stored."""


class Joiners(Protocol):
    """Where records and assignments go: :class:`JoinThread`, or the process that runs one."""

    def assign(self, partitions: Collection[int], generation: int) -> Future[None]:
        """Open partitions; those that are open stay as they are."""

    def revoke(self, partitions: Collection[int] | None = None) -> Future[None]:
        """Finish the current step and close partitions (None: all of them)."""

    def deliver(self, topic: str, partition: int, records: Sequence[Record]) -> bool:
        """Take delivered records."""

    def full(self, topic: str, partition: int) -> bool:
        """Whether there is no room for more."""


class LivePartition:
    """One partition that is owned: inbox, joiner, snapshots.

    Args:
        options, config: of the worker and of the joiner.
        reads: Kafka, shared.
        connect: opens Kafka with a fence.
        partition, n_partitions: which.
        generation: of the assignment.
        lease: asked before each write.
        snapshots: where copies of the state go, if anywhere.
        metrics: told of each step.
        memory: that RocksDB may use, shared by the partitions of a worker.

    Raises:
        LeaseLostError: it has run out before anything was opened.
    """

    def __init__(
        self,
        options: WorkerOptions,
        config: JoinConfig,
        reads: Log,
        connect: Callable[[str], Log],
        partition: int,
        n_partitions: int,
        generation: int,
        lease: Lease,
        snapshots: Snapshots | None,
        metrics: JoinMetrics,
        memory: RocksMemory,
    ) -> None:
        self.partition = partition
        self.generation = generation
        self._lease = lease
        self._snapshots = snapshots
        self._metrics = metrics
        self._snapshot_seconds = options.snapshot_seconds
        self._folder = options.state_dir / str(partition)
        if snapshots is not None:
            restore_if_newer(snapshots, partition, self._folder / "state")
        self.may_write()  # A snapshot may have taken longer than the lease.
        # The fence first: from here on an earlier owner writes nothing, and what it wrote is there to be read.
        writes = connect(f"{options.app}-{partition}")
        try:
            topics = [name for name in DELIVERED if name in reads.topics()]
            self.inbox = Inbox(self._folder / "inbox", topics, options.inbox_records, memory)
            self._log = PartitionLog(reads, writes, self.inbox)
            self._join = DurableJoin(
                self._log,
                self._folder / "state",
                config,
                partition,
                n_partitions,
                cache_entries=options.cache_entries,
                observer=self,
                memory=memory,
            )
        except BaseException:
            writes.close()
            if hasattr(self, "inbox"):
                self.inbox.close()
            raise
        self.inbox.acknowledge(self.inputs)
        self._dropped = False
        self._committed_since_snapshot = True
        self._snapshot_at = time.monotonic()
        self._next_step = 0.0

    @property
    def inputs(self) -> Sequence[Input]:
        """What is read, and how far it is applied."""
        return self._join.inputs

    @property
    def leased(self) -> bool:
        """Whether nobody else can own it now."""
        return self._lease.held()

    def step(self, report: JoinReport) -> bool:
        """Join one batch, or mark what is idle; return whether anything moved. Without a lease it waits.

        Raises:
            LeaseLostError: it ran out within the step, whose output may be published and is not committed: to be opened again.
        """
        now = time.monotonic()
        if not self.leased:
            return False
        if now < self._next_step and max(map(self.inbox.held, self.inbox.topics)) < READ_RECORDS:
            return False
        moved = self._join.step(report) or (not self._log.awaited and self._join.mark_idle(time.monotonic()))
        if moved:
            self._next_step = now + STEP_SECONDS
        if self._snapshots is not None and time.monotonic() - self._snapshot_at >= self._snapshot_seconds:
            self.snapshot()
        return moved

    def may_write(self) -> None:
        """Refuse where the lease has run out."""
        if not self._lease.held():
            raise self._lost()

    def _lost(self) -> LeaseLostError:
        return LeaseLostError(
            f"partition {self.partition}: no heartbeat was answered for {self._lease.seconds:g} s, so another worker may own "
            "it by now; nothing was written"
        )

    def committed(self, inputs: Sequence[Input], publish_seconds: float, commit_seconds: float) -> None:
        """Let the inbox forget what is in the state."""
        if not self._lease.held():
            # The process stood still between the check and the write: others may have gone on from an older state.
            self._join.close()
            self._dropped = True
            shutil.rmtree(self._folder / "state")
            raise self._lost()
        self.inbox.acknowledge(inputs)
        self._committed_since_snapshot = True
        self._metrics.step(publish_seconds, commit_seconds)

    def snapshot(self) -> None:
        """Copy the committed state to where snapshots are kept."""
        if self._snapshots is not None and self._committed_since_snapshot:
            self.may_write()
            self._snapshots.save(self.partition, self.generation, self._join.checkpoint, self._folder / "checkpoint")
            self._committed_since_snapshot = False
            self._metrics.snapshot(self.partition)
        self._snapshot_at = time.monotonic()

    def close(self, report: JoinReport | None, *, snapshot: bool) -> None:
        """Release folder and connection, and leave the report if there is one; the current step is done."""
        if report is not None:
            self._join.withdraw(report)
        try:
            if snapshot and self._lease.held():
                self.snapshot()
        finally:
            if not self._dropped:
                self._join.close()
            self.inbox.close()
            self._log.close()

    @property
    def n_direct(self) -> int:
        """Raw records that did not come by way of the inbox."""
        return self._log.n_direct


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
