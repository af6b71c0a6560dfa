"""Files with one interaction per row, in any order -> impressions and actions: what Taobao, MovieLens and RecBole share.

A row is (time, user, item, kind) and perhaps a value and a category. Rows are put in the order of time on disk
(:mod:`.time_sort`), then each becomes an action; one of the kind ``click`` is a request too, whose other candidates are drawn
(:mod:`.drawing`). With ``candidates = "rows"`` nothing is drawn: each row is a request with its own item alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count, cycle, islice, repeat
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stream_app.events import Action, IdHashes, Impression, ImpressionItem
from stream_app.joiner.config import ItemSequence, JoinConfig

from .drawing import EVALUATION_FEATURES, Clicks, Drawn, DrawOptions
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
        self._options, self._tally = options, tally
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
            drawn = Drawn(self._options, self._tally, sort.n_rows) if self._draws else None
            events: list[Event] = []
            left, n_rows = limit, 0
            for rows in sort.merged():
                found, n_requests = self._events(rows, left, drawn)
                events += found
                n_rows += rows.num_rows
                done = int(self.total * (_READING + (1 - _READING) * n_rows / sort.n_rows))
                if left is not None:
                    left -= n_requests
                    if not left:
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

    def _events(self, rows: pa.RecordBatch, limit: int | None, drawn: Drawn | None) -> tuple[list[Event], int]:
        """Return the events of rows up to the ``limit``-th request, and how many requests there are."""
        users, items, kinds = (strings(rows.column(name)) for name in ("user", "item", "kind"))
        times, names = rows.column("ts").to_pylist(), rows.schema.names
        values = rows.column("value").to_pylist() if "value" in names else repeat(None)
        categories = strings(rows.column("category")) if "category" in names else [None] * len(users)
        if drawn is not None:
            at, pages, n_rows = self._drawn_pages(drawn, rows, users, times, items, categories, limit)
        else:
            n_rows = len(users) if limit is None else min(limit, len(users))
            at, pages = list(range(n_rows)), self._own_pages(users[:n_rows], times, items, categories)
        requests: list[str | None] = [None] * len(users)
        for row, page in zip(at, pages, strict=True):
            requests[row] = page.request_id
        columns = (users, items, times, kinds, requests, repeat(None), categories, values)
        actions = list(islice(map(Action, *columns), n_rows))
        return _in_order(actions, at, pages), len(pages)

    def _own_pages(self, users: list[str], *columns: list[Any]) -> list[Impression]:
        """Return a page for each row, with its own item alone."""
        rows = zip(users, *columns, strict=False)
        return [
            Impression(str(next(self._request_ids)), user, ts, [ImpressionItem(item, category, 0)])
            for user, ts, item, category in rows
        ]

    def _drawn_pages(
        self,
        drawn: Drawn,
        rows: pa.RecordBatch,
        users: list[str],
        times: list[int],
        items: list[str],
        categories: list[Any],
        limit: int | None,
    ) -> tuple[list[int], list[Impression], int]:
        """Return the rows that are requests and their pages, up to the ``limit``-th, and where the row after it is."""
        clicked = np.flatnonzero(pc.equal(rows.column("kind"), CLICK).to_numpy(zero_copy_only=False))
        chosen = clicked.tolist()
        shown = np.array([items, categories], object).T[clicked]
        users_of, items_of = ([ids[each[at]] for at in chosen] for ids, each in ((self._users, users), (self._items, items)))
        clicks = Clicks(
            np.array(users_of, np.int64), np.array(items_of, np.int64), rows.column("ts").to_numpy()[clicked], shown
        )
        found = drawn.pages(clicks)
        at = clicked[found.of_click].tolist()
        n_rows = len(users)
        if limit is not None and len(at) >= limit:
            at, n_rows = at[:limit], at[limit - 1] + 1
        drawn.count_too_few(int(np.count_nonzero(clicked[found.too_few] < n_rows)))
        n_shown = found.shown.shape[1]
        each = (found.shown[: len(at), :, of].ravel().tolist() for of in range(2))
        listed = list(map(ImpressionItem, *each, cycle(range(n_shown))))
        pages = [
            Impression(
                str(found.first_id + n),
                users[row],
                times[row],
                listed[n * n_shown : (n + 1) * n_shown],
                features={"in_window": float(in_window), "clicked_before": float(before)},
            )
            for n, (row, in_window, before) in enumerate(zip(at, found.in_window, found.clicked_before, strict=False))
        ]
        return at, pages, n_rows


def _in_order(actions: list[Action], at: list[int], pages: list[Impression]) -> list[Event]:
    """Return the actions, with a page before each of those at ``at``."""
    events: list[Event] = []
    first = 0
    for row, page in zip(at, pages, strict=True):
        events += actions[first:row]
        events.append(page)
        first = row
    return events + actions[first:]


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
