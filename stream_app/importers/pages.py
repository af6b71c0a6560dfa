"""Rows of the layouts ``flat`` and ``page`` -> impressions, and a click for each positive label."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import repeat
from pathlib import Path
from typing import Any, Final, NamedTuple

from stream_app.events import Action, FeatureValue, Impression, ImpressionItem

from .fields import Clock, Field, Rows, feature_dict, feature_dicts, feature_fields
from .mapping import RowsOptions, missing_column, resolve, resolve_features
from .source import Tally
from .values import flag, identifier, one_of, optional, position, time_reader

__all__ = ["Page", "flat_pages", "listed_pages", "page_fields"]

_COLUMNS: Final = (
    "user", "item", "ts", "request", "query", "query_category", "category", "domain", "position", "label", "clicked", "click_ts"
)  # fmt: skip
_REMEMBERED: Final = 100_000
"""Pages that a row of theirs may not come back to; older ones are forgotten."""


class Page(NamedTuple):
    """One page and what was clicked on it."""

    impression: Impression
    clicks: list[Action]
    done: int


def page_fields(options: RowsOptions, path: Path, found: set[str]) -> dict[str, Field]:
    """Return how the fields of pages are read from a file with the columns ``found``.

    Raises:
        SourceError: a column that is named or needed is not there.
    """
    is_list = options.layout == "page"
    names = _COLUMNS if is_list else tuple(name for name in _COLUMNS if name != "clicked")
    columns = resolve(options, names, path, found)
    if options.actions is None and not {columns.get("label"), columns.get("clicked")} & found:
        raise missing_column(path, "label", options.label or "label", found)
    time = time_reader(options.ts_unit)
    label = one_of(options.positive) if options.positive else flag
    per_item = {
        "item": identifier,
        "category": optional(identifier),
        "position": optional(position),
        "label": label,
    }
    readers: dict[str, Callable[[Any], Any]] = {
        "user": identifier,
        "ts": time,
        "click_ts": optional(time),
        "request": optional(identifier),
        "query": optional(identifier),
        "domain": optional(identifier),
        "query_category": optional(_many(identifier, options.separator)),
        "clicked": optional(_many(identifier, options.separator)),
        **({name: _many(read, options.separator) for name, read in per_item.items()} if is_list else per_item),
    }
    if is_list:
        readers |= {name: optional(readers[name]) for name in ("category", "position", "label")}
    fields = {name: Field(columns.get(name, ""), readers[name], name in ("ts", "click_ts")) for name in _COLUMNS}
    features = resolve_features(options.feature_columns("features"), "features", path, found)
    item_features = feature_fields(features, "features")
    if is_list:
        item_features = {
            name: field._replace(read=optional(_many(field.read, options.separator))) for name, field in item_features.items()
        }
    request = resolve_features(options.feature_columns("request_features"), "request_features", path, found)
    return {**fields, **item_features, **feature_fields(request, "request_features")}


def _many(read: Callable[[Any], Any], separator: str) -> Callable[[Any], list[Any]]:
    """Return the reader of a list: an Arrow or JSON list, text with separators, or one value."""

    def read_list(value: Any) -> list[Any]:
        if isinstance(value, str):
            value = value.split(separator)
        return [read(entry) for entry in value] if isinstance(value, list | tuple) else [read(value)]

    return read_list


class _Open:
    """A page whose rows are still coming in."""

    __slots__ = ("clicks", "items", "key", "request", "row", "rows")

    def __init__(self, key: tuple[str, str], rows: Rows, row: int) -> None:
        self.key, self.rows, self.row = key, rows, row
        self.items: list[ImpressionItem] = []
        self.clicks: list[tuple[int, str, str | None]] = []


def flat_pages(batches: Iterable[Rows], options: RowsOptions, tally: Tally) -> Iterator[Page]:
    """Group rows of one page that stand next to each other.

    Raises:
        SourceError: a page is taken up again later, or time runs backwards, and bad rows stop the import.
    """
    clock, pages = Clock(options.lateness_ms), _Seen()
    names, request_names = tuple(options.features), tuple(options.request_features)
    now: _Open | None = None
    closing: dict[str, FeatureValue] = {}
    refused: tuple[str, str] | None = None
    for rows in batches:
        f = rows.fields
        requests = [r or f"{u}.{ts}" for r, u, ts in zip(f["request"], f["user"], f["ts"], strict=True)]
        columns = zip(
            f["user"], requests, f["ts"], f["item"], f["category"], f["position"], f["label"], f["click_ts"],
            feature_dicts(rows, names, "features"), strict=True,
        )  # fmt: skip
        for row, (user, request, ts, item, category, rank, label, click_ts, features) in enumerate(columns):
            key = (user, request)
            if now is None or now.key != key:
                if now is not None:
                    yield _page(now, closing, options)
                    now = None
                if key == refused or not _may_open(rows, row, key, ts, clock, pages, tally):
                    refused = key
                    continue
                refused, now, closing = None, _Open(key, rows, row), feature_dict(rows, row, request_names, "request_features")
            if label:
                now.clicks.append((click_ts or 0, item, category))
            now.items.append(ImpressionItem(item, category, len(now.items) if rank is None else rank, None, features))
    if now is not None:
        yield _page(now, closing, options)


class _Seen(dict[tuple[str, str], None]):
    """The newest pages that are complete."""

    def add(self, key: tuple[str, str]) -> None:
        if len(self) >= _REMEMBERED:
            del self[next(iter(self))]
        self[key] = None


def _may_open(rows: Rows, row: int, key: tuple[str, str], ts: int, clock: Clock, seen: _Seen, tally: Tally) -> bool:
    if key in seen:
        why = "is a page whose rows had ended: put the rows of one page next to each other, or set sort = true"
        tally.bad(rows.bad(row, "request", key[1], why))
        return False
    if why_late := clock.why_late(ts):
        tally.bad(rows.bad(row, "ts", ts, why_late))
        return False
    seen.add(key)
    return True


def _page(page: _Open, features: dict[str, FeatureValue], options: RowsOptions) -> Page:
    f, row = page.rows.fields, page.row
    user, request = page.key
    ts, query = f["ts"][row], f["query"][row]
    impression = Impression(request, user, ts, page.items, query, f["query_category"][row] or [], f["domain"][row], features)
    clicks = [
        Action(user, item, max(ts, click_ts), options.label_kind, request, None, category)
        for click_ts, item, category in page.clicks
    ]
    return Page(impression, clicks, page.rows.done)


def listed_pages(batches: Iterable[Rows], options: RowsOptions, tally: Tally) -> Iterator[Page]:
    """Take one page from each row.

    Raises:
        SourceError: lists of different lengths, or time runs backwards, and bad rows stop the import.
    """
    clock = Clock(options.lateness_ms)
    names, request_names = tuple(options.features), tuple(options.request_features)
    lists = ["category", "position", "label", *(f"features.{name}" for name in names)]
    for rows in batches:
        f = rows.fields
        for row, items in enumerate(f["item"]):
            ts, user = f["ts"][row], f["user"][row]
            if why_late := clock.why_late(ts):
                tally.bad(rows.bad(row, "ts", ts, why_late))
                continue
            unlike = [name for name in lists if f[name][row] is not None and len(f[name][row]) != len(items)]
            if unlike:
                value = f[unlike[0]][row]
                tally.bad(rows.bad(row, unlike[0], value, f"has {len(value)} entries for {len(items)} items"))
                continue
            page = _Open((user, f["request"][row] or f"{user}.{ts}"), rows, row)
            _fill(page, items, names)
            yield _page(page, feature_dict(rows, row, request_names, "request_features"), options)


def _fill(page: _Open, items: list[str], names: tuple[str, ...]) -> None:
    f, row = page.rows.fields, page.row
    categories: list[str | None] = f["category"][row] or [None] * len(items)
    ranks: list[int | None] = f["position"][row] or list(range(len(items)))
    clicked = f["clicked"][row] or ()
    labels = f["label"][row] or [item in clicked for item in items]
    columns = [f[f"features.{name}"][row] or repeat(None) for name in names]
    for i, values in enumerate(zip(range(len(items)), *columns, strict=False)):
        features = {name: value for name, value in zip(names, values[1:], strict=True) if value is not None}
        page.items.append(ImpressionItem(items[i], categories[i], i if ranks[i] is None else ranks[i], None, features))
        if labels[i]:
            page.clicks.append((f["click_ts"][row] or 0, items[i], categories[i]))
