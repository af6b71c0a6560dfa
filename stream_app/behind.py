"""Work that a loop does not wait for: jobs in their order on a thread of their own."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from stream_app.long_slices import take_long_slices

__all__ = ["Behind"]


class Behind:
    """One thread that does jobs one after the other.

    What the jobs change is theirs until :meth:`drain` has returned. After a job that failed no other is begun, and its error is
    raised by a :meth:`put` soon after, at the latest by :meth:`drain`.

    Args:
        backlog: jobs that may wait; with so many, :meth:`put` waits for the oldest.
    """

    def __init__(self, backlog: int = 4) -> None:
        if backlog < 1:
            raise ValueError(f"backlog is {backlog}: at least one job must be able to wait")
        self._backlog = backlog
        self._begin()

    def _begin(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="behind", initializer=take_long_slices)
        self._waiting: deque[Future[None]] = deque()
        self._failed = False

    def put(self, job: Callable[[], None]) -> None:
        """Have a job done after those before it."""
        while len(self._waiting) >= self._backlog or (self._waiting and self._waiting[0].done()):
            self._waiting.popleft().result()
        self._waiting.append(self._thread.submit(self._do, job))

    def drain(self) -> None:
        """Wait until all is done."""
        while self._waiting:
            self._waiting.popleft().result()

    def close(self) -> None:
        """End the thread after the job that it is at; what else waits is dropped. A later :meth:`put` begins anew."""
        self._thread.shutdown(cancel_futures=True)
        self._begin()

    def _do(self, job: Callable[[], None]) -> None:
        if self._failed:
            return
        try:
            job()
        except BaseException:
            self._failed = True
            raise
