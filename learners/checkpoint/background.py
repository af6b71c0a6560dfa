"""Checkpoints beside learning: a consistent copy is taken at once, and written on a thread.

The thread that learns pays for the copy alone. Hashing, writing, forcing to the disk and moving the pointer are the steps of
:func:`learners.checkpoint.save`, in the same order, on the other thread; so a process that dies in between leaves the
checkpoint before. The copy lives in memory that is used again and is made beforehand, on the thread, because touching fresh
memory for the first time takes twenty times as long as the copying (2.3 s against 0.1 s for a GB, measured): a run with
background checkpoints holds its state twice. For the same reason a table's state is views of what it has, a delta picks its
rows as it is copied, and columns that lie side by side are copied as they lie. Large arrays go past the cache
(:mod:`learners.tables.copying`). Two threads copy no faster than one: memory is what both wait for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from learners.tables.copying import aligned, copy

State = Mapping[str, npt.NDArray[Any]]
Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]
Result = TypeVar("Result")

__all__ = ["BackgroundJob", "StateCopy"]

_AT_ONCE: Final = 1 << 20
"""Bytes that may be made while learning waits, about 2 ms."""
_ROOM: Final = 1.25
"""Memory for an array that grows has a quarter of room more, so that it is not made afresh each time."""
_WASTE: Final = 1.5
"""Columns are copied together where the memory between them is no more than half of theirs."""
_STREAMED: Final = 1 << 20
"""Arrays of so many bytes are copied past the cache."""


class Key(NamedTuple):
    """Of memory: the group, and the first name of what is kept there."""

    group: str
    name: str


class Source(Protocol):
    """What knows how to copy itself, as :class:`learners.tables.changes.Delta` does."""

    size: int
    """Bytes of the copy."""

    def copied_to(self, memory: Bytes) -> dict[str, Array]:
        """Return the copy as arrays in ``memory``, which begins at a cache line and has ``size`` bytes or more."""


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
        self._memory: dict[Key, Bytes] = {}

    def lacks(self, states: Mapping[str, State | Source]) -> dict[Key, int]:
        """Return bytes of what there is no memory for yet; nothing where it is so little that :meth:`take` may make it, on the
        thread that learns."""
        lacking = self._lacking(_spans(states))
        return lacking if sum(lacking.values()) > _AT_ONCE else {}

    def _lacking(self, spans: Mapping[Key, Source]) -> dict[Key, int]:
        held = self._memory
        return {key: span.size for key, span in spans.items() if key not in held or len(held[key]) < span.size}

    def reserve(self, lacking: Mapping[Key, int]) -> None:
        """Make and touch memory for what :meth:`lacks` returned, and a quarter more; meant for another thread than learns."""
        for key, size in lacking.items():
            memory = aligned(int(size * _ROOM))
            memory.fill(0)
            self._memory[key] = memory

    def take(self, states: Mapping[str, State | Source]) -> dict[str, dict[str, Array]]:
        """Return a copy of the states by group; it holds until the next one is taken."""
        spans = _spans(states)
        self.reserve(self._lacking(spans))
        copies = {group: dict[str, Array](state) if isinstance(state, Mapping) else {} for group, state in states.items()}
        for key, span in spans.items():
            for name, copied in span.copied_to(self._memory[key]).items():
                copies[key.group][name] = copied
        return copies


class _Span:
    """Arrays that are copied together: one, or columns that lie row by row in the same memory, of which one pass over it is
    half the time of a pass for each column."""

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        self._arrays = arrays
        self._together = len(arrays) > 1
        self._low = min(array.ctypes.data for array in arrays.values())
        high = max(a.ctypes.data + (len(a) - 1) * a.strides[0] + a.itemsize for a in arrays.values()) if self._together else 0
        self.size = high - self._low if self._together else next(iter(arrays.values())).nbytes

    def copied_to(self, memory: Bytes) -> dict[str, Array]:
        """Return the arrays as copies in ``memory``, laid out as they are where they lie in one another."""
        if not self._together:
            ((name, array),) = self._arrays.items()
            room: Array = memory[: array.nbytes].view(array.dtype).reshape(array.shape)
            _copy(array, room)
            return {name: room}
        root = _root(next(iter(self._arrays.values())))
        start = self._low - root.ctypes.data
        _copy(root.reshape(-1).view(np.uint8)[start : start + self.size], memory[: self.size])
        return {
            name: np.ndarray(a.shape, a.dtype, memory, a.ctypes.data - self._low, a.strides) for name, a in self._arrays.items()
        }


def _copy(array: Array, room: Array) -> None:
    """Copy an array; large ones past the cache."""
    if array.nbytes >= _STREAMED and array.flags.c_contiguous:
        copy(array, room.reshape(-1).view(np.uint8))
    else:
        np.copyto(room, array)


def _spans(states: Mapping[str, State | Source]) -> dict[Key, Source]:
    """Return what is copied in one go, by group and the first name."""
    found: dict[Key, Source] = {}
    for group, state in states.items():
        if not isinstance(state, Mapping):
            found[Key(group, "")] = state
            continue
        together: dict[tuple[Any, ...], dict[str, Array]] = {}
        for name, array in state.items():
            together.setdefault(_lies_in(array) or (name,), {})[name] = array
        for arrays in together.values():
            span = _Span(arrays)
            if span.size <= _WASTE * sum(array.nbytes for array in arrays.values()):
                found[Key(group, next(iter(arrays)))] = span
            else:
                found.update({Key(group, name): _Span({name: array}) for name, array in arrays.items()})
    return found


def _lies_in(array: Array) -> tuple[Any, ...] | None:
    """Return what the columns of one array of rows have in common; None for all other arrays."""
    if array.ndim != 1 or not len(array) or array.strides[0] <= array.itemsize:
        return None
    root = _root(array)
    return (id(root), array.strides[0], len(array)) if root.flags.c_contiguous and root.dtype == np.uint8 else None


def _root(array: Array) -> Array:
    """Return the array whose memory ``array`` is a view of."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


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
