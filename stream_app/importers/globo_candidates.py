"""Candidate lists for Globo clicks that are given in a file; :mod:`.drawing` draws them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .drawing import Clicks, Shown
from .source import SourceError

__all__ = ["Given"]


class Given:
    """Candidate lists of a Parquet file with ``user_id, ts, candidates, labels``, in the order of (ts, user, clicked article).

    Args:
        path: the file; ``request_id, in_window, clicked_before`` are taken where it has them.

    Raises:
        SourceError: the file cannot be read or lacks a column.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._row = 0
        self._rows = self._read()
        self._next = next(self._rows, None)

    def finished(self) -> bool:
        """Whether all requests have been found."""
        return self._next is None

    def of(self, clicks: Clicks) -> Iterator[Shown | None]:
        """Yield the page of each click, None where it is no request.

        Raises:
            SourceError: a request has no click.
        """
        for user, article, now in zip(clicks.users.tolist(), clicks.items.tolist(), clicks.times.tolist(), strict=True):
            if self._next is None or now < self._next[0][0]:
                yield None
                continue
            key, shown = self._next
            if now > key[0]:
                raise self._unmatched(key)
            if (now, user, article) == key:
                self._next = next(self._rows, None)
                yield shown
            else:
                yield None

    def _unmatched(self, key: tuple[int, int, int]) -> SourceError:
        return SourceError(
            f"{self._path.name}: request {self._row} (user {key[1]}, ts {key[0]}, clicked article {key[2]}) has no click in "
            "the log, or the file is not in the order of ts, user and clicked article; make it from the same clicks"
        )

    def _read(self) -> Iterator[tuple[tuple[int, int, int], Shown]]:
        needed, optional = ["user_id", "ts", "candidates", "labels"], ["request_id", "in_window", "clicked_before"]
        try:
            file = pq.ParquetFile(self._path)
        except (pa.ArrowInvalid, OSError) as error:
            raise SourceError(f"{self._path}: not readable as Parquet ({error}); candidates are a Parquet file") from error
        with file:
            found = file.schema_arrow.names
            if lacking := [name for name in needed if name not in found]:
                raise SourceError(f"{self._path.name}: there is no column {lacking[0]!r}; found {', '.join(found)}")
            for batch in file.iter_batches(batch_size=4_096, columns=needed + [name for name in optional if name in found]):
                for row in batch.to_pylist():
                    self._row += 1
                    yield self._request(row)

    def _request(self, row: dict[str, Any]) -> tuple[tuple[int, int, int], Shown]:
        candidates, labels = row["candidates"], row["labels"]
        clicked = [item for item, label in zip(candidates, labels, strict=False) if label]
        if len(candidates) != len(labels) or len(clicked) != 1:
            raise SourceError(
                f"{self._path.name}: request {self._row} has {len(candidates)} candidates, {len(labels)} labels and "
                f"{len(clicked)} clicks; one label per candidate and one click are needed"
            )
        request_id = str(row.get("request_id", self._row - 1))
        shown = Shown(request_id, candidates, bool(row.get("in_window", True)), bool(row.get("clicked_before", False)))
        return (row["ts"], row["user_id"], clicked[0]), shown
