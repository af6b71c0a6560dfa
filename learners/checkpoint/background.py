"""Checkpoints beside learning: a consistent copy is taken at once, and written on a thread.

The thread that learns pays for the copy alone. Hashing, writing, forcing to the disk and moving the pointer are the steps of
:func:`learners.checkpoint.save`, in the same order, on the other thread; so a process that dies in between leaves the
checkpoint before. The copy lives in memory that is used again and is made beforehand, on the thread, because touching fresh
memory for the first time takes twenty times as long as the copying (2.3 s against 0.1 s for a GB, measured): a run with
background checkpoints holds its state twice.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

State = Mapping[str, npt.NDArray[Any]]
Array = npt.NDArray[Any]
Result = TypeVar("Result")

__all__ = ["BackgroundJob", "StateCopy"]

_AT_ONCE = 1 << 20
"""Bytes that may be made while learning waits, about 2 ms."""
_ROOM = 1.25
"""Memory for an array that grows has a quarter of room more, so that it is not made afresh each time."""


class StateCopy:
    """Memory for copies of states, used again by the next copy.

    >>> copies = StateCopy()
    >>> weights = np.arange(3.0)
    >>> taken = copies.take({"model": {"weights": weights}})
    >>> weights += 1
    >>> taken["model"]["weights"].tolist()
    [0.0, 1.0, 2.0]
    """

    def __init__(self) -> None:
        self._memory: dict[tuple[str, str], npt.NDArray[np.uint8]] = {}

    def lacks(self, states: Mapping[str, State]) -> dict[tuple[str, str], int]:
        """Return (group, name) and bytes of the arrays that there is no memory for yet; nothing where it is so little that
        :meth:`take` may make it, on the thread that learns."""
        lacking = self._lacking(states)
        return lacking if sum(lacking.values()) > _AT_ONCE else {}

    def _lacking(self, states: Mapping[str, State]) -> dict[tuple[str, str], int]:
        wanted = {(group, name): array.nbytes for group, state in states.items() for name, array in state.items()}
        return {key: size for key, size in wanted.items() if key not in self._memory or len(self._memory[key]) < size}

    def reserve(self, lacking: Mapping[tuple[str, str], int]) -> None:
        """Make and touch memory for what :meth:`lacks` returned, and a quarter more; meant for another thread than learns."""
        for key, size in lacking.items():
            memory = np.empty(int(size * _ROOM), np.uint8)
            memory.fill(0)
            self._memory[key] = memory

    def take(self, states: Mapping[str, State]) -> dict[str, dict[str, Array]]:
        """Return a copy of the states by group; it holds until the next one is taken."""
        self.reserve(self._lacking(states))
        copies = {group: {name: self._room((group, name), a) for name, a in state.items()} for group, state in states.items()}
        for group, state in states.items():
            for name, array in state.items():
                np.copyto(copies[group][name], array)
        return copies

    def _room(self, key: tuple[str, str], array: Array) -> Array:
        room: Array = self._memory[key][: array.nbytes].view(array.dtype).reshape(array.shape)
        return room


class BackgroundJob(Generic[Result]):
    """One job at a time on a thread.

    >>> job = BackgroundJob[int]()
    >>> job.start(lambda: 42)
    >>> job.wait()
    42
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._result: Result | None = None
        self._error: BaseException | None = None

    @property
    def busy(self) -> bool:
        """Whether a job is running."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, job: Callable[[], Result]) -> None:
        """Begin a job, once the one before has ended.

        Raises:
            BaseException: what the job before has raised.
        """
        self.wait()
        self._result = None

        def run() -> None:
            try:
                self._result = job()
            except BaseException as error:  # raised by the next call on the thread that learns
                self._error = error

        # No daemon: a process that ends lets the checkpoint be finished.
        self._thread = threading.Thread(target=run, name="checkpoint")
        self._thread.start()

    def wait(self) -> Result | None:
        """Return the result of the last job when it has ended; None where there was none.

        Raises:
            BaseException: what the job has raised, once.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error
        return self._result
