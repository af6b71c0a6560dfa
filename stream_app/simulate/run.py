"""From the simulation to a log, as an importer does: resumable, in batches, in the order of time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from stream_app.events import Action, Impression, ImpressionItem, Item
from stream_app.importers.ordering import ActionQueue
from stream_app.importers.pace import Pace
from stream_app.importers.report import ImportReport
from stream_app.importers.run import Job, write_source
from stream_app.importers.source import Chunk, Event, Progress, Tally
from stream_app.joiner.config import JoinConfig
from stream_app.topics import Log

from .clicks import Clicker
from .options import SimulateOptions
from .pages import Pages, make_pages
from .world import World

__all__ = ["Simulation", "run_simulate"]

CHUNK = 4_096


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
        self._items = [f"i{i}" for i in range(options.items)]
        self._categories = [f"c{i}" for i in range(options.categories)]
        self._n_arrived = 0

    def inputs(self) -> list[Path]:
        """Return nothing: the options are all there is."""
        return []

    def ignored_features(self) -> tuple[str, ...]:
        """Return nothing."""
        return ()

    def join_config(self) -> JoinConfig:
        """Return a config with the window that clicks come in, and the truth."""
        options = self.options
        return JoinConfig(
            label_window_ms=options.label_window_ms,
            correction_window_ms=options.label_window_ms,
            lateness_ms=0,
            query_length=50 if options.query_share else 0,
            truth=True,
        )

    def chunks(self, limit: int | None) -> Iterator[Chunk]:
        """Yield items, impressions and clicks; ``limit`` counts requests."""
        n_requests = self.total if limit is None else min(limit, self.total)
        clicker, waiting = Clicker(self._world), ActionQueue()
        self._n_arrived = 0
        for first in range(0, n_requests, self._chunk):
            pages = make_pages(self._world, first, min(self._chunk, n_requests - first))
            events: list[Event] = [*self._arrivals(int(pages.n[-1]))]
            events += self._impressions(pages, clicker, waiting)
            events += waiting.pop_until(int(pages.ts[-1]))
            yield Chunk(events, first + len(pages.n))
        yield Chunk([*waiting.pop_all()], n_requests)

    def _arrivals(self, last: int) -> Iterator[Item]:
        """Yield the items that arrive up to request ``last``, at the beginning of that request's time slot."""
        world, options = self._world, self.options
        slot_ms = 1_000.0 / options.rate
        n_arrived = int(world.arrived(np.array([last]))[0])
        for item in world.by_arrival[self._n_arrived : n_arrived].tolist():
            ts = options.start_ts + int(world.arrival[item] * slot_ms)
            yield Item(self._items[item], ts, self._categories[world.item_category[item]])
        self._n_arrived = n_arrived

    def _impressions(self, pages: Pages, clicker: Clicker, waiting: ActionQueue) -> Iterator[Impression]:
        clicks = clicker.click(pages)
        category_of, names, categories = self._world.item_category.tolist(), self._items, self._categories
        columns = zip(
            pages.n.tolist(),
            pages.ts.tolist(),
            pages.user.tolist(),
            pages.query.tolist(),
            pages.query_category.tolist(),
            pages.items.tolist(),
            clicks.truth.tolist(),
            np.any(clicks.clicked, axis=1).tolist(),
            strict=True,
        )
        for row, (n, ts, user, query, category, items, truth, any_click) in enumerate(columns):
            shown = [
                ImpressionItem(names[item], categories[category_of[item]], rank, None, {}, p)
                for rank, (item, p) in enumerate(zip(items, truth, strict=True))
            ]
            request, who = str(n), self._users[user]
            if any_click:
                for rank in clicks.clicked[row].nonzero()[0].tolist():
                    at, item = ts + int(clicks.delay_ms[row, rank]), items[rank]
                    waiting.push(Action(who, names[item], at, "click", request, None, categories[category_of[item]]))
            if query < 0:
                yield Impression(request, who, ts, shown)
            else:
                yield Impression(request, who, ts, shown, f"q{query}", [categories[category]])


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
    job = Job("simulate", Simulation(options), Tally("stop"), options, options.partitions, limit)
    return write_source(job, log, log_dir, on_progress, pace)
