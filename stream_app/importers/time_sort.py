"""Rows of any order -> the order of time, in bounded memory: sorted runs on disk, merged batch by batch.

Columnar where :func:`~stream_app.importers.ordering.sorted_rows` goes row by row: the rows stay in Arrow from the file to the
events, so that ten million of them are sorted in seconds.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
import pyarrow as pa

__all__ = ["TimeSort"]

RUN_ROWS: Final = 1 << 20
BATCH_ROWS: Final = 8_192


class TimeSort:
    """An external sort by the int64 column ``ts``, stable; used as a context, which removes the runs on disk.

    Memory: one run of ``run_rows`` rows while they come in, then ``batch_rows`` of each. Rows of one time leave in one batch.

    Args:
        run_rows: rows that are sorted in memory.
        batch_rows: rows of a run that are read at once.
    """

    def __init__(self, run_rows: int = RUN_ROWS, batch_rows: int = BATCH_ROWS) -> None:
        self.n_rows = 0
        self._run_rows, self._batch_rows = run_rows, batch_rows
        self._waiting: list[pa.RecordBatch] = []
        self._n_waiting = 0
        self._paths: list[Path] = []
        self._folder = tempfile.TemporaryDirectory(prefix="freshet-sort-")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._folder.cleanup()

    def add(self, rows: pa.RecordBatch) -> None:
        """Take rows in."""
        if not rows.num_rows:
            return
        self._waiting.append(rows)
        self._n_waiting += rows.num_rows
        self.n_rows += rows.num_rows
        if self._n_waiting >= self._run_rows:
            self._spill()

    def merged(self) -> Iterator[pa.RecordBatch]:
        """Yield all rows in the order of ``ts``, equal ones as they came in; asked once, after the last :meth:`add`."""
        runs = [_Run(_stored(path)) for path in self._paths]
        if self._waiting:
            runs.append(_Run(iter(self._sorted().to_batches(max_chunksize=self._batch_rows))))
            self._waiting = []
        while runs := [run for run in runs if run.head is not None]:
            bound = min(run.last for run in runs)
            # Runs in the order in which they came in, then stably by time: so the whole is stable.
            parts = [part for run in runs for part in run.until(bound)]
            yield _by_time(pa.Table.from_batches(parts)).combine_chunks().to_batches()[0]

    def _sorted(self) -> Any:
        return _by_time(pa.Table.from_batches(self._waiting)).combine_chunks()

    def _spill(self) -> None:
        table = self._sorted()
        path = Path(self._folder.name) / f"{len(self._paths)}.arrow"
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=self._batch_rows)
        self._paths.append(path)
        self._waiting, self._n_waiting = [], 0


class _Run:
    """A sorted run and what has been read of it."""

    def __init__(self, batches: Iterator[pa.RecordBatch]) -> None:
        self._batches = batches
        self.head: pa.RecordBatch | None = None
        self.last = 0
        self._ts = np.zeros(0, np.int64)
        self._load()

    def _load(self) -> None:
        self.head = next(self._batches, None)
        if self.head is not None:
            self._ts = self.head.column("ts").to_numpy()
            self.last = int(self._ts[-1])

    def until(self, bound: int) -> Iterator[pa.RecordBatch]:
        """Yield, and be done with, the rows up to ``bound``."""
        while self.head is not None:
            n_ready = int(np.searchsorted(self._ts, bound, side="right"))
            if n_ready:
                yield self.head.slice(0, n_ready)
            if n_ready < len(self._ts):
                self.head, self._ts = self.head.slice(n_ready), self._ts[n_ready:]
                return
            self._load()


def _stored(path: Path) -> Iterator[pa.RecordBatch]:
    with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as reader:
        yield from reader


def _by_time(table: Any) -> Any:
    order = np.argsort(table["ts"].to_numpy(), kind="stable")
    return table.take(pa.array(order))
