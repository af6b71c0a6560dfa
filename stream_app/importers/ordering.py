"""Putting events in the order of time: late actions in memory, whole files on disk."""

from __future__ import annotations

import heapq
import tempfile
from collections.abc import Iterable, Iterator
from operator import itemgetter
from typing import IO, Any, Final

import msgspec

from stream_app.events import Action

__all__ = ["ActionQueue", "sorted_rows"]

RUN_ROWS: Final = 250_000


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


def sorted_rows(rows: Iterable[tuple[Any, ...]], run_rows: int = RUN_ROWS) -> Iterator[tuple[Any, ...]]:
    """Sort tuples by their first element, stably: in memory up to ``run_rows``, else by an external merge of runs on disk.

    Args:
        rows: (key, ...) of what msgpack can carry; keys are ints, or lists of ints and strings.
        run_rows: rows in memory at a time.
    """
    runs: list[IO[bytes]] = []
    try:
        run: list[tuple[Any, ...]] = []
        for row in rows:
            run.append(row)
            if len(run) >= run_rows:
                runs.append(_spill(run))
                run = []
        run.sort(key=itemgetter(0))
        # merge() prefers the earlier run among equal keys, so the whole is stable.
        yield from heapq.merge(*map(_read, runs), run, key=itemgetter(0))
    finally:
        for file in runs:
            file.close()


def _spill(run: list[tuple[Any, ...]]) -> IO[bytes]:
    run.sort(key=itemgetter(0))
    encoder = msgspec.msgpack.Encoder()
    file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by sorted_rows
    for row in run:
        data = encoder.encode(row)
        file.write(len(data).to_bytes(4, "little") + data)
    file.seek(0)
    return file


def _read(file: IO[bytes]) -> Iterator[tuple[Any, ...]]:
    decoder = msgspec.msgpack.Decoder(tuple[Any, ...])
    while size := file.read(4):
        yield decoder.decode(file.read(int.from_bytes(size, "little")))
