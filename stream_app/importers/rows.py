"""``rows``: your own log, as JSON lines, CSV or Parquet, through a field mapping (:mod:`.mapping`)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, Final

from stream_app.events import Action, Impression
from stream_app.joiner.config import FeatureKind, ItemSequence, JoinConfig

from .fields import Clock, Field, Rows, convert, sort_rows
from .mapping import ActionColumns, RowsOptions, resolve
from .ordering import ActionQueue
from .own_events import Seen, own_events
from .pages import Page, flat_pages, listed_pages, page_fields
from .source import Chunk, Event, ImporterKind, Tally
from .tables import columns_of, read_table
from .values import identifier, number, optional, time_reader

__all__ = ["KIND", "RowsImport"]

_CHUNK: Final = 1_024
_HALF_AN_HOUR_MS: Final = 1_800_000
_ACTION_COLUMNS: Final = ("user", "item", "ts", "kind", "request", "query", "category", "domain", "value")


class RowsImport:
    """One import of ``rows``; see :class:`~stream_app.importers.source.Importer`."""

    unit = "bytes"

    def __init__(self, files: list[Path], options: RowsOptions, tally: Tally) -> None:
        self.files = files
        self.options = options
        self.tally = tally
        self.total = sum(path.stat().st_size for path in files)
        self._seen = Seen()
        self._clicks_come_later = False
        self._done = dict.fromkeys(files, 0)

    def inputs(self) -> list[Path]:
        """Return the files."""
        return self.files

    def ignored_features(self) -> tuple[str, ...]:
        """Return nothing: all features of a mapping are for the models."""
        return ()

    def chunks(self, limit: int | None) -> Iterator[Chunk]:
        """Yield the events of all files."""
        return self._own(limit) if self.options.layout == "events" else self._mapped(limit)

    def join_config(self) -> JoinConfig:
        """Return a config with the log's features; a label window where clicks come later than their page."""
        seen, options = self._seen, self.options
        window = options.label_window_ms
        if window is None:
            window = _HALF_AN_HOUR_MS if self._clicks_come_later else 0
        return JoinConfig(
            label_kinds=(options.label_kind,),
            item_sequences={"click": ItemSequence(kinds=(options.label_kind,))},
            label_window_ms=window,
            correction_window_ms=max(window, _HALF_AN_HOUR_MS),
            lateness_ms=options.lateness_ms,
            query_length=50 if seen.has_query else 0,
            request_features=seen.request_features | _kinds(options, "request_features"),
            candidate_features=seen.features | _kinds(options, "features"),
            truth=seen.has_truth,
        )

    def _own(self, limit: int | None) -> Iterator[Chunk]:
        clocks: dict[type[Event], Clock] = {}
        self._clicks_come_later = True
        left, has_impressions = limit, False
        for path in self._not_empty(self.files):
            for events, done in own_events(path, clocks, self.options.lateness_ms, self.tally):
                for event in events:
                    if type(event) is Impression:
                        has_impressions = True
                        self._seen.add(event)
                self._done[path] = done
                if left is not None:
                    events = _first(events, left, has_impressions)
                    left -= sum(not has_impressions or type(event) is Impression for event in events)
                yield Chunk(events, self._read())
                if left == 0:
                    return

    def _mapped(self, limit: int | None) -> Iterator[Chunk]:
        pages = self._pages([path for path in self.files if not self.options.is_actions(path)])
        actions = _Merged(self._actions([path for path in self.files if self.options.is_actions(path)]))
        events: list[Event] = []
        n_pages, last_ts, rest = 0, None, True
        for page in pages:
            events += actions.until(page.impression.ts)
            events.append(page.impression)
            self._seen.has_query |= page.impression.query is not None
            for click in page.clicks:
                self._clicks_come_later |= click.ts > page.impression.ts
                actions.queue.push(click)
            n_pages, last_ts = n_pages + 1, page.impression.ts
            if len(events) >= _CHUNK:
                yield Chunk(events, self._read())
                events = []
            if n_pages == limit:
                rest = False
                break
        if rest:
            tail = chain(events, actions.all(limit if last_ts is None else None))
            yield from _cut(tail, self._read)
        else:
            yield Chunk([*events, *actions.until(last_ts or 0), *actions.queue.pop_all()], self._read())

    def _pages(self, files: list[Path]) -> Iterator[Page]:
        batches = self._rows(files)
        if self.options.sort:
            batches = sort_rows(batches, ("ts", "user", "request"))
        return (flat_pages if self.options.layout == "flat" else listed_pages)(batches, self.options, self.tally)

    def _rows(self, files: list[Path]) -> Iterator[Rows]:
        for path in self._not_empty(files):
            yield from self._convert(path, page_fields(self.options, path, self._columns(path)))

    def _actions(self, files: list[Path]) -> Iterator[Action]:
        mapping = self.options.actions
        if mapping is None:
            return
        clock = Clock(self.options.lateness_ms)
        for path in self._not_empty(files):
            self._clicks_come_later = True
            for rows in self._convert(path, _action_fields(mapping, path, self._columns(path))):
                for row, values in enumerate(zip(*(rows.fields[name] for name in _ACTION_COLUMNS), strict=True)):
                    user, item, ts, kind, request, query, category, domain, value = values
                    if why := clock.why_late(ts):
                        self.tally.bad(rows.bad(row, "ts", ts, why))
                        continue
                    kind = kind or mapping.default_kind
                    yield Action(user, item, ts, kind, request, query, category, value, domain)

    def _columns(self, path: Path) -> set[str]:
        return columns_of(path, delimiter=self.options.delimiter, header=self.options.header)

    def _convert(self, path: Path, fields: dict[str, Field]) -> Iterator[Rows]:
        wanted = list(dict.fromkeys(field.column for field in fields.values() if field.column))
        options = self.options
        for batch in read_table(path, wanted, self.tally, delimiter=options.delimiter, header=options.header):
            self._done[path] = batch.done
            yield convert(batch, fields, self.tally, 0)

    def _not_empty(self, files: list[Path]) -> Iterator[Path]:
        for path in files:
            if path.stat().st_size:
                yield path
            else:
                self.tally.left_out["empty files"] += 1

    def _read(self) -> int:
        return sum(self._done.values())


def _kinds(options: RowsOptions, which: Any) -> dict[str, FeatureKind]:
    return {name: feature.kind for name, feature in options.feature_columns(which).items()}


def _action_fields(mapping: ActionColumns, path: Path, found: set[str]) -> dict[str, Field]:
    columns = resolve(mapping, _ACTION_COLUMNS, path, found)
    readers = {"user": identifier, "item": identifier, "ts": time_reader(mapping.ts_unit), "value": optional(number)}
    return {
        name: Field(columns.get(name, ""), readers.get(name, optional(identifier)), name == "ts") for name in _ACTION_COLUMNS
    }


class _Merged:
    """Clicks of pages and the actions of files of their own, in one order of time."""

    def __init__(self, own: Iterator[Action]) -> None:
        self.queue = ActionQueue()
        self._own = own
        self._next = next(own, None)

    def until(self, ts: int) -> Iterator[Action]:
        """Yield what happened up to ``ts``."""
        while self._next is not None and self._next.ts <= ts:
            yield from self.queue.pop_until(self._next.ts)
            yield self._next
            self._next = next(self._own, None)
        yield from self.queue.pop_until(ts)

    def all(self, limit: int | None) -> Iterator[Action]:
        """Yield the rest, ``limit`` actions at most."""
        n_found = 0
        while self._next is not None and n_found != limit:
            yield from self.queue.pop_until(self._next.ts)
            yield self._next
            n_found += 1
            self._next = next(self._own, None)
        yield from self.queue.pop_all()


def _first(events: list[Event], left: int, has_impressions: bool) -> list[Event]:
    """Return the events up to the ``left``-th impression (or event)."""
    kept: list[Event] = []
    for event in events:
        if left == 0:
            break
        kept.append(event)
        left -= not has_impressions or type(event) is Impression
    return kept


def _cut(events: Iterator[Event], done: Any) -> Iterator[Chunk]:
    chunk: list[Event] = []
    for event in events:
        chunk.append(event)
        if len(chunk) >= _CHUNK:
            yield Chunk(chunk, done())
            chunk = []
    yield Chunk(chunk, done())


KIND = ImporterKind(
    name="rows",
    summary="your own log: JSON lines, CSV or Parquet, through a field mapping",
    options=RowsOptions,
    open=RowsImport,
)
