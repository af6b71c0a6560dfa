"""Files with one interaction per row, in any order -> impressions and actions: what Taobao, MovieLens and RecBole share.

A row is (time, user, item, kind) and perhaps a value and a category. Rows are put in the order of time on disk
(:mod:`.time_sort`), then each becomes an action; one of the kind ``click`` is a request too, whose other candidates are drawn
(:mod:`.drawing`). With ``candidates = "rows"`` nothing is drawn: each row is a request with its own item alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count, repeat
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stream_app.events import Action, IdHashes, Impression, ImpressionItem
from stream_app.joiner.config import ItemSequence, JoinConfig

from .drawing import EVALUATION_FEATURES, Clicks, Drawn, DrawOptions, Shown
from .lines import Block
from .source import Chunk, Event, SourceError, Tally
from .tables import strings
from .time_sort import TimeSort

__all__ = ["CLICK", "InteractionOptions", "InteractionsImport", "interactions", "joined", "milliseconds"]

CLICK: Final = "click"
"""The kind of a row that is positive."""
_READING: Final = 0.1
"""Part of the work that reading and sorting is, for the progress display."""
_CHUNK: Final = 2_048


class InteractionOptions(DrawOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of files with one interaction per row."""

    candidates: Literal["drawn", "rows"] = "drawn"
    """drawn: a positive row is a request, its other candidates are drawn from the last positive rows. rows: every row is a
    request with its own item alone, labelled by its own value; figures within a request (gAUC, MRR) are not defined then."""
    warm_up: int = 2_000
    """First positive rows, which are no requests (drawn)."""


Read = Callable[[Path], Iterator[Block]]


class InteractionsImport:
    """One import of rows; see :class:`~stream_app.importers.source.Importer`.

    Args:
        files: in any order of rows.
        options: of the draws; ``candidates`` of :class:`InteractionOptions` counts where there is one.
        tally: takes bad rows.
        read: file -> blocks as :func:`interactions` makes them.
        join: how the log is joined, but for the features of the drawing.
    """

    unit = "bytes"

    def __init__(self, files: list[Path], options: DrawOptions, tally: Tally, read: Read, join: JoinConfig) -> None:
        self.files = files
        self.total = sum(path.stat().st_size for path in files)
        self._read, self._join = read, join
        self._draws = getattr(options, "candidates", "drawn") == "drawn"
        self._drawn = Drawn(options, tally)
        self._request_ids = count()
        self._users, self._items = IdHashes("user"), IdHashes("item")

    def inputs(self) -> list[Path]:
        """Return the files."""
        return self.files

    def ignored_features(self) -> tuple[str, ...]:
        """Return the features that tell give-away requests, where candidates are drawn."""
        return EVALUATION_FEATURES if self._draws else ()

    def join_config(self) -> JoinConfig:
        """Return a config without a label window, as each label comes with its request."""
        if not self._draws:
            return self._join
        return msgspec.structs.replace(self._join, request_features=dict.fromkeys(EVALUATION_FEATURES, "float"))

    def chunks(self, limit: int | None) -> Iterator[Chunk]:
        """Yield impressions and actions, in the order of time; ``limit`` counts requests."""
        with TimeSort() as sort:
            for done in self._sort_all(sort):
                yield Chunk([], int(_READING * done))
            events: list[Event] = []
            n_requests = n_rows = 0
            for rows in sort.merged():
                for page, action in self._events(rows):
                    if page is not None:
                        events.append(page)
                        n_requests += 1
                    events.append(action)
                    if n_requests == limit:
                        break
                n_rows += rows.num_rows
                done = int(self.total * (_READING + (1 - _READING) * n_rows / sort.n_rows))
                if n_requests == limit:
                    break
                if len(events) >= _CHUNK:
                    yield Chunk(events, done)
                    events = []
            yield Chunk(events, done)

    def _sort_all(self, sort: TimeSort) -> Iterator[int]:
        base = 0
        for path in self.files:
            for block in self._read(path):
                sort.add(block.rows)
                yield base + block.done
            base += path.stat().st_size
        if not sort.n_rows:
            raise SourceError(f"{', '.join(path.name for path in self.files)}: there is no row that can be imported")

    def _events(self, rows: pa.RecordBatch) -> Iterator[tuple[Impression | None, Action]]:
        users, items, kinds = (strings(rows.column(name)) for name in ("user", "item", "kind"))
        times, names = rows.column("ts").to_pylist(), rows.schema.names
        values = rows.column("value").to_pylist() if "value" in names else repeat(None, len(users))
        categories = strings(rows.column("category")) if "category" in names else [None] * len(users)
        pages = self._pages(rows, users, list(zip(items, categories, strict=True)))
        columns = zip(users, items, times, kinds, values, categories, pages, strict=True)
        for user, item, ts, kind, value, category, page in columns:
            request = None
            if page is not None:
                shown = [ImpressionItem(each, its, rank) for rank, (each, its) in enumerate(page.candidates)]
                request = Impression(page.request_id, user, ts, shown, features=self._features(page))
            yield request, Action(user, item, ts, kind, request.request_id if request else None, None, category, value)

    def _features(self, page: Shown) -> dict[str, Any]:
        if not self._draws:
            return {}
        return {"in_window": float(page.in_window), "clicked_before": float(page.clicked_before)}

    def _pages(self, rows: pa.RecordBatch, users: list[str], shown: list[Any]) -> Iterator[Shown | None]:
        if not self._draws:
            return (Shown(str(next(self._request_ids)), [each], True, False) for each in shown)
        clicked = pc.equal(rows.column("kind"), CLICK).to_numpy(zero_copy_only=False)
        places = np.flatnonzero(clicked).tolist()
        # All of it at once: the drawing is done with a batch only when it has been asked for its last page.
        drawn = list(
            self._drawn.of(
                Clicks(
                    np.array([self._users[users[at]] for at in places], np.int64),
                    np.array([self._items[shown[at][0]] for at in places], np.int64),
                    rows.column("ts").to_numpy()[clicked],
                    [shown[at] for at in places],
                )
            )
        )
        pages = iter(drawn)
        return (next(pages) if positive else None for positive in clicked.tolist())


def interactions(
    ts: Any, user: Any, item: Any, kind: Any, *, value: Any | None = None, category: Any | None = None
) -> pa.RecordBatch:
    """Return the rows that :class:`InteractionsImport` takes, from Arrow arrays of one length; ``ts`` is int64 UTC ms."""
    columns = {"ts": ts, "user": user, "item": item, "kind": kind, "value": value, "category": category}
    given = {name: column for name, column in columns.items() if column is not None}
    return pa.RecordBatch.from_arrays(list(given.values()), list(given))


def joined(*, categories: bool = False, **more: tuple[str, ...]) -> JoinConfig:
    """Return how such rows are joined: clicks label and are the history; ``more`` names sequences of other kinds."""
    sequences = {CLICK: ItemSequence(kinds=(CLICK,), length=50)}
    sequences |= {name: ItemSequence(kinds=kinds, length=20) for name, kinds in more.items()}
    return JoinConfig(label_window_ms=0, lateness_ms=0, categories=categories, query_length=0, item_sequences=sequences)


def milliseconds(times: Any, unit: Literal["s", "ms"]) -> Any:
    """Return an Arrow column of times (int64 or float64) as int64 UTC ms."""
    factor = 1_000 if unit == "s" else 1
    return pc.cast(pc.round(pc.multiply(times, factor)), pa.int64())
