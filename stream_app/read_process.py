"""Joining for a replay in a process of its own, with its own interpreter lock: this is the replay's side.

A thread of the learner's process that joins takes the interpreter from the steps, and they from it: on two cores such a
replay took the time of both. The process is started afresh, not forked, because this one has threads; it only reads, so it can
be ended at any moment.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Final

from stream_app.profile import Profile
from stream_app.read_messages import PeerGoneError, ReadProcessError, Setup, received, send_setup, taken
from stream_app.samples_reader import Batch

__all__ = ["ReadProcess"]

_END_SECONDS: Final = 5.0


class ReadProcess:
    """A process that joins, and the streams of batches that it was asked for.

    Args:
        setup: what it is started with.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        pairs = [socket.socketpair() for _ in setup.asks]
        self._streams = [ours for ours, _ in pairs]
        theirs = [theirs for _, theirs in pairs]
        # A process group of its own: what the terminal sends at Ctrl-C is the replay's to hear.
        words = [sys.executable, "-m", "stream_app.read_child", *(str(each.fileno()) for each in theirs)]
        self._process = subprocess.Popen(
            words,
            pass_fds=[each.fileno() for each in theirs],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            process_group=0,
        )
        for each in theirs:
            each.close()
        with contextlib.suppress(PeerGoneError):  # It is gone already: who reads finds out how.
            send_setup(self._streams[0], setup)

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    def batches(self, number: int, profile: Profile) -> Iterator[Batch]:
        """Yield the batches of a stream, once.

        Args:
            number: of the stream among the asks.
            profile: told where the time went, of that process too.

        Raises:
            ReadProcessError: the process was killed.
            BaseException: what the process has raised, after the batches before it.
        """
        while True:
            frame = received(self._streams[number])
            if frame is None:
                raise ReadProcessError(self._ending())
            batches = taken(frame, self._setup.schema, profile)
            if batches is None:
                return
            yield from batches

    def end(self) -> None:
        """End the process, wherever it is; a thread that waits for its batches gets an error."""
        self._process.kill()
        self._process.wait()
        for stream in self._streams:
            with contextlib.suppress(OSError):
                stream.shutdown(socket.SHUT_RDWR)
            stream.close()

    def _ending(self) -> str:
        """Say how the process has ended without a word."""
        what = f"the process {self.pid} that joins for the replay"
        try:
            code = self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            return f"{what} has closed its connection: begin again, or go on from the last checkpoint with --resume"
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        memory = " (by the system, where memory is short)" if code == -9 else ""
        return f"{what} {how}{memory}: begin again, or go on from the last checkpoint with --resume"
