"""``trivago``: hotel search sessions of the RecSys Challenge 2019 (``train.csv``, or the same columns as Parquet).

====================================== ================================================================================
row                                    becomes
====================================== ================================================================================
``clickout item``                      an impression of the list shown, and a ``click`` with its request id
``interaction item image`` and others  an action of its own kind (``image``, ``info``, ``rating`` ...): history
``search for ...``, filters, sorting   nothing (counted): what they set is on the next list, as its city and filters
====================================== ================================================================================

The query of a list is its city; its categories are the city and the country, and a hotel's category is the city that it is
listed under, so that queries and items meet on cities, and queries among themselves also on countries. Beside its price a
hotel has ``price_in_list``: the logarithm of (1 + price), less the mean of that over the list; below 0 is cheap for this page.
It belongs to the page that was shown, so it is logged and no model has to look at other candidates. Times are seconds: an
event's ``ts`` is ``1000 s + rank`` of its row among the user's rows of that second, so the order of steps is kept; from rank
999 on, rows share the last ms, where histories, which end strictly before a request, can no longer tell them apart.

Source: P. Knees et al., "RecSys Challenge 2019: Session-based Hotel Recommendations", RecSys 2019.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from math import fsum, log1p
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

from stream_app.events import Action, FeatureValue, Impression, ImpressionItem
from stream_app.joiner.config import ItemSequence, JoinConfig

from .fields import Field, Rows, convert, sort_rows
from .mapping import missing_column
from .source import Chunk, Event, ImporterKind, ImportOptions, Tally
from .tables import columns_of, read_table
from .values import identifier, number, optional, position, time_reader

__all__ = ["ITEM_KINDS", "KIND", "TrivagoImport", "TrivagoOptions"]

CLICKOUT: Final = "clickout item"
ITEM_KINDS: Final = {
    CLICKOUT: "click",
    "interaction item image": "image",
    "interaction item info": "info",
    "interaction item rating": "rating",
    "interaction item deals": "deals",
    "search for item": "search",
}
"""Rows about one item -> kind of action; all of them feed the item history."""

_LAST_RANK: Final = 999
_CHUNK: Final = 2_048


def _listed(value: Any) -> list[str]:
    return identifier(value).split("|")


def _prices(value: Any) -> list[float]:
    prices = [number(price) for price in _listed(value)]
    if min(prices, default=0.0) < 0:
        raise ValueError("is a list with a price below 0")
    return prices


_FIELDS: Final = {
    "ts": Field("timestamp", time_reader("s")),
    "user": Field("user_id", identifier),
    "session": Field("session_id", identifier),
    "step": Field("step", position),
    "kind": Field("action_type", identifier),
    "reference": Field("reference", optional(identifier)),
    "platform": Field("platform", optional(identifier)),
    "city": Field("city", optional(identifier)),
    "device": Field("device", optional(identifier)),
    "filters": Field("current_filters", optional(identifier)),
    "impressions": Field("impressions", optional(_listed)),
    "prices": Field("prices", optional(_prices)),
}
_Row = dict[str, Any]


class TrivagoOptions(ImportOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of ``trivago``: those of every importer."""


class TrivagoImport:
    """One import of ``trivago``; see :class:`~stream_app.importers.source.Importer`."""

    unit = "bytes"

    def __init__(self, files: list[Path], options: TrivagoOptions, tally: Tally) -> None:
        self.files = files
        self.options = options
        self.tally = tally
        self.total = sum(path.stat().st_size for path in files)
        self._n_requests = 0
        for path in files:
            found = columns_of(path)
            for field in _FIELDS.values():
                if field.column not in found:
                    raise missing_column(path, field.column, field.column, found)

    def inputs(self) -> list[Path]:
        """Return the files."""
        return self.files

    def ignored_features(self) -> tuple[str, ...]:
        """Return nothing: all features are for the models."""
        return ()

    def join_config(self) -> JoinConfig:
        """Return a config without a label window, as clicks come with their list; every kind of interaction is history."""
        return JoinConfig(
            label_window_ms=0,
            lateness_ms=0,
            query_length=50,
            item_sequences={"click": ItemSequence(kinds=tuple(ITEM_KINDS.values()), length=50)},
            request_features={"platform": "id", "device": "id", "filters": "id", "n_filters": "float"},
            candidate_features={"price": "float", "price_in_list": "float"},
        )

    def chunks(self, limit: int | None) -> Iterator[Chunk]:
        """Yield impressions and actions; ``limit`` counts requests."""
        events: list[Event] = []
        done = 0
        for ts, row, done in _ranked(sort_rows(self._rows(), ("ts", "user", "session", "step"))):
            events += self._events(ts, row)
            if self._n_requests == limit:
                break
            if len(events) >= _CHUNK:
                yield Chunk(events, done)
                events = []
        yield Chunk(events, done)

    def _rows(self) -> Iterator[Rows]:
        base = 0
        for path in self.files:
            for batch in read_table(path, [field.column for field in _FIELDS.values()], self.tally):
                yield self._whole(convert(batch, _FIELDS, self.tally, base))
            base += path.stat().st_size

    def _whole(self, rows: Rows) -> Rows:
        """Leave out clickouts whose list cannot be used."""
        bad = set()
        columns = zip(*(rows.fields[name] for name in ("kind", "impressions", "prices")), strict=True)
        for row, (kind, items, prices) in enumerate(columns):
            if kind != CLICKOUT or (items and prices is not None and len(items) == len(prices)):
                continue
            bad.add(row)
            shown = f"{len(items or ())} items, {len(prices or ())} prices"
            self.tally.bad(rows.bad(row, "impressions", shown, "is no list shown: a clickout needs a price for each item"))
        if not bad:
            return rows
        good = [row for row in range(len(rows.numbers)) if row not in bad]
        fields = {name: [values[row] for row in good] for name, values in rows.fields.items()}
        return rows._replace(numbers=[rows.numbers[row] for row in good], fields=fields)

    def _events(self, ts: int, row: _Row) -> list[Event]:
        kind, item = ITEM_KINDS.get(row["kind"]), row["reference"]
        if kind is None or item is None or not item.isdigit():
            self.tally.left_out[row["kind"] if kind is None else f"{row['kind']} without an item"] += 1
            return []
        user, city = row["user"], row["city"]
        if row["kind"] != CLICKOUT:
            return [Action(user, item, ts, kind, category=city)]
        if item not in row["impressions"]:
            self.tally.left_out["lists without the item clicked (history only)"] += 1
            return [Action(user, item, ts, kind, category=city)]
        impression = _impression(str(self._n_requests), ts, row)
        self._n_requests += 1
        return [impression, Action(user, item, ts, kind, impression.request_id, category=city)]


def _impression(request_id: str, ts: int, row: _Row) -> Impression:
    city, filters = row["city"], row["filters"]
    logs = [log1p(price) for price in row["prices"]]
    mean = fsum(logs) / len(logs)
    shown = zip(row["impressions"], row["prices"], logs, strict=True)
    items = [
        ImpressionItem(item, city, rank, None, {"price": price, "price_in_list": logged - mean})
        for rank, (item, price, logged) in enumerate(shown)
    ]
    given = {"platform": row["platform"], "device": row["device"], "filters": filters}
    features: dict[str, FeatureValue] = {name: value for name, value in given.items() if value is not None}
    features["n_filters"] = float(filters.count("|") + 1) if filters else 0.0
    categories = [] if city is None else list(dict.fromkeys([city, city.rpartition(", ")[2]]))
    return Impression(request_id, row["user"], ts, items, city, categories, None, features)


def _ranked(batches: Iterator[Rows]) -> Iterator[tuple[int, _Row, int]]:
    """Yield (ts, row, units read) in the order of ts: within a second by rank among the user's rows."""
    for second, rows in groupby(_one_by_one(batches), key=itemgetter(0)):
        ranks: Counter[str] = Counter()
        ranked = []
        for _, row, done in rows:
            ranked.append((second + min(ranks[row["user"]], _LAST_RANK), row, done))
            ranks[row["user"]] += 1
        yield from sorted(ranked, key=itemgetter(0))


def _one_by_one(batches: Iterator[Rows]) -> Iterator[tuple[int, _Row, int]]:
    for rows in batches:
        for values in zip(*rows.fields.values(), strict=True):
            row = dict(zip(rows.fields, values, strict=True))
            yield row["ts"], row, rows.done


KIND = ImporterKind(
    name="trivago",
    summary="hotel search sessions of the RecSys Challenge 2019 (CSV or Parquet)",
    options=TrivagoOptions,
    open=TrivagoImport,
)
