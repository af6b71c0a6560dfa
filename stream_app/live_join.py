"""One partition that a worker owns, and what joiners are to the rest of the worker. Knows nothing of faust.

A :mod:`lease <stream_app.lease>` that each heartbeat renews says until when nobody else can own what is owned here. A worker
that lost its session stops before it touches state; what it still has under way in Kafka is fenced by the next owner.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Collection, Sequence
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

__all__ = ["JoinMetrics", "Joiners", "LivePartition"]

log = logging.getLogger(__name__)
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
    """Where records and assignments go: :class:`~stream_app.join_thread.JoinThread`, or the process that runs one."""

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
