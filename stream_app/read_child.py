"""The process that joins for a replay: ``python -m stream_app.read_child SOCKET...``, started by the replay alone.

It opens the log by itself, for reading, joins it in its own memory and hands batches over, as many ahead as the sockets hold.
It ends when all is handed over, and at once when the replay is gone. SIGINT and SIGTERM are the replay's to hear.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Final, NoReturn

from stream_app.long_slices import take_long_slices
from stream_app.profile import Profile
from stream_app.read_messages import (
    Ask,
    PeerGoneError,
    Setup,
    read_setup,
    received,
    send_batches,
    send_end,
    send_error,
)
from stream_app.sample_cursor import BlockSource
from stream_app.sample_sources import JoinedSource
from stream_app.samples_reader import Batch, Range, SampleReader
from stream_app.shared_blocks import SharedBlocks
from stream_app.topics.address import open_address

__all__: list[str] = []

_UNUSED: Final = frozenset(("pandas", "scipy"))
"""Arrow and numba import them where they are installed, at the first array and the first kernel: .3 s of CPU before the first
batch, for what no joiner asks of them."""


class _WithoutUnused:
    """Finder of modules that says of some that they are not there."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        """Return nothing, so that other finders are asked.

        Raises:
            ModuleNotFoundError: the module is one of :data:`_UNUSED`.
        """
        if name.partition(".")[0] in _UNUSED:
            raise ModuleNotFoundError(f"{name} is not imported by the process that reads", name=name)


def _serve(stream: socket.socket, source: BlockSource, setup: Setup, ask: Ask, profile: Profile) -> None:
    """Hand over the batches of a stream, and how it ends."""
    try:
        try:
            for made in _some_at_once(_batches(source, setup, ask, profile), ask.at_once):
                send_batches(stream, made, profile)
        except PeerGoneError:
            raise
        except Exception as error:
            send_error(stream, error)
        else:
            send_end(stream, profile)
    except PeerGoneError:
        os._exit(1)


def _batches(source: BlockSource, setup: Setup, ask: Ask, profile: Profile) -> Iterator[Batch]:
    span = Range(ask.start, ask.stop)
    reader = SampleReader(source, setup.schema, ask.places, ask.batch_requests, span, ask.slack_ms, profile)
    yield from reader


def _some_at_once(batches: Iterator[Batch], at_once: int) -> Iterator[list[Batch]]:
    """Yield some batches each time; an error comes after those before it."""
    made: list[Batch] = []
    try:
        for batch in batches:
            made.append(batch)
            if len(made) == at_once:
                yield made
                made = []
    except Exception:
        if made:
            yield made
        raise
    if made:
        yield made


def _end_with(stream: socket.socket) -> None:
    """End the process as soon as the other end is closed, whatever its other threads wait for by then."""
    closed = select.poll()
    closed.register(stream.fileno(), getattr(select, "POLLRDHUP", 0))  # A closed end is told of unasked.

    def wait() -> None:
        closed.poll()
        os._exit(1)

    threading.Thread(target=wait, name="replay gone", daemon=True).start()


def _main(sockets: list[int]) -> NoReturn:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    take_long_slices()
    streams = [socket.socket(fileno=each) for each in sockets]
    frame = received(streams[0])
    if frame is None:  # The replay has ended before it began.
        os._exit(1)
    setup, profile = read_setup(frame), Profile()
    _end_with(streams[0])
    sys.meta_path.insert(0, _WithoutUnused)
    try:
        joined = JoinedSource(open_address(setup.address), setup.join, profile)
    except Exception as error:
        for stream in streams:
            send_error(stream, error)
        os._exit(1)
    source: BlockSource = joined if len(streams) == 1 else SharedBlocks(joined, len(streams))
    gc.collect()
    gc.freeze()
    threads = [
        threading.Thread(target=_serve, args=(stream, source, setup, ask, profile), name="serve")
        for stream, ask in zip(streams, setup.asks, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os._exit(0)  # Threads of clients that wait for a broker that is away do not hold up the end.


if __name__ == "__main__":
    _main([int(word) for word in sys.argv[1:]])
