"""Putting events in the order of time: late actions in memory, whole files on disk."""

from __future__ import annotations

import heapq
import tempfile
from collections.abc import Iterable, Iterator
from operator import itemgetter
from types import TracebackType
from typing import IO, Any, Final, Self, TypeAlias

import msgspec

from stream_app.events import Action

__all__ = ["ActionQueue", "Row", "RowSort", "sorted_rows"]

RUN_ROWS: Final = 250_000
Row: TypeAlias = tuple[Any, ...]


class ActionQueue:
    """Actions that happen after the request they belong to, until the stream has come to their time.

    Holds the actions of one delay; leaves in the order of (ts, order of :meth:`push`), however often it is asked.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Action]] = []
        self._pushed = 0

    def __len__(self) -> int:
        return len(self._heap)

    def push(self, action: Action) -> None:
        """Keep an action."""
        heapq.heappush(self._heap, (action.ts, self._pushed, action))
        self._pushed += 1

    def pop_until(self, ts: int) -> list[Action]:
        """Take the actions with a time up to ``ts``."""
        heap, found = self._heap, []
        while heap and heap[0][0] <= ts:
            found.append(heapq.heappop(heap)[2])
        return found

    def pop_all(self) -> list[Action]:
        """Take the rest."""
        return [heapq.heappop(self._heap)[2] for _ in range(len(self._heap))]


class RowSort:
    """An external sort of tuples by their first element, stable; a context, which removes the runs on disk.

    Args:
        run_rows: rows in memory at a time.
    """

    def __init__(self, run_rows: int = RUN_ROWS) -> None:
        self.n_rows = 0
        self._run_rows = run_rows
        self._run: list[Row] = []
        self._spilled: list[IO[bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for file in self._spilled:
            file.close()

    def add(self, row: Row) -> None:
        """Take a row in: (key, ...) of what msgpack can carry; keys are ints, or lists of ints and strings."""
        self._run.append(row)
        self.n_rows += 1
        if len(self._run) >= self._run_rows:
            self._spilled.append(_spill(self._run))
            self._run = []

    def merged(self) -> Iterator[Row]:
        """Yield all rows in order; asked once, after the last :meth:`add`."""
        self._run.sort(key=itemgetter(0))
        # merge() prefers the earlier run among equal keys, so the whole is stable.
        yield from heapq.merge(*map(_read, self._spilled), self._run, key=itemgetter(0))


def sorted_rows(rows: Iterable[Row], run_rows: int = RUN_ROWS) -> Iterator[Row]:
    """Sort the rows of an iterator as :class:`RowSort` does; the first one comes when all have been read."""
    with RowSort(run_rows) as sort:
        for row in rows:
            sort.add(row)
        yield from sort.merged()


def _spill(run: list[Row]) -> IO[bytes]:
    run.sort(key=itemgetter(0))
    encoder = msgspec.msgpack.Encoder()
    file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by RowSort
    for row in run:
        data = encoder.encode(row)
        file.write(len(data).to_bytes(4, "little") + data)
    file.seek(0)
    return file


def _read(file: IO[bytes]) -> Iterator[Row]:
    decoder = msgspec.msgpack.Decoder(Row)
    while size := file.read(4):
        yield decoder.decode(file.read(int.from_bytes(size, "little")))
