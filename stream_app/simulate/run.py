"""From the simulation to a log, as an importer does: resumable, in batches, in the order of time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np

from stream_app.events import Action, Impression, ImpressionItem, Item
from stream_app.importers.ordering import ActionQueue
from stream_app.importers.pace import Pace
from stream_app.importers.report import ImportReport
from stream_app.importers.run import Job, write_source
from stream_app.importers.source import Chunk, Event, Progress, Tally
from stream_app.joiner.config import ItemSequence, JoinConfig
from stream_app.topics import Log

from .clicks import Clicker
from .options import DOMAINS, SimulateOptions
from .pages import Pages, make_pages
from .watches import WHOLE, shares
from .world import World

__all__ = ["Simulation", "run_simulate"]

CHUNK, PACED_CHUNK = 4_096, 64
"""Requests that are made at a time; where there is a pace, the stream stands still meanwhile."""
_KINDS = {"video": "watch", "product": "click"}
"""What users of two domains do."""


class Simulation:
    """A source of events like an importer; see :class:`~stream_app.importers.source.Importer`.

    Args:
        options: what is simulated.
        chunk: requests made at a time; changes the memory used, not the events.
    """

    unit = "requests"

    def __init__(self, options: SimulateOptions, chunk: int = CHUNK) -> None:
        self.options = options
        self.total = options.requests
        self._chunk = chunk
        self._world = World(options)
        self._users = [f"u{i}" for i in range(options.users)]
        self._items = [f"i{i}" for i in range(len(self._world.item_category))]
        self._categories = [f"c{i}" for i in range(self._world.n_categories)]
        self._category_of: list[int] = self._world.item_category.tolist()
        self._domains: tuple[str | None, ...] = DOMAINS if options.domains > 1 else (None,)
        self._vectors = self._world.vectors()
        self._by_share = options.domains > 1 and options.short_watches > 0

    def inputs(self) -> list[Path]:
        """Return nothing: the options are all there is."""
        return []

    def ignored_features(self) -> tuple[str, ...]:
        """Return nothing."""
        return ()

    def join_config(self) -> JoinConfig:
        """Return a config with the window that clicks come in, the truth, vectors' length, and a sequence per domain."""
        options = self.options
        sequences, least = {"click": ItemSequence()}, {"watch": WHOLE} if self._by_share else {}
        if options.domains > 1:
            sequences = {name: ItemSequence(kinds=(_KINDS[name],)) for name in DOMAINS}
            sequences["video"] = msgspec.structs.replace(sequences["video"], min_value=least)
        return JoinConfig(
            label_window_ms=options.label_window_ms,
            correction_window_ms=options.label_window_ms,
            lateness_ms=0,
            label_kinds=tuple(kind for sequence in sequences.values() for kind in sequence.kinds),
            label_min_value=least,
            item_sequences=sequences,
            query_length=50 if options.query_share else 0,
            vector_dim=options.vector_dim,
            truth=True,
        )

    def chunks(self, limit: int | None) -> Iterator[Chunk]:
        """Yield items, impressions and clicks; ``limit`` counts requests."""
        n_requests = self.total if limit is None else min(limit, self.total)
        clicker, waiting = Clicker(self._world), ActionQueue()
        arrived = -1
        for first in range(0, n_requests, self._chunk):
            pages = make_pages(self._world, first, min(self._chunk, n_requests - first))
            events: list[Event] = [*self._arrivals(arrived, int(pages.n[-1]))]
            arrived = int(pages.n[-1])
            events += self._impressions(pages, clicker, waiting)
            events += waiting.pop_until(int(pages.ts[-1]))
            yield Chunk(events, first + len(pages.n))
        yield Chunk([*waiting.pop_all()], n_requests)

    def _arrivals(self, after: int, last: int) -> Iterator[Item]:
        """Yield the items that arrive after one request and up to another, at the beginning of that request's time slot."""
        world, options = self._world, self.options
        slot_ms = 1_000.0 / options.rate
        for item in world.arriving(after, last).tolist():
            ts = options.start_ts + int(world.arrival[item] * slot_ms)
            vector = self._vectors[item].tolist() if options.vector_dim else None
            domain = self._domains[world.item_domain[item]]
            yield Item(self._items[item], ts, self._category(item), domain, vector=vector)

    def _impressions(self, pages: Pages, clicker: Clicker, waiting: ActionQueue) -> Iterator[Impression]:
        clicks = clicker.click(pages)
        logged = np.ones(len(pages.n), bool) if self.options.pages_of == "both" else pages.domain == 0
        columns = zip(
            pages.n.tolist(),
            pages.ts.tolist(),
            pages.user.tolist(),
            pages.domain.tolist(),
            pages.query.tolist(),
            pages.query_category.tolist(),
            pages.items.tolist(),
            clicks.truth.tolist(),
            logged.tolist(),
            strict=True,
        )
        share = shares(self.options, pages, clicks.clicked) if self._by_share else np.full(clicks.clicked.shape, np.nan)
        acted = clicks.clicked | ~np.isnan(share)
        n_acted = acted.sum(axis=1)
        for row, (n, ts, user, number, query, category, items, truth, is_logged) in enumerate(columns):
            request, who, domain = str(n), self._users[user], self._domains[number]
            if n_acted[row]:
                made = [
                    (items[rank], ts + int(clicks.delay_ms[row, rank]), float(share[row, rank]))
                    for rank in acted[row].nonzero()[0].tolist()
                ]
                self._act(waiting, who, domain, request if is_logged else None, made)
            if is_logged:
                asked, about = (None, []) if query < 0 else (f"q{query}", [self._categories[category]])
                yield Impression(request, who, ts, self._shown(items, truth, domain), asked, about, domain)

    def _shown(self, items: list[int], truth: list[float], domain: str | None) -> list[ImpressionItem]:
        return [
            ImpressionItem(self._items[item], self._category(item), rank, domain, {}, p)
            for rank, (item, p) in enumerate(zip(items, truth, strict=True))
        ]

    def _act(
        self, waiting: ActionQueue, who: str, domain: str | None, request: str | None, made: list[tuple[int, int, float]]
    ) -> None:
        kind = "click" if domain is None else _KINDS[domain]
        for item, at, share in made:
            value = None if math.isnan(share) else share
            waiting.push(Action(who, self._items[item], at, kind, request, None, self._category(item), value, domain))

    def _category(self, item: int) -> str:
        return self._categories[self._category_of[item]]


def run_simulate(
    options: SimulateOptions,
    log: Log,
    log_dir: Path | None,
    *,
    limit: int | None = None,
    on_progress: Progress | None = None,
    pace: Pace | None = None,
) -> ImportReport:
    """Simulate a log.

    The same call after a kill goes on where the log ends; after the end it changes nothing.

    Args:
        options: what is simulated.
        log: where to; its raw topics are created if need be.
        log_dir: folder of the log, for ``imports/FINGERPRINT.json``; None (a log in memory) cannot be resumed.
        limit: end after so many requests of the simulated ones.
        on_progress: called with (done, total, unit).
        pace: when events are due; None writes them as they come.

    Raises:
        SourceError: the log already holds newer events, or another import into it is unfinished.
        TopicError: the log's topics have another partition count.
    """
    simulation = Simulation(options, CHUNK if pace is None else PACED_CHUNK)
    job = Job("simulate", simulation, Tally("stop"), options, options.partitions, limit)
    report = write_source(job, log, log_dir, on_progress, pace)
    return msgspec.structs.replace(report, vector_dim=options.vector_dim)
