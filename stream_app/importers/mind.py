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
import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import chain, groupby, repeat
from operator import itemgetter
from pathlib import Path
from typing import Final, NamedTuple

from stream_app.events import Action, Impression, ImpressionItem, Item
from stream_app.joiner.config import ItemSequence, JoinConfig

from .lines import first_line, numbered_lines
from .ordering import Row, RowSort
from .source import Chunk, Event, ImporterKind, ImportOptions, SourceError, Tally, bad_row

__all__ = ["HISTORY", "KIND", "MindImport", "MindOptions"]

HISTORY: Final = "history"
_CLICK: Final = "click"
_BEHAVIORS: Final = "behaviors.tsv is impression, user, time, history, list, by tabs"
_NEWS: Final = "news.tsv is id, category, subcategory, title, abstract, url and two lists of entities, by tabs"
_N_BEHAVIORS, _N_NEWS = 5, (3, 8)
_LIST: Final = re.compile(r"\s*\S+-[01](?:\s+\S+-[01])*\s*")
_DAY: Final = "%m/%d/%Y"
_CLOCK: Final = "%I:%M:%S %p"
_STEP_MS: Final = 1_000
_RUN_ROWS: Final = 50_000
_CHUNK: Final = 2_048
_READ: Final = 0.2
_SORTED: Final = 0.4
"""Part of the work that is done when all is read, and when both sorts are; for the progress display."""


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
        with RowSort(_RUN_ROWS) as by_user, RowSort(_RUN_ROWS) as by_time:
            yield from self._sort_all(by_user, by_time)
            first_ts, rows = _first_ts(by_time.merged())
            if first_ts is None:
                raise SourceError(
                    f"{', '.join(path.name for path in self._behaviors)}: there is no impression that can be imported"
                )
            yield from self._items(first_ts - 1)
            events: list[Event] = []
            n_requests = 0
            for n_rows, (ts, user, request, items) in enumerate(rows, 1):
                if request is None:
                    events.append(Action(user, items, ts, HISTORY))
                else:
                    events += _shown(ts, user, request, items)
                    n_requests += 1
                    if n_requests == limit:
                        break
                if len(events) >= _CHUNK:
                    yield Chunk(events, self._done(_SORTED, 1.0, n_rows, by_time.n_rows))
                    events = []
            yield Chunk(events, self.total)

    def _sort_all(self, by_user: RowSort, by_time: RowSort) -> Iterator[Chunk]:
        """Put (ts, user, request, list) of impressions and (ts, user, None, item) of histories into ``by_time``.

        Two sorts: the first one finds each user's first impression, wherever it stands in the files.
        """
        for shown, done in self._impressions():
            by_user.add(([shown.user, shown.ts], *shown))
            if by_user.n_rows % _CHUNK == 0:
                yield Chunk([], self._done(0.0, _READ, done, self.total))
        n_read = 0
        for _, rows in groupby(by_user.merged(), key=itemgetter(2)):
            for n, (_, ts, user, request, history, items) in enumerate(rows):
                if n == 0 and self.options.histories:
                    for back, item in enumerate(reversed(history.split()), 1):
                        by_time.add((ts - _STEP_MS * back, user, None, item))
                by_time.add((ts, user, request, items))
                n_read += 1
                if n_read % _CHUNK == 0:
                    yield Chunk([], self._done(_READ, _SORTED, n_read, by_user.n_rows))

    def _done(self, first: float, last: float, n: int, of: int) -> int:
        """Return how many bytes of the files a part of the work stands for, ``n`` of ``of`` of which is done."""
        return int(self.total * (first + (last - first) * min(1.0, n / max(1, of))))

    def _impressions(self) -> Iterator[tuple[_Shown, int]]:
        """Yield impressions, each with the bytes that have been read."""
        base = 0
        for path in self._behaviors:
            for number, parts, done in _split(path, (_N_BEHAVIORS,), _BEHAVIORS, self.tally):
                request, user, time, history, items = parts
                found = _why_not(request, user, time, items)
                if isinstance(found, int):
                    yield _Shown(found, user, request, history, items), base + done
                else:
                    field, value, why = found
                    self.tally.bad(bad_row(path, number, field, value, f"{why} ({_BEHAVIORS})"))
            base += path.stat().st_size

    def _items(self, ts: int) -> Iterator[Chunk]:
        """Yield the news as of just before the log."""
        events: list[Event] = []
        for path in self._news:
            for number, (item, category, subcategory, *_), _ in _split(path, _N_NEWS, _NEWS, self.tally):
                if not item or not category:
                    self.tally.bad(bad_row(path, number, "the line", item, f"lacks an id or a category ({_NEWS})"))
                    continue
                features = {"subcategory": subcategory} if subcategory else {}
                events.append(Item(item, ts, category, None, dict(features)))
                if len(events) >= _CHUNK:
                    yield Chunk(events, self._done(_SORTED, 1.0, 0, 1))
                    events = []
        yield Chunk(events, self._done(_SORTED, 1.0, 0, 1))


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


def _split(path: Path, n_fields: tuple[int, ...], says: str, tally: Tally) -> Iterator[tuple[int, list[str], int]]:
    """Yield (number, fields, bytes read) of each line; the tally gets those with another number of fields, blank ones go."""
    for first, data, done in numbered_lines(path):
        for number, line in enumerate(data.split(b"\n"), first):
            if not line.strip():
                continue
            parts = line.rstrip(b"\r").decode(errors="replace").split("\t")
            if len(parts) in n_fields:
                yield number, parts, done
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
        ts = _ms(time)
    except ValueError:
        return "time", time, "is no time like 11/13/2019 8:36:57 AM"
    if _LIST.fullmatch(items):
        return ts
    unlabelled = [item for item in items.split() if not _LIST.fullmatch(item)]
    if not unlabelled:
        return "list", items, "is empty"
    why = "is no item with its label, like N55689-1; the test set has no labels and cannot be imported"
    return "list", unlabelled[0], why


def _ms(time: str) -> int:
    """Return a time in UTC ms: its day and its time of day are each parsed once (``strptime`` takes 8 us).

    Raises:
        ValueError: it is none.
    """
    day, _, clock = time.partition(" ")
    try:
        return _parsed(day, _DAY) + _parsed(clock, _CLOCK) - _parsed("12:00:00 AM", _CLOCK)
    except ValueError:
        return _parsed(time, f"{_DAY} {_CLOCK}")  # blanks more than one


@lru_cache(maxsize=1 << 17)
def _parsed(text: str, form: str) -> int:
    return int(dt.datetime.strptime(text, form).replace(tzinfo=dt.UTC).timestamp()) * 1_000


def _shown(ts: int, user: str, request: str, items: str) -> Iterator[Event]:
    listed = items.split()
    names = [item[:-2] for item in listed]
    yield Impression(request, user, ts, list(map(ImpressionItem, names, repeat(None), range(len(names)))))
    yield from [Action(user, item[:-2], ts, _CLICK, request) for item in listed if item[-1] == "1"]


def _first_ts(rows: Iterator[Row]) -> tuple[int | None, Iterator[Row]]:
    """Return the time of the first row, None where there is none, and all rows."""
    first = next(rows, None)
    return (None, rows) if first is None else (first[0], chain([first], rows))


KIND = ImporterKind(
    name="mind",
    summary="MIND news (behaviors.tsv, news.tsv); histories have no times, they get some just before a user's first impression",
    options=MindOptions,
    open=MindImport,
)
