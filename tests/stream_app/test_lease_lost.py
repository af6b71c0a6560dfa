"""What the joiners' thread does with partitions while the group does not answer: nothing is written, nothing ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn, cast

import pytest

from stream_app.inbox import Inbox
from stream_app.join_thread import JoinThread
from stream_app.joiner.config import JoinConfig
from stream_app.lease import Lease, LeaseLostError
from stream_app.live_join import LivePartition
from stream_app.snapshots import Snapshots
from stream_app.topics.memory import MemoryLog
from stream_app.topics.rocks_memory import RocksMemory
from stream_app.worker_metrics import WorkerMetrics
from stream_app.worker_options import WorkerOptions

PATIENCE_S = 300
"""Bounds what hangs."""


class Owned:
    """A partition whose second step finds that the lease ran out in its middle."""

    def __init__(self, made: Made, folder: Path) -> None:
        self._made = made
        self.partition, self.generation = 0, 7
        self.inbox = Inbox(folder, ["actions", "impressions"], 100)
        self.inputs = ()
        self.n_direct = 0
        self.n_steps = 0
        self.closed = False

    @property
    def leased(self) -> bool:
        return self._made.lease.held()

    def step(self, report: object) -> bool:
        if not self.leased:
            return False
        self.n_steps += 1
        if self.n_steps == 2 and len(self._made.opened) == 1:
            self._made.lease.give_up()
            raise LeaseLostError("partition 0: no heartbeat was answered")
        return False

    def close(self, report: object, *, snapshot: bool) -> None:
        assert not (snapshot and not self.leased)
        self.inbox.close()
        self.closed = True


class Made:
    """A thread with one partition, opened anew each time that it is asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.lease = Lease(1_000.0)
        self.lease.renew(time.monotonic())
        self.opened: list[Owned] = []
        self.generations: list[int] = []
        self.n_to_fail = 0
        self.errors: list[BaseException] = []
        self.thread = JoinThread(self._open, WorkerMetrics(), self.errors.append, self.lease.held)

    def _open(self, number: int, generation: int) -> LivePartition:
        if self.n_to_fail:
            self.n_to_fail -= 1
            self.lease.give_up()
            raise LeaseLostError("partition 0: no heartbeat was answered")
        self.generations.append(generation)
        self.opened.append(Owned(self, self._folder / str(len(self.opened))))
        return cast(LivePartition, self.opened[-1])


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Made]:
    found = Made(tmp_path)
    found.thread.start()
    found.thread.assign([0], 7).result(PATIENCE_S)
    yield found
    found.thread.stop().result(PATIENCE_S)


def wait_for(so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not so():
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)


def test_a_partition_whose_lease_ran_out_in_a_step_is_opened_again_when_the_group_answers(made: Made) -> None:
    wait_for(lambda: made.opened[0].closed)
    turned = made.thread.turned
    wait_for(lambda: made.thread.turned > turned)
    assert len(made.opened) == 1
    assert not made.thread.deliver("actions", 0, [])
    made.lease.renew(time.monotonic())
    wait_for(lambda: len(made.opened) == 2 and made.opened[1].n_steps > 2)
    assert made.generations == [7, 7]
    assert made.errors == []


def test_a_partition_that_was_revoked_meanwhile_stays_closed(made: Made) -> None:
    wait_for(lambda: made.opened[0].closed)
    made.thread.revoke([0]).result(PATIENCE_S)
    made.lease.renew(time.monotonic())
    turned = made.thread.turned
    wait_for(lambda: made.thread.turned > turned)
    assert len(made.opened) == 1


def test_a_partition_that_is_assigned_again_is_opened_once(made: Made) -> None:
    wait_for(lambda: made.opened[0].closed)
    made.lease.renew(time.monotonic())
    made.thread.assign([0], 8).result(PATIENCE_S)
    wait_for(lambda: made.opened[-1].n_steps > 2)
    assert len(made.opened) == 2


def test_a_partition_is_not_opened_without_a_lease(made: Made) -> None:
    """Opening takes the fence from whoever has it: that must not be a worker that stood still while another took over."""
    wait_for(lambda: made.opened[0].closed)
    made.thread.assign([0], 8).result(PATIENCE_S)
    turned = made.thread.turned
    wait_for(lambda: made.thread.turned > turned)
    assert len(made.opened) == 1
    made.lease.renew(time.monotonic())
    wait_for(lambda: len(made.opened) == 2 and made.opened[1].n_steps > 2)
    assert made.generations == [7, 8]


def test_a_partition_whose_lease_runs_out_while_it_is_opened_is_opened_later(made: Made) -> None:
    wait_for(lambda: made.opened[0].closed)
    made.n_to_fail = 1
    made.lease.renew(time.monotonic())
    wait_for(lambda: made.n_to_fail == 0)
    turned = made.thread.turned
    wait_for(lambda: made.thread.turned > turned)
    assert len(made.opened) == 1
    made.lease.renew(time.monotonic())
    wait_for(lambda: len(made.opened) == 2 and made.opened[1].n_steps > 2)
    assert made.errors == []


def test_a_partition_takes_no_fence_when_its_snapshot_took_longer_than_the_lease(tmp_path: Path) -> None:
    clock = [0.0]
    lease = Lease(10.0, lambda: clock[0])
    lease.renew(0.0)

    class Slow(Snapshots):
        def newest(self, partition: int) -> None:
            clock[0] += 11.0

    def connect(fence: str) -> NoReturn:
        raise AssertionError(f"{fence} was taken")

    options = WorkerOptions(app="join", worker_id="w", state_dir=tmp_path)
    snapshots, memory = Slow(str(tmp_path / "snapshots")), RocksMemory()
    with pytest.raises(LeaseLostError, match="partition 0"):
        LivePartition(options, JoinConfig(), MemoryLog(), connect, 0, 1, 7, lease, snapshots, WorkerMetrics(), memory)
