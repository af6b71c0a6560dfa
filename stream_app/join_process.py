"""A worker's joiners in a process of their own, with its own interpreter lock: heartbeats go on whatever the joiners do.

This is the worker's side. Frames go out on a thread, in order, so that faust's loop never waits for the socket; what is on its
way is bounded (:data:`UNDERWAY_BYTES`). faust may commit what is still on its way when a process is killed: the joiner finds
the gap in its inbox, and reads it from Kafka.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from multiprocessing.connection import Connection
from typing import Final

from stream_app.durable_join import JoinReport
from stream_app.join_messages import TO_WORKER, Assign, Deliver, Done, Renew, Revoke, Setup, Stop, Told, encode
from stream_app.lease import Lease
from stream_app.topics import Record
from stream_app.worker_metrics import WorkerMetrics

__all__ = ["UNDERWAY_BYTES", "JoinProcess", "JoinProcessError", "SharedLease"]

UNDERWAY_BYTES: Final = 8 << 20
"""Frames that may be between faust and the inboxes; one more may come on top."""
_END_SECONDS: Final = 5.0
_MALLOC: Final = {"MALLOC_MMAP_THRESHOLD_": str(512 << 10), "MALLOC_ARENA_MAX": "2"}
"""What RocksDB has not put into files yet lies in pieces of 1 MB. glibc would soon keep those that are freed, among others;
and a heap for each of a dozen threads, each with holes of its own."""
log = logging.getLogger(__name__)


class JoinProcessError(ValueError):
    """The joiners have failed, or their process is gone."""


class SharedLease(Lease):
    """A lease that the joiners' process is told of, heartbeat by heartbeat.

    Args:
        seconds: the group's session timeout.
        joiners: who is told.
    """

    def __init__(self, seconds: float, joiners: JoinProcess) -> None:
        super().__init__(seconds)
        self._joiners = joiners

    def renew(self, sent: float) -> None:
        """Take a heartbeat, here and there."""
        super().renew(sent)
        self._joiners.renew(sent)


class JoinProcess:
    """:class:`~stream_app.join_thread.JoinThread` by another process; may be asked from any thread.

    Args:
        setup: what the process is started with.
        metrics: told what goes on there.
        on_error: called when the process ends unasked.
    """

    def __init__(self, setup: Setup, metrics: WorkerMetrics, on_error: Callable[[BaseException], None]) -> None:
        self._setup = setup
        self._metrics = metrics
        self._on_error = on_error
        self._told = Told(JoinReport(n_partitions=0), time.monotonic(), 0, [], [], 0, 0, 0, [], [])
        self._held: dict[tuple[str, int], int] = {}
        self._frames: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._sent = 0
        self._lock = threading.Lock()
        self._asked: dict[int, Future[None]] = {}
        self._n_asked = 0
        self._ended = False
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process."""
        ours, theirs = socket.socketpair()
        with theirs:
            words = [sys.executable, "-m", "stream_app.join_child", str(theirs.fileno())]
            # A session of its own: what the terminal sends at Ctrl-C is the worker's to hear.
            self._process = subprocess.Popen(
                words,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
                env=_MALLOC | os.environ,
            )
        log.info("the joiners are process %d", self._process.pid)
        connection = Connection(ours.detach())
        connection.send(self._setup)
        threading.Thread(target=self._write, args=(connection,), name="to joiners", daemon=True).start()
        threading.Thread(target=self._read, args=(connection, self._process), name="from joiners", daemon=True).start()

    def assign(self, partitions: Collection[int], generation: int) -> Future[None]:
        """Open partitions; those that are open stay as they are."""
        return self._ask(lambda number: Assign(number, sorted(partitions), generation))

    def revoke(self, partitions: Collection[int] | None = None) -> Future[None]:
        """Finish the current step and close partitions (None: all of them)."""
        return self._ask(lambda number: Revoke(number, None if partitions is None else sorted(partitions)))

    def stop(self) -> Future[None]:
        """Close all partitions and end."""
        return self._ask(Stop)

    def renew(self, sent: float) -> None:
        """Pass on that a heartbeat was answered."""
        self._frames.put(encode(Renew(sent)))

    def deliver(self, topic: str, partition: int, records: Sequence[Record]) -> bool:
        """Send delivered records on their way; what is not open there is dropped: its owner reads it in Kafka."""
        frame = encode(Deliver(topic, partition, list(records)))
        with self._lock:
            self._sent += len(frame)
            self._frames.put(frame)
        return True

    def full(self, topic: str, partition: int) -> bool:
        """Whether an inbox, or the way there, has no room."""
        if self._ended:
            return False
        return (
            self._sent - self._told.taken >= UNDERWAY_BYTES
            or self._held.get((topic, partition), 0) >= self._setup.options.inbox_records
        )

    def held(self) -> dict[tuple[str, int], int]:
        """Return how many records wait in the inboxes."""
        return dict(self._held)

    def positions(self) -> Mapping[tuple[int, str, int], tuple[int, int]]:
        """Return (joiner's partition, topic, partition) -> (position, running maximum of ``ts``)."""
        return {(owner, topic, p): (position, high) for owner, topic, p, position, high in self._told.positions}

    @property
    def report(self) -> JoinReport:
        """What was done so far."""
        return self._told.report

    @property
    def turned(self) -> float:
        """When the joiners' thread last came round."""
        return self._told.turned

    @property
    def n_direct(self) -> int:
        """Raw records that were read from Kafka by the joiners themselves."""
        return self._told.n_direct

    def end(self, seconds: float = _END_SECONDS) -> None:
        """Wait for the end of the process that was told to stop; kill it if there is none."""
        self._ended = True
        if self._process is None:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
            return
        log.warning("the joiners do not end: killed")
        self._process.kill()
        self._process.wait()

    # -- the threads

    def _ask(self, make: Callable[[int], Assign | Revoke | Stop]) -> Future[None]:
        done: Future[None] = Future()
        with self._lock:
            if self._ended:
                done.set_result(None)
                return done
            self._n_asked += 1
            message = make(self._n_asked)
            self._ended = isinstance(message, Stop)
            self._asked[message.number] = done
            self._frames.put(encode(message))
        return done

    def _write(self, connection: Connection) -> None:
        with contextlib.suppress(OSError):  # The process is gone: who reads finds out how.
            while True:
                connection.send_bytes(self._frames.get())

    def _read(self, connection: Connection, process: subprocess.Popen[bytes]) -> None:
        failed: str | None = None
        while failed is None:
            try:
                message = TO_WORKER.decode(connection.recv_bytes())
            except (EOFError, OSError):
                break
            if isinstance(message, Told):
                self._take(message)
            elif isinstance(message, Done):
                self._asked.pop(message.number).set_result(None)
            else:
                failed = message.text
        self._gone(failed or _ending(process))

    def _take(self, told: Told) -> None:
        self._told = told
        self._held = {(topic, partition): n for topic, partition, n in told.held}
        self._metrics.joined(told.events, told.rows, told.report)
        for publish_seconds, commit_seconds in told.steps:
            self._metrics.step(publish_seconds, commit_seconds)
        for partition in told.snapshots:
            self._metrics.snapshot(partition)

    def _gone(self, text: str) -> None:
        with self._lock:
            expected = self._ended and not self._asked
            self._ended = True
            asked, self._asked = list(self._asked.values()), {}
        if expected:
            return
        self._on_error(JoinProcessError(text))
        for done in asked:  # All partitions are closed. An error here would reach faust, which waits for itself then.
            done.set_result(None)


def _ending(process: subprocess.Popen[bytes]) -> str:
    """Say how a process has ended that closed its end without a word."""
    try:
        code = process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        return f"the joiners' process {process.pid} has closed its connection: the worker ends, start it again"
    how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
    return f"the joiners' process {process.pid} {how}; nothing is lost: the worker ends, start it again"
