"""The batches of a replay, made ahead of the steps: on a thread, and where joining pays for it in a process of its own."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Sequence

from learners.learner import Learner
from learners.samples import SampleSchema
from stream_app.config import RunConfig
from stream_app.prefetch import prefetch
from stream_app.profile import Profile
from stream_app.read_messages import Ask, Setup
from stream_app.read_process import ReadProcess
from stream_app.sample_sources import JoinedSource, Source
from stream_app.samples_reader import Batch, Place, Range, SampleReader

HAND_OVER_REQUESTS = 1_024
"""Requests that are handed over at once, where batches are smaller: each hand-over wakes both threads."""

__all__ = ["ReplayReading", "joins_beside"]


def joins_beside(source: Source) -> bool:
    """Whether a source is read by a process of its own: one that joins, where there is another core for it.

    On one core the processes would take turns, and each pays for its start and its memory. Samples that are joined already
    are read on a thread: that is a tenth of what a hand-over between processes spares.
    """
    return isinstance(source, JoinedSource) and source.address is not None and len(os.sched_getaffinity(0)) > 1


class ReplayReading:
    """Reads the streams of a replay: what is learned, and under ``delayed`` what is scored.

    Args:
        config: of the replay.
        source: of the samples.
        schema: of the samples.
        profile: where the time goes.
    """

    def __init__(self, config: RunConfig, source: Source, schema: SampleSchema, profile: Profile) -> None:
        self._config, self._source, self._schema, self._profile = config, source, schema, profile
        self._at_once = max(1, HAND_OVER_REQUESTS // config.replay.batch_requests)
        self._streams: tuple[tuple[Place, ...], ...] = ()
        self._process: ReadProcess | None = None

    def begin(self, *streams: Sequence[Place]) -> None:
        """Begin to join, where another process does it; the first use of its streams is quick then.

        Args:
            streams: places that each begins at.
        """
        wanted = tuple(map(tuple, streams))
        if self._process is not None and wanted == self._streams:
            return
        self.close()
        self._streams = wanted
        if isinstance(self._source, JoinedSource) and self._source.address is not None and joins_beside(self._source):
            asks = tuple(map(self._ask, wanted))
            self._process = ReadProcess(Setup(self._source.address, self._source.config, self._schema, asks))

    def _ask(self, places: tuple[Place, ...]) -> Ask:
        replay = self._config.replay
        slack_ms = self._config.window_ms()
        return Ask(places, replay.batch_requests, replay.start, replay.stop, slack_ms, self._at_once)

    def stream(self, number: int, learners: Sequence[Learner] = ()) -> Generator[Batch, None, None]:
        """Return the batches of a stream that was begun, read ahead.

        Args:
            number: of the stream.
            learners: what of them gains by it prepares each batch, on the thread that reads ahead.
        """
        batches, preparing = self._batches(number), [each for each in learners if each.prepares_ahead]
        if not preparing:
            return prefetch(batches, self._profile, depth=2, at_once=self._at_once)
        return prefetch(self._prepared(batches, preparing), self._profile)  # What is prepared fills a device's memory.

    def _batches(self, number: int) -> Iterator[Batch]:
        if self._process is not None:
            return self._process.batches(number, self._profile)
        ask = self._ask(self._streams[number])
        span = Range(ask.start, ask.stop)
        reader = SampleReader(self._source, self._schema, ask.places, ask.batch_requests, span, ask.slack_ms, self._profile)
        return iter(reader)

    def _prepared(self, batches: Iterator[Batch], learners: Sequence[Learner]) -> Iterator[Batch]:
        for batch in batches:
            with self._profile.stage("prepare"):
                for learner in learners:
                    learner.prepare(batch.block)
            yield batch

    def close(self) -> None:
        """End the process that joins, wherever it is; a thread that waits for it goes on."""
        if self._process is not None:
            self._process.end()
        self._process = None
