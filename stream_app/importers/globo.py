"""``globo``: news clicks of Globo.com (Kaggle "News Portal User Interactions", as one Parquet file sorted by time).

A click that is a request becomes an impression and an action with its id, at the time of the click; the rest become actions
that only feed histories. Source: G. de Souza P. Moreira et al., "CHAMELEON", DLRS 2018.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stream_app.events import Action, FeatureValue, Impression, ImpressionItem
from stream_app.joiner.config import FeatureKind, ItemSequence, JoinConfig

from .drawing import EVALUATION_FEATURES, Clicks, Drawn, DrawOptions
from .globo_candidates import Given
from .source import Chunk, Event, ImporterKind, SourceError, Tally

__all__ = ["KIND", "GloboImport", "GloboOptions"]

_NEEDED: Final = ("user_id", "click_article_id", "click_timestamp")
_FEATURES: Final = {
    "environment": "click_environment",
    "device": "click_deviceGroup",
    "os": "click_os",
    "country": "click_country",
    "region": "click_region",
    "referrer": "click_referrer_type",
}
_BATCH_ROWS: Final = 16_384
_CHUNK: Final = 2_048


class GloboOptions(DrawOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of ``globo``."""

    candidates: Path | None = None
    """Parquet file with candidate lists (``user_id, ts, candidates, labels``): exactly its rows become requests."""
    stop_after_last: bool = True
    """With ``candidates``: end at its last request; else the later clicks follow as plain actions."""


class GloboImport:
    """One import of ``globo``; see :class:`~stream_app.importers.source.Importer`."""

    unit = "clicks"

    def __init__(self, files: list[Path], options: GloboOptions, tally: Tally) -> None:
        self.files = files
        self.options = options
        self.tally = tally
        self._sources = [_open(path) for path in files]
        names = set(self._sources[0].schema_arrow.names)
        self._features = {name: column for name, column in _FEATURES.items() if column in names}
        self.total = sum(source.metadata.num_rows for source in self._sources)
        if options.candidates is not None and not options.candidates.is_file():
            raise SourceError(f"there is no file of candidates {str(options.candidates)!r}")

    def inputs(self) -> list[Path]:
        """Return the clicks' files and the candidates'."""
        return self.files if self.options.candidates is None else [*self.files, self.options.candidates]

    def ignored_features(self) -> tuple[str, ...]:
        """Return the features that tell give-away requests."""
        return EVALUATION_FEATURES

    def join_config(self) -> JoinConfig:
        """Return a config without a label window, as all clicks come with their page; no queries, histories of 50."""
        features: dict[str, FeatureKind] = dict.fromkeys(self._features, "id")
        return JoinConfig(
            label_window_ms=0,
            lateness_ms=0,
            categories=False,
            query_length=0,
            item_sequences={"click": ItemSequence(kinds=("click",), length=50)},
            request_features={**features, "in_window": "float", "clicked_before": "float"},
        )

    def chunks(self, limit: int | None) -> Iterator[Chunk]:
        """Yield impressions and actions; ``limit`` counts requests."""
        options = self.options
        pages: Drawn | Given
        if options.candidates is None:
            pages = Drawn(options, self.tally, self.total)
        else:
            pages = Given(options.candidates)
        events: list[Event] = []
        n_requests = done = 0
        for clicks, features in self._clicks():
            shown = pages.of(clicks)
            rows = zip(clicks.users.tolist(), clicks.items.tolist(), clicks.times.tolist(), *features, strict=True)
            for (user, article, ts, *values), page in zip(rows, shown, strict=True):
                done += 1
                if page is None:
                    events.append(Action(str(user), str(article), ts, "click"))
                    continue
                request: dict[str, FeatureValue] = dict(zip(self._features, map(str, values), strict=True))
                request["in_window"] = float(page.in_window)
                request["clicked_before"] = float(page.clicked_before)
                items = [ImpressionItem(str(item), None, rank) for rank, item in enumerate(page.candidates)]
                events.append(Impression(page.request_id, str(user), ts, items, features=request))
                events.append(Action(str(user), str(article), ts, "click", page.request_id))
                n_requests += 1
                if n_requests == limit or (options.stop_after_last and pages.finished()):
                    yield Chunk(events, done)
                    return
                if len(events) >= _CHUNK:
                    yield Chunk(events, done)
                    events = []
        if not pages.finished() and options.candidates is not None:
            raise SourceError(f"{options.candidates}: it has requests after the last click; make it from the same clicks")
        yield Chunk(events, done)

    def _clicks(self) -> Iterator[tuple[Clicks, list[list[Any]]]]:
        """Yield clicks in the order of (time, user, article) with their features; a batch's last time waits for the next."""
        columns = [*_NEEDED, *self._features.values()]
        held: list[np.ndarray[Any, Any]] | None = None
        newest, first = 0, 1
        for path, source in zip(self.files, self._sources, strict=True):
            for batch in source.iter_batches(batch_size=_BATCH_ROWS, columns=columns):
                found = [batch.column(name).to_numpy(zero_copy_only=False) for name in columns]
                _check(path, first, newest, found)
                first += batch.num_rows
                newest = int(found[2][-1])
                if held is not None:
                    found = [np.concatenate(pair) for pair in zip(held, found, strict=True)]
                n_ready = int(np.searchsorted(found[2], newest, side="left"))
                held = [column[n_ready:] for column in found]
                if n_ready:
                    yield _in_order([column[:n_ready] for column in found])
            first = 1
        if held is not None and len(held[0]):
            yield _in_order(held)


def _open(path: Path) -> Any:
    try:
        source = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise SourceError(
            f"{path.name}: not readable as Parquet ({error}); globo takes the clicks as one Parquet file"
        ) from error
    names = source.schema_arrow.names
    for name in _NEEDED:
        if name not in names:
            raise SourceError(
                f"{path.name}: there is no column {name!r}; a log of Globo clicks has {', '.join(_NEEDED)}, found {names}"
            )
        if not pa.types.is_integer(source.schema_arrow.field(name).type):
            raise SourceError(
                f"{path.name}: column {name!r} is {source.schema_arrow.field(name).type}, whole numbers are needed"
            )
    return source


def _check(path: Path, first: int, newest: int, columns: list[np.ndarray[Any, Any]]) -> None:
    """Refuse gaps and clicks out of order: candidates are drawn from the clicks before, so a row cannot just be left out."""
    for name, column in zip(_NEEDED, columns, strict=False):
        if column.dtype.kind != "i" and column.dtype.kind != "u":
            row = first + int(np.flatnonzero(np.isnan(column))[0])
            raise SourceError(f"{path.name}:{row}: {name} is missing; leave such clicks out of the file")
    times = columns[2]
    steps = np.diff(times, prepend=np.int64(newest))
    if (steps < 0).any():
        row = int(np.flatnonzero(steps < 0)[0])
        raise SourceError(
            f"{path.name}:{first + row}: click_timestamp = {times[row]} is {-steps[row]} ms older than the click before it; "
            "sort the file by click_timestamp"
        )


def _in_order(columns: list[np.ndarray[Any, Any]]) -> tuple[Clicks, list[list[Any]]]:
    order = np.lexsort((columns[1], columns[0], columns[2]))
    users, articles, times, *features = (column[order] for column in columns)
    clicks = Clicks(users.astype(np.int64), articles.astype(np.int64), times.astype(np.int64), articles.tolist())
    return clicks, [column.tolist() for column in features]


KIND = ImporterKind(
    name="globo",
    summary="news clicks of Globo.com (Parquet); candidates are drawn, or given with candidates=FILE",
    options=GloboOptions,
    open=GloboImport,
)
