"""The process in which a worker's joiners run: ``python -m stream_app.join_child SOCKET``, started by the worker alone.

It ends when it is told to, when a joiner fails, and at once when the worker is gone: nobody else can tell it who owns what.
SIGINT and SIGTERM are the worker's to hear.
"""

from __future__ import annotations

import gc
import logging
import os
import select
import signal
import sys
import threading
import time
from concurrent.futures import Future
from multiprocessing.connection import Connection
from typing import Final, NoReturn

import msgspec

from stream_app.durable_join import JoinReport
from stream_app.freed_memory import GivesBack, use_system_pool
from stream_app.join_messages import TO_JOINERS, Assign, Deliver, Done, Failed, Renew, Revoke, Setup, Told, encode
from stream_app.join_thread import JoinThread
from stream_app.kafka_config import KafkaConfig
from stream_app.lease import Lease
from stream_app.live_join import LivePartition
from stream_app.snapshots import Snapshots
from stream_app.topics import Log, TopicError
from stream_app.topics.kafka import open_kafka
from stream_app.topics.rocks_memory import RocksMemory

__all__ = ["Child", "Tally"]

TELL_SECONDS: Final = 0.1
log = logging.getLogger("stream_app.join_child")  # Not __main__, whose warnings are not told.


class Tally:
    """What happened since it was last told; see :class:`~stream_app.live_join.JoinMetrics`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._events = self._rows = 0
        self._steps: list[tuple[float, float]] = []
        self._snapshots: list[int] = []

    def joined(self, events: int, rows: int, report: JoinReport) -> None:
        """Take what a joiner's turn has done."""
        with self._lock:
            self._events += events
            self._rows += rows

    def step(self, publish_seconds: float, commit_seconds: float) -> None:
        """Take how long a batch's writes took."""
        with self._lock:
            self._steps.append((publish_seconds, commit_seconds))

    def snapshot(self, partition: int) -> None:
        """A snapshot was stored."""
        with self._lock:
            self._snapshots.append(partition)

    def take(self) -> tuple[int, int, list[tuple[float, float]], list[int]]:
        """Return events, rows, steps and snapshots, and begin again."""
        with self._lock:
            taken = self._events, self._rows, self._steps, self._snapshots
            self._events, self._rows, self._steps, self._snapshots = 0, 0, [], []
        return taken


class Child:
    """Joins what the worker at the other end of ``connection`` delivers."""

    def __init__(self, connection: Connection, setup: Setup) -> None:
        self._connection = connection
        self._setup = setup
        self._sending = threading.Lock()
        self._reads = _connect(setup.kafka, None)
        self._lease = Lease(setup.options.session_seconds)
        self._snapshots = Snapshots(setup.options.snapshots) if setup.options.snapshots else None
        self._memory = RocksMemory(setup.options.rocksdb_mb)
        self._tally = Tally()
        self._joiners = JoinThread(self._open, self._tally, self._fail, self._lease.held)
        self._taken = 0

    def run(self) -> NoReturn:
        """Obey until the end of the process."""
        self._joiners.start()
        threading.Thread(target=self._tell_on, name="tell", daemon=True).start()
        while True:
            try:
                frame = self._connection.recv_bytes()
            except (EOFError, OSError):
                os._exit(1)  # The worker is gone: what is under way is done again by who owns the partitions next.
            self._obey(frame)

    def _obey(self, frame: bytes) -> None:
        message = TO_JOINERS.decode(frame)
        match message:
            case Deliver(topic, partition, records):
                self._joiners.deliver(topic, partition, records)
                self._taken += len(frame)
            case Renew(sent):
                self._lease.renew(sent)
            case Assign(number, partitions, generation):
                self._answer(number, self._joiners.assign(partitions, generation))
            case Revoke(number, partitions):
                self._answer(number, self._joiners.revoke(partitions))
            case _:
                self._joiners.stop().add_done_callback(lambda done: self._end(message.number, done))

    def _answer(self, number: int, done: Future[None]) -> None:
        def answer(done: Future[None]) -> None:
            if done.exception() is None:  # Else the thread ends, and says so.
                self._send(encode(self._told()))
                self._send(encode(Done(number)))

        done.add_done_callback(answer)

    def _end(self, number: int, done: Future[None]) -> None:
        if done.exception() is None:
            self._send(encode(self._told()))
            self._send(encode(Done(number)))
            os._exit(0)  # Threads of clients that wait for a broker that is away do not hold up an end in good order.

    def _fail(self, error: BaseException) -> None:
        if not isinstance(error, ValueError):
            log.error("the joiners fail", exc_info=error)
        self._send(encode(self._told()))
        self._send(encode(Failed(_text(error))))
        os._exit(1)

    def _tell_on(self) -> None:
        while True:
            time.sleep(TELL_SECONDS)
            self._send(encode(self._told()))

    def _send(self, frame: bytes) -> None:
        with self._sending:
            try:
                self._connection.send_bytes(frame)
            except OSError:
                os._exit(1)  # The worker is gone.

    def _told(self) -> Told:
        joiners = self._joiners
        positions = [(*place, *at) for place, at in joiners.positions().items()]
        held = [(*place, n) for place, n in joiners.held().items()]
        events, rows, steps, snapshots = self._tally.take()
        return Told(
            joiners.report, joiners.turned, self._taken, positions, held, joiners.n_direct, events, rows, steps, snapshots
        )

    def _open(self, partition: int, generation: int) -> LivePartition:
        setup = self._setup
        return LivePartition(
            setup.options,
            setup.config,
            self._reads,
            lambda fence: _connect(setup.kafka, fence),
            partition,
            setup.n_partitions,
            generation,
            self._lease,
            self._snapshots,
            self._tally,
            self._memory,
        )


def _connect(kafka: KafkaConfig, fence: str | None) -> Log:
    """Open the cluster, with a fence to write to it; wait for one that is away."""
    deadline = time.monotonic() + kafka.outage_ms / 1_000
    plain = msgspec.structs.replace(kafka, compression="none")  # Blocks of samples are compressed already.
    while True:
        try:
            return open_kafka(plain, fence=fence)
        except TopicError as error:
            # There was a connection when the worker began, so the config is right, and the cluster is away for now.
            if time.monotonic() > deadline:
                raise
            log.warning("%s; trying again", error)
            time.sleep(1.0)


def _end_with(connection: Connection) -> None:
    """End the process as soon as the other end of ``connection`` is closed, whatever the main thread waits for by then."""
    closed = select.poll()
    # Not for reading: frames that nobody has taken yet would be told of again and again. A closed end is told of unasked.
    closed.register(connection.fileno(), getattr(select, "POLLRDHUP", 0))

    def wait() -> None:
        closed.poll()
        os._exit(1)

    threading.Thread(target=wait, name="worker gone", daemon=True).start()


def _text(error: BaseException) -> str:
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"


def _main(socket: int) -> NoReturn:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    logging.basicConfig(format="freshet: %(levelname)s %(name)s: %(message)s", level=logging.ERROR, stream=sys.stderr)
    logging.getLogger("stream_app").setLevel(logging.INFO)
    connection = Connection(socket)
    setup: Setup = connection.recv()
    _end_with(connection)  # A cluster that is away is waited for before frames are read.
    try:
        child = Child(connection, setup)
    except ValueError as error:
        connection.send_bytes(encode(Failed(_text(error))))
        os._exit(1)
    use_system_pool()
    gc.collect()
    gc.freeze()
    # What a joiner keeps is thousands of live objects, and has no cycles: look for them less often.
    gc.set_threshold(50_000, 20, 50)
    with GivesBack():
        child.run()


if __name__ == "__main__":
    _main(int(sys.argv[1]))
