"""Replay: one pass over a range of samples, several models side by side, scored before they learn.

The loop is :meth:`Replay.run`. What is learned is a function of (samples, range, config, seed, threads) alone: the time of a
checkpoint, a kill and another start, the threads that read ahead, count figures and write checkpoints change nothing.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from learners.checkpoint import Checkpoint
from learners.learner import Scores
from learners.metrics import SliceOptions
from learners.samples import SampleBlock, SampleError
from stream_app.config import RunConfig
from stream_app.drawn_ranks import DrawnRanks
from stream_app.entrant import Entrant, Scoring
from stream_app.figures_behind import FiguresBehind
from stream_app.garbage import rare_garbage_collection
from stream_app.guard import GuardError, check_state, check_step
from stream_app.item_vectors import ItemVectors
from stream_app.profile import Profile
from stream_app.replay_reading import ReplayReading
from stream_app.runs import RunFolder
from stream_app.sample_sources import Source
from stream_app.samples_reader import Batch, Place
from stream_app.score_ahead import ScoreAhead
from stream_app.score_record import ScoreRecord

SCORE_REQUESTS = 1_024
"""Requests that are scored at once, at most; scores do not depend on it."""
WAY_OUT = (
    "No checkpoint of it is written. Lower the model's learning rates (rate, table_rate), or look for values out of all "
    "proportion in the features of these requests, and replay into a new run"
)

__all__ = ["Replay", "Step"]


class Step(NamedTuple):
    """How far a replay is."""

    batches: int
    requests: int
    """Learned since the beginning of the run."""
    ts: int
    """Event time that has been reached, UTC ms of ``due``."""
    share: float | None
    """Part of the event time since the first step that has passed; None where nobody knows."""


class Replay:
    """A run over samples.

    Args:
        config: resolved; ``replay.models`` names the entrants.
        source: of the samples.
        entrants: the models; they have learned nothing, or are brought back by :meth:`load`.
        folder: where metrics and checkpoints go; None keeps nothing.
        profile: where the time goes.
        on_saved: called after each checkpoint, on the thread that learns.
        items: fills the store of item vectors that the models were given.
        reading: of the source, where it has begun already.
    """

    def __init__(
        self,
        config: RunConfig,
        source: Source,
        entrants: Sequence[Entrant],
        folder: RunFolder | None = None,
        profile: Profile | None = None,
        on_saved: Callable[[Replay], None] = lambda replay: None,
        items: ItemVectors | None = None,
        reading: ReplayReading | None = None,
    ) -> None:
        self.config = config
        self.entrants = list(entrants)
        self.batches = self.requests = 0
        self.delayed = config.delayed()
        self.ts = 0
        self.seconds = 0.0
        """Wall time of all parts of the run; goes into rates only."""
        self.schema = source.schema()
        self._folder, self._items = folder, items
        self._profile = profile or Profile()
        self._reading = reading or ReplayReading(config, source, self.schema, self._profile)
        self._on_saved = on_saved
        replay = config.replay
        self.record = ScoreRecord(
            self.schema, SliceOptions(standard=replay.standard_slices, features=replay.slice_by), replay.seed
        )
        self._scoring = Scoring(replay.score_from, replay.slices, config.join.policy == "correct", self.record)
        self._drawn = DrawnRanks.of(config, self.schema, self.entrants, self._profile)
        self._began = self._saved_at = time.monotonic()
        self._written = threading.Event()
        """Set by the thread that has written a checkpoint, until :meth:`_show` has told of it."""
        begin = self._shown = source.places(config.replay.start)
        self._after: Callable[[], tuple[Place, ...]] = lambda: begin
        self._first_ts: int | None = None
        self._last_ts = source.last_ts()
        if self._last_ts is not None and config.replay.stop is not None:
            self._last_ts = min(self._last_ts, config.replay.stop)
        self._held: list[SampleBlock] = []
        self._ahead: ScoreAhead | None = None
        # Figures cost more per call than per row, so those of some batches are counted at once; at fixed batches, because
        # slices such as "cold item" are as of the rows counted before.
        self._count_every = max(1, SCORE_REQUESTS // config.replay.batch_requests)
        self._uncounted: list[tuple[SampleBlock, list[Scores]]] = []
        self._figures = FiguresBehind(self.entrants, self._scoring, self._profile, self._append)

    def run(self, on_step: Callable[[Step], None] = lambda step: None, stop: Callable[[], bool] = lambda: False) -> bool:
        """Learn and score the range, or the rest of it.

        Args:
            on_step: called after each batch.
            stop: asked after each batch; True ends the run with a checkpoint, once the figures of the batches so far are
                counted (at most 1,024 requests later).

        Returns:
            Whether the end of the range was reached.

        Raises:
            GuardError: a loss, a score or a weight of a model is no number any more.
        """
        with contextlib.ExitStack() as still_open:
            still_open.enter_context(rare_garbage_collection())
            still_open.callback(self._figures.close)
            self.begin_reading()
            learners = [entrant.learner for entrant in self.entrants]
            batches = still_open.enter_context(contextlib.closing(self._reading.stream(0, learners)))
            if self.delayed:
                shown = still_open.enter_context(contextlib.closing(self._reading.stream(1)))
                self._ahead = ScoreAhead(shown, self._shown, self.config.window_ms(), self._held)
            still_open.callback(self._reading.close)  # The threads above may wait for it.
            stopping = False
            for batch in batches:
                if self._items is not None:
                    self._items.advance(batch.order_due)
                self._score_what_was_shown(batch.order_due)
                self._learn(batch)
                if self.batches % self._count_every == 0:
                    self._count()
                on_step(self._step())
                stopping = stopping or stop()
                if self._uncounted:
                    continue
                self._write_windows()
                if stopping:
                    self.save()
                    return False
                self._save_now_and_then()
            self._count()
            self._write_windows()
            self.save()
        return True

    def begin_reading(self) -> None:
        """Have the samples read ahead from here on, where another process does it."""
        self._reading.begin(self._learned, *([self._shown] if self.delayed else []))

    @property
    def _learned(self) -> tuple[Place, ...]:
        """The places after what was learned."""
        return self._after()

    def _score_what_was_shown(self, ts: int) -> None:
        """Under ``delayed``: score the requests that were shown up to now, with the weights as they are."""
        if self._ahead is None:
            return
        for block in self._ahead.shown_by(ts):
            for start in range(0, len(block), SCORE_REQUESTS):
                part = block.slice(start, start + SCORE_REQUESTS)
                if self._drawn is not None:
                    self._drawn.rank(part)
                scores = []
                for entrant in self.entrants:
                    with self._profile.stage(f"predict {entrant.name}"):
                        scores.append(entrant.predict(part))
                self._uncounted.append((part, scores))
                self._count()

    def _learn(self, batch: Batch) -> None:
        """Learn a batch; under ``immediate`` score it first, in the same forward pass."""
        if self.delayed:
            for entrant in self.entrants:
                with self._telling_where(batch.block):
                    with self._profile.stage(f"learn {entrant.name}"):
                        entrant.learn(batch.block)
                    check_step(entrant.name, None, entrant.stats)
        else:
            if self._drawn is not None:
                self._drawn.rank(batch.block)
            scores = []
            for entrant in self.entrants:
                with self._telling_where(batch.block):
                    with self._profile.stage(f"predict and learn {entrant.name}"):
                        scores.append(entrant.predict_learn(batch.block))
                    check_step(entrant.name, scores[-1], entrant.stats)
            self._uncounted.append((batch.block, scores))
        batch.block.forget()
        self.batches += 1
        self.requests += len(batch.block)
        self.ts = batch.order_due
        self._after = batch.after

    @contextlib.contextmanager
    def _telling_where(self, block: SampleBlock) -> Iterator[None]:
        """End the run where a model's numbers are none any more: nothing heals them, and no checkpoint of them is written."""
        try:
            yield
        except GuardError as error:
            raise GuardError(
                f"{error} at step {self.batches + 1}, requests {self.requests + 1:,} to {self.requests + len(block):,} of the "
                f"run. {WAY_OUT}"
            ) from error

    def _check_states(self, states: Mapping[str, Mapping[str, Any]]) -> None:
        """Refuse to write a checkpoint of weights that are no numbers."""
        for name, state in states.items():
            try:
                check_state(name, state)
            except GuardError as error:
                raise GuardError(f"{error} after {self.requests:,} requests of the run. {WAY_OUT}") from error

    def _count(self) -> None:
        """Have the figures counted of the batches that were scored since the last call."""
        if not self._uncounted:
            return
        blocks, scores = zip(*self._uncounted, strict=True)
        self._uncounted = []
        self._figures.count(blocks, scores)

    def _write_windows(self) -> None:
        self._figures.write_windows([entrant.heard() for entrant in self.entrants])

    def _append(self, lines: list[dict[str, Any]]) -> None:
        if self._folder is not None:
            self._folder.append_metrics(lines)

    def _step(self) -> Step:
        if self._first_ts is None:
            self._first_ts = self.ts
        share = None
        if self._last_ts is not None:
            share = min(1.0, (self.ts - self._first_ts) / max(1, self._last_ts - self._first_ts))
        return Step(self.batches, self.requests, self.ts, share)

    def _save_now_and_then(self) -> None:
        """Begin a checkpoint where one is due: copy the state once the figures are counted, have the copy written beside."""
        self._show()
        folder, now = self._folder, time.monotonic()
        if folder is None or folder.saving or now - self._saved_at < self.config.replay.checkpoint_seconds:
            return
        with self._profile.stage("copy for a checkpoint"):
            self._figures.drain()
            if folder.save_beside(**self._content(), check=self._check_states, on_saved=lambda path: self._written.set()):
                self._saved_at = now

    def _show(self) -> None:
        """Tell of a checkpoint that was written since the last call."""
        if self._written.is_set():
            self._written.clear()
            self._figures.drain()
            with self._profile.stage("page"):
                self._on_saved(self)

    def wall_seconds(self) -> float:
        """Return the wall time of the run, its earlier parts included."""
        return self.seconds + time.monotonic() - self._began

    def lag(self) -> dict[str, float]:
        """Return nothing: a replay is behind nobody."""
        return {}

    def save(self) -> None:
        """Wait for the figures and for what is written beside, and write a checkpoint, if the run has a folder."""
        self._figures.drain()
        if self._folder is None:
            return
        with self._profile.stage("checkpoint"):
            content = self._content()
            self._check_states(content["models"])
            self._folder.save(**content)
        self._written.set()
        self._show()
        self._saved_at = time.monotonic()

    def _content(self) -> dict[str, Any]:
        """Return what a checkpoint holds, much of it as views; the figures are drained."""
        arrays = {group: state for entrant in self.entrants for group, state in entrant.arrays().items()}
        shown, held = (self._learned, []) if self._ahead is None else (self._ahead.places, self._ahead.held)
        arrays["scored"] = self.record.state()
        arrays |= {"vectors": self._items.state()} if self._items else {}
        arrays["drawn"] = {} if self._drawn is None else self._drawn.state()
        arrays["held"] = {f"{i:06d}": np.frombuffer(block.to_ipc(), np.uint8) for i, block in enumerate(held)}
        return {
            "step": self.batches,
            "models": {entrant.name: entrant.learner.state() for entrant in self.entrants},
            "arrays": arrays,
            "marks": {"learned": _marks(self._learned), "shown": _marks(shown)},
            "extra": {
                "generation": self.schema.generation,
                "requests": self.requests,
                "ts": self.ts,
                "seconds": self.wall_seconds(),
                "learned": msgspec.to_builtins(self._learned),
                "shown": msgspec.to_builtins(shown),
                "entrants": {entrant.name: entrant.notes() for entrant in self.entrants},
            },
        }

    def load(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint of this run.

        Raises:
            SampleError: it was made of other samples.
            ValueError: it does not fit the models.
        """
        extra = checkpoint.extra
        if extra["generation"] != self.schema.generation:
            raise SampleError(
                f"the run learned samples of generation {extra['generation']}, these are of {self.schema.generation}: "
                "the log was joined with other options. Give the log that the run began with, or start a new run"
            )
        for entrant in self.entrants:
            entrant.load(checkpoint.models[entrant.name], checkpoint.arrays, extra["entrants"][entrant.name])
        self.record.load_state(checkpoint.arrays["scored"])
        if self._items is not None:
            self._items.load_state(checkpoint.arrays["vectors"])
        if self._drawn is not None:
            self._drawn.load_state(checkpoint.arrays.get("drawn", {}))
        self.batches, self.requests, self.ts = checkpoint.step, extra["requests"], extra["ts"]
        self.seconds = extra["seconds"]
        learned, self._shown = _places(extra["learned"]), _places(extra["shown"])
        self._after = lambda: learned
        self._held = [SampleBlock.from_ipc(array.tobytes()) for _, array in sorted(checkpoint.arrays["held"].items())]


def _marks(places: Sequence[Place]) -> dict[int, int]:
    return {partition: place.seq for partition, place in enumerate(places) if place.seq is not None}


def _places(values: Any) -> tuple[Place, ...]:
    return msgspec.convert(values, type=tuple[Place, ...])
