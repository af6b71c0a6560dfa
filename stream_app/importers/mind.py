"""``mind``: the MIND news set, ``behaviors.tsv`` and ``news.tsv`` (both without a line of names, by tabs).

============================ =============================================================================================
line                         becomes
============================ =============================================================================================
an impression of behaviors   an impression of its list, and a ``click`` with its request id for each ``N1-1`` of it
its history                  actions of the kind ``history``, once per user, see below
a line of news               a version of the item: its category, and the feature ``subcategory``
============================ =============================================================================================

**Histories have no times.** MIND gives what a user had clicked before the weeks of its log, in order, and says of no click when
it was. They enter as actions before the user's first impression in the files, a second apart, the last one a second before it.
So their order is right and their times are made up: what a model learns from how long ago these were is made up too. They have
a kind of their own, so that ``[join]`` can leave them out (``item_sequences.click.kinds = ["click"]``). A user's later
histories are not read, as they repeat the first one. The times of the log name no zone and are taken as UTC; a click has the
time of its impression.

Source: F. Wu et al., "MIND: A Large-scale Dataset for News Recommendation", ACL 2020.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, Final, NamedTuple

from stream_app.events import Action, Impression, ImpressionItem, Item
from stream_app.joiner.config import ItemSequence, JoinConfig

from .lines import first_line, numbered_lines
from .ordering import sorted_rows
from .source import Chunk, Event, ImporterKind, ImportOptions, SourceError, Tally, bad_row

__all__ = ["HISTORY", "KIND", "MindImport", "MindOptions"]

HISTORY: Final = "history"
_CLICK: Final = "click"
_BEHAVIORS: Final = "behaviors.tsv is impression, user, time, history, list, by tabs"
_NEWS: Final = "news.tsv is id, category, subcategory, title, abstract, url and two lists of entities, by tabs"
_N_BEHAVIORS, _N_NEWS = 5, (3, 8)
_TIME: Final = "%m/%d/%Y %I:%M:%S %p"
_STEP_MS: Final = 1_000
_RUN_ROWS: Final = 50_000
_CHUNK: Final = 2_048
_READING: Final = 0.4
"""Part of the work that reading and both sorts are, for the progress display."""


class MindOptions(ImportOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of ``mind``."""

    histories: bool = True
    """Whether histories enter, at times that are made up; without them users begin with nothing."""


class _Shown(NamedTuple):
    """A line of behaviors.tsv."""

    ts: int
    user: str
    request: str
    history: str
    items: str


class MindImport:
    """One import of ``mind``; see :class:`~stream_app.importers.source.Importer`."""

    unit = "bytes"

    def __init__(self, files: list[Path], options: MindOptions, tally: Tally) -> None:
        self.files, self.options, self.tally = files, options, tally
        self.total = sum(path.stat().st_size for path in files)
        kinds = {path: _kind(path) for path in files}
        self._behaviors = [path for path in files if kinds[path] == "behaviors"]
        self._news = [path for path in files if kinds[path] == "news"]
        self._n_lines = 0
        if not self._behaviors:
            raise SourceError(
                f"there is no behaviors.tsv among {', '.join(path.name for path in files)}: give it, and news.tsv"
            )

    def inputs(self) -> list[Path]:
        """Return the files."""
        return self.files

    def ignored_features(self) -> tuple[str, ...]:
        """Return nothing: all features are for the models."""
        return ()

    def join_config(self) -> JoinConfig:
        """Return a config without a label window, as clicks come with their list; made-up histories feed the clicks."""
        kinds = (_CLICK, HISTORY) if self.options.histories else (_CLICK,)
        return JoinConfig(
            label_window_ms=0,
            lateness_ms=0,
            categories=bool(self._news),
            query_length=0,
            item_sequences={"click": ItemSequence(kinds=kinds, length=50)},
            candidate_features={"subcategory": "id"} if self._news else {},
        )

    def chunks(self, limit: int | None) -> Iterator[Chunk]:
        """Yield items, impressions and actions; ``limit`` counts impressions."""
        events: list[Event] = []
        first, n_requests, n_rows = True, 0, 0
        for row in sorted_rows(self._rows(), _RUN_ROWS):
            ts, user, request, items = row
            if first:
                first = False
                yield from self._items(ts - 1)
            n_rows += 1
            if request is None:
                events.append(Action(user, items, ts, HISTORY))
                continue
            events += _shown(ts, user, request, items)
            n_requests += 1
            if n_requests == limit:
                break
            if len(events) >= _CHUNK:
                share = min(1.0, n_requests / max(1, self._n_lines))
                yield Chunk(events, int(self.total * (_READING + (1 - _READING) * share)))
                events = []
        if first:
            raise SourceError(
                f"{', '.join(path.name for path in self._behaviors)}: there is no impression that can be imported"
            )
        yield Chunk(events, self.total)

    def _rows(self) -> Iterator[tuple[Any, ...]]:
        """Yield (ts, user, request, list) of impressions and (ts, user, None, item) of histories, by user and time."""
        # Two sorts: the first one finds each user's first impression, wherever it stands in the files.
        by_user = sorted_rows((([shown.user, shown.ts], *shown) for shown in self._impressions()), _RUN_ROWS)
        for _, rows in groupby(by_user, key=lambda row: row[2]):
            for n, (_, ts, user, request, history, items) in enumerate(rows):
                if n == 0 and self.options.histories:
                    read = history.split()
                    yield from ((ts - _STEP_MS * back, user, None, item) for back, item in zip(_down(read), read, strict=True))
                yield ts, user, request, items

    def _impressions(self) -> Iterator[_Shown]:
        for path in self._behaviors:
            for number, parts in _split(path, (_N_BEHAVIORS,), _BEHAVIORS, self.tally):
                request, user, time, history, items = parts
                found = _why_not(request, user, time, items)
                if isinstance(found, int):
                    self._n_lines += 1
                    yield _Shown(found, user, request, history, items)
                else:
                    field, value, why = found
                    self.tally.bad(bad_row(path, number, field, value, f"{why} ({_BEHAVIORS})"))

    def _items(self, ts: int) -> Iterator[Chunk]:
        """Yield the news as of just before the log."""
        events: list[Event] = []
        for path in self._news:
            for number, (item, category, subcategory, *_) in _split(path, _N_NEWS, _NEWS, self.tally):
                if not item or not category:
                    self.tally.bad(bad_row(path, number, "the line", item, f"lacks an id or a category ({_NEWS})"))
                    continue
                features = {"subcategory": subcategory} if subcategory else {}
                events.append(Item(item, ts, category, None, dict(features)))
                if len(events) >= _CHUNK:
                    yield Chunk(events, int(self.total * _READING))
                    events = []
        yield Chunk(events, int(self.total * _READING))


def _kind(path: Path) -> str:
    """Return which of the two files this is, by its name or its first line."""
    for name in ("behaviors", "news"):
        if name in path.name:
            return name
    n_fields = first_line(path).count("\t") + 1
    if n_fields == _N_BEHAVIORS:
        return "behaviors"
    if n_fields in _N_NEWS:
        return "news"
    raise SourceError(f"{path.name}:1: has {n_fields} fields by tabs; {_BEHAVIORS}, {_NEWS}")


def _split(path: Path, n_fields: tuple[int, ...], says: str, tally: Tally) -> Iterator[tuple[int, list[str]]]:
    """Yield (number, fields) of each line; those with another number of fields go to the tally, blank ones to nowhere."""
    for first, data, _ in numbered_lines(path):
        for number, line in enumerate(data.split(b"\n"), first):
            if not line.strip():
                continue
            parts = line.rstrip(b"\r").decode(errors="replace").split("\t")
            if len(parts) in n_fields:
                yield number, parts
                continue
            wanted = " or ".join(map(str, n_fields))
            shown = line[:60].decode(errors="replace")
            tally.bad(bad_row(path, number, "the line", shown, f"has {len(parts)} fields by tabs, not {wanted} ({says})"))


def _why_not(request: str, user: str, time: str, items: str) -> int | tuple[str, str, str]:
    """Return the time of an impression in UTC ms, or (field, value, what is wrong with it)."""
    for field, value in (("impression", request), ("user", user)):
        if not value:
            return field, value, "is missing"
    try:
        ts = int(dt.datetime.strptime(time, _TIME).replace(tzinfo=dt.UTC).timestamp()) * 1_000
    except ValueError:
        return "time", time, "is no time like 11/13/2019 8:36:57 AM"
    shown = items.split()
    if not shown:
        return "list", items, "is empty"
    for item in shown:
        if len(item) < 3 or item[-2:] not in ("-0", "-1"):
            return "list", item, "is no item with its label, like N55689-1; the test set has no labels and cannot be imported"
    return ts


def _shown(ts: int, user: str, request: str, items: str) -> Iterator[Event]:
    listed = items.split()
    yield Impression(request, user, ts, [ImpressionItem(item[:-2], None, rank) for rank, item in enumerate(listed)])
    yield from (Action(user, item[:-2], ts, _CLICK, request) for item in listed if item[-1] == "1")


def _down(entries: list[str]) -> range:
    return range(len(entries), 0, -1)


KIND = ImporterKind(
    name="mind",
    summary="MIND news (behaviors.tsv, news.tsv); histories have no times, they get some just before a user's first impression",
    options=MindOptions,
    open=MindImport,
)
