"""The second core within a step: a few tasks of compiled work at once, in the calling thread and in threads that wait for more.

Tasks spend their time in what releases the interpreter's lock: torch's operations, compiled kernels. There are as many threads
as torch has (``torch.set_num_threads``), and while they work torch has one: a step's products are too small for a barrier
between threads at each of them. Who takes which task is left to the moment, so a thread that the machine holds back costs no
more than the task it is at; what a task computes depends on the cut alone, so results do not depend on who took it.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

import torch

from learners import claims
from learners.torch_threads import set_own_threads

__all__ = ["Task", "Team", "held", "team"]

Task = Callable[[], Any]
Work = Callable[[int], None]


class Team:
    """The threads of one operation; inside its ``with`` torch has one thread.

    Args:
        n: threads, the caller's among them.
    """

    def __init__(self, n: int) -> None:
        self.n = n

    def __enter__(self) -> Team:
        if self.n > 1:
            _set(1)
        return self

    def __exit__(self, *raised: object) -> None:
        if self.n > 1:
            _set(self.n)

    def cut(self, n: int, least: int) -> list[slice]:
        """Cut ``n`` rows into nearly equal ranges of ``least`` rows or more, at most one per thread; one where they are few."""
        parts = max(1, min(self.n, n // max(least, 1)))
        return [slice(n * i // parts, n * (i + 1) // parts) for i in range(parts)]

    def run(self, tasks: Sequence[Task]) -> list[Any]:
        """Run tasks at once and return what they returned, in their order. They must not need autograd.

        With one thread, or one task, they run one after the other in the caller.

        Args:
            tasks: see above.

        Raises:
            BaseException: what the first task that failed has raised, by the order of tasks, when all of them have ended.
        """
        if self.n == 1 or len(tasks) < 2:
            return [task() for task in tasks]
        return _beside(_Job(tasks), min(self.n - 1, len(tasks) - 1), None)

    def share(self, work: Work, counts: claims.Words, sizes: Sequence[int], meanwhile: Task | None = None) -> None:
        """Have all threads make the same compiled call, in which they claim tasks (:mod:`learners.claims`), until all are done.

        Args:
            work: the call; it takes when to return.
            counts: of its tasks.
            sizes: tasks of each stage.
            meanwhile: what the caller does where it would wait for long tasks of others; it may need autograd. Done once.

        Raises:
            BaseException: what the call has raised in a thread, or ``meanwhile``; nobody is at a task then.
        """

        if self.n == 1:
            if meanwhile is not None:
                meanwhile()  # first: what it needs is in cache still
            work(claims.DONE)
            return

        def own() -> None:
            try:
                if meanwhile is not None:
                    work(claims.BUSY)
                    meanwhile()
                work(claims.DONE)
            except BaseException:
                claims.stop(counts)
                raise

        tasks = [partial(_told, work, counts)] * (self.n - 1)
        _beside(_Job(tasks, lambda: claims.settled(counts, sizes)), self.n - 1, own)


def _told(work: Work, counts: claims.Words) -> None:
    """Work in another thread than the caller's, which is told if that fails: it would wait for a task that nobody is at."""
    try:
        work(claims.CLAIMED)
    except BaseException:
        claims.stop(counts)
        raise


def _beside(job: _Job, n: int, first: Task | None) -> list[Any]:
    """Have ``n`` threads and the caller work on a job, and the caller do something before; return the results."""
    interrupt = None
    try:
        _pool.call(n, job)
        if first is not None:
            first()
        job.work()
    finally:  # nobody works on the caller's arrays once it goes on, wherever an interrupt comes
        try:
            while not job.ended:
                try:
                    job.end()
                except KeyboardInterrupt as error:
                    interrupt = error
        except KeyboardInterrupt as error:  # one that came as the loop went round, where Python looks for signals too
            interrupt = error
            while not job.ended:
                try:
                    job.end()
                except KeyboardInterrupt as another:
                    interrupt = another
    if interrupt is not None:
        raise interrupt
    return job.results()


def team() -> Team:
    """Return as many threads as torch has in the caller: one inside another team, so work inside work is not split again."""
    held: int | None = getattr(_held, "n", None)
    return Team(torch.get_num_threads() if held is None else held)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Inside torch has one thread, and teams have as many as it had outside.

    For what calls teams for all that is large: torch's own threads only cost where its operations are small.
    """
    n = team().n
    if n == 1 or hasattr(_held, "n"):
        yield
        return
    try:
        set_own_threads(1)
        _held.n = n
        yield
    finally:
        vars(_held).pop("n", None)
        set_own_threads(n)


_held = threading.local()
"""``n``: threads of the next team, inside :func:`held`."""


def _set(n: int) -> None:
    """Set how many threads torch, or the next team, has."""
    if hasattr(_held, "n"):
        _held.n = n
    else:
        set_own_threads(n)


class _Job:
    """Tasks that several threads take from; lists are changed by single operations, which are atomic.

    Args:
        tasks: see above.
        settled: whether threads that have not left yet have nothing to do any more, so that nobody need wait for them.
    """

    def __init__(self, tasks: Sequence[Task], settled: Callable[[], bool] = lambda: False) -> None:
        self._tasks = tasks
        self._settled = settled
        self._open = list(range(len(tasks)))[::-1]
        self._results: list[Any] = [None] * len(tasks)
        self._errors: list[BaseException | None] = [None] * len(tasks)
        self._entered: list[None] = []
        self._left_again: list[None] = []
        self._exits: SimpleQueue[None] = SimpleQueue()
        self.ended = False

    def work(self) -> None:
        """Take tasks until none is left."""
        tasks, results = self._tasks, self._results  # the caller may go on, and let go of them, once a task has settled its job
        while True:
            try:
                at = self._open.pop()
            except IndexError:
                return
            try:
                results[at] = tasks[at]()
            except BaseException as error:  # the caller raises it
                self._errors[at] = error

    def help(self) -> None:
        """Do the same in another thread than the caller's."""
        self._entered.append(None)
        self.work()
        self._left_again.append(None)
        self._exits.put(None)

    def end(self) -> None:
        """Leave no task to be taken, wait for those that were, and let go of what they hold; an interrupt may cut it short, and
        then it has not ended."""
        self._open.clear()
        # Read in this order: who enters in between finds nothing to take.
        while len(self._left_again) < len(self._entered) and not self._settled():
            with contextlib.suppress(Empty):
                self._exits.get(timeout=1.0)
        self._tasks = ()
        self.ended = True

    def results(self) -> list[Any]:
        """Return the results once, or raise."""
        for error in self._errors:
            if error is not None:
                raise error
        found, self._results = self._results, []  # a job may wait in the queue for a thread that comes too late
        return found


class _Pool:
    """Threads that wait for jobs, started when first asked for."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begin without threads: a forked child has none of its parent's."""
        self._lock = threading.Lock()
        self._n = 0
        self._jobs: SimpleQueue[_Job] = SimpleQueue()

    def call(self, n: int, job: _Job) -> None:
        """Have ``n`` threads help with a job."""
        if self._n < n:
            with self._lock:
                while self._n < n:
                    self._start()
        for _ in range(n):
            self._jobs.put(job)

    def _start(self) -> None:
        ready = threading.Event()
        threading.Thread(target=_wait_for, args=(self._jobs, ready), name="step", daemon=True).start()
        ready.wait()
        self._n += 1


def _wait_for(jobs: SimpleQueue[_Job], ready: threading.Event) -> None:
    set_own_threads(1)
    torch.set_grad_enabled(False)
    ready.set()
    while True:
        jobs.get().help()


_pool = _Pool()
os.register_at_fork(after_in_child=_pool.forget)
