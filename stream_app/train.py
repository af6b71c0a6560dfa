"""Training from live samples: each step is scored, learned, noted; checkpoints are written beside it.

The loop is :meth:`Trainer.run`. What is learned is a function of (samples, the recorded order, config, seed, threads): neither
the time of a checkpoint nor a kill changes it, and :func:`stream_app.train_launch.repeat` gives the same digest again.

======================================  =======================================================================================
if the process dies                     it goes on
======================================  =======================================================================================
while a step is learned                 from the last checkpoint; metrics and order after it are cut off, its rows read again
while a checkpoint is written beside    from the one before: ``LATEST`` moves last
after ``LATEST`` has moved              from the new one; what is committed to the broker is for its eyes only
======================================  =======================================================================================
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from learners.checkpoint import Checkpoint, point_to
from learners.metrics import SliceOptions
from learners.samples import SampleBlock, SampleError, SampleSchema
from stream_app.config import RunConfig
from stream_app.entrant import Entrant, Scoring, scored
from stream_app.guard import Guard, GuardError
from stream_app.item_vectors import ItemVectors
from stream_app.live_reader import Lag, LiveBatch
from stream_app.oracle import BEST
from stream_app.order import encode_step
from stream_app.profile import Profile
from stream_app.runs import CHECKPOINTS, RunFolder
from stream_app.samples_reader import Place
from stream_app.score_record import ScoreRecord
from stream_app.topics import TopicError
from stream_app.train_status import CheckpointStatus, Rates, Status

TAKE_SECONDS = 0.2
"""How long the loop waits for samples before it looks at everything else again."""

__all__ = ["Feed", "Trainer"]


class Feed(Protocol):
    """Where steps come from; :class:`stream_app.live_reader.LiveReader` is one."""

    ended: bool

    def take(self, timeout: float) -> LiveBatch | None:
        """Return the next step; None where there was none for ``timeout`` seconds."""

    def lag(self) -> Lag:
        """Return how far behind the reading is."""

    def queue_fill(self) -> float:
        """Return which part of the queue is full."""

    def queue_rows(self) -> int:
        """Return the rows that wait to be learned."""


class Trainer:
    """A run over live samples.

    Args:
        config: resolved; ``replay.models`` names the entrants.
        schema: of the samples.
        entrants: the models.
        places: where the run begins, one per partition; :meth:`load` moves them on.
        folder: where metrics, order and checkpoints go; None keeps nothing.
        based_on: checkpoint that the models began with and its digests, where they did not begin afresh.
        profile: where the time goes.
        on_saved: given the places of each checkpoint that counts, on the thread that wrote it.
        on_page: called on the training thread when there is a new checkpoint.
        items: fills the store of item vectors that the models were given.
    """

    delayed = False

    def __init__(
        self,
        config: RunConfig,
        schema: SampleSchema,
        entrants: Sequence[Entrant],
        places: Sequence[Place],
        folder: RunFolder | None = None,
        *,
        based_on: Mapping[str, Any] | None = None,
        profile: Profile | None = None,
        on_saved: Callable[[Sequence[Place]], None] = lambda places: None,
        on_page: Callable[[Trainer], None] = lambda trainer: None,
        items: ItemVectors | None = None,
    ) -> None:
        self.config, self.entrants = config, list(entrants)
        self.batches = self.requests = 0
        self.ts = 0
        """Highest ``due`` learned, UTC ms."""
        self.places = self.began_at = tuple(places)
        self.checkpoint = CheckpointStatus()
        self.schema, self._folder, self._profile = schema, folder, profile or Profile()
        self.items = items
        self._on_saved, self._on_page = on_saved, on_page
        self._shown: str | None = None
        """Name of the checkpoint that the page knows."""
        self._based_on = based_on
        slices = SliceOptions(standard=config.replay.standard_slices, features=config.replay.slice_by)
        self.record = ScoreRecord(schema, slices, config.replay.seed)
        self._scoring = Scoring(None, config.replay.slices, config.join.policy == "correct", self.record)
        self._guards = {e.name: Guard(e.name, config.train) for e in self.entrants if e.name != BEST and config.train.guard}
        self._saved_at = self._began = time.monotonic()
        self._rates = Rates()
        self._lag_seconds = 0.0
        self._windows: dict[str, Mapping[str, Any]] = {}
        self._seconds = 0.0
        self._proven: str | None = None
        """Name of the newest checkpoint after which a whole window was good."""
        self._unproven: str | None = None
        """Name of the newest checkpoint when the last window closed."""

    def run(
        self,
        feed: Feed,
        on_tick: Callable[[Status], None] = lambda status: None,
        on_step: Callable[[float], None] = lambda seconds: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Learn until ``stop``, or until the feed has ended; end with a checkpoint.

        Args:
            feed: steps, read ahead.
            on_tick: called after each step, and while there are none.
            on_step: given the seconds that each step took.
            stop: asked after each step; True ends the run there.

        Returns:
            Whether the feed has ended.

        Raises:
            GuardError: a model went wrong; ``LATEST`` names the last good checkpoint.
            SampleError: the samples cannot be used from here on; what came before is learned and saved.
            TopicError: the topic cannot be read; likewise.
        """
        while not feed.ended:
            try:
                batch = feed.take(TAKE_SECONDS)
            except (SampleError, TopicError):
                self.save()
                raise
            if batch is not None:
                began = time.perf_counter()
                with self._turning_back(batch):
                    self._learn(batch)
                    self._close_windows()
                on_step(time.perf_counter() - began)
            with self._turning_back(batch):
                self._save_now_and_then()
            self._show()
            status = self.status(feed)
            self._lag_seconds = status.lag_seconds
            on_tick(status)
            if stop():
                self.save()
                self._show()
                return False
        self.save()
        self._show()
        return True

    def preparation(self) -> Callable[[SampleBlock], None] | None:
        """Return what has the models that gain by it prepare a step, on any thread; None where no model does."""
        learners = [entrant.learner for entrant in self.entrants if entrant.learner.prepares_ahead]
        if not learners:
            return None

        def prepare(block: SampleBlock) -> None:
            for learner in learners:
                learner.prepare(block)

        return prepare

    def learn(self, block: SampleBlock) -> None:
        """Score a step and learn it; nothing is kept or judged."""
        facts = scored(block, self._scoring)
        for entrant in self.entrants:
            with self._profile.stage(f"predict and learn {entrant.name}"):
                scores = entrant.predict_learn(block)
            if entrant.name in self._guards:
                self._guards[entrant.name].check_step(scores, entrant.stats)
            with self._profile.stage("metrics"):
                entrant.count(scores, facts)
        block.forget()
        self.batches += 1
        self.requests += len(block)

    def _learn(self, batch: LiveBatch) -> None:
        if self.items is not None:
            self.items.advance(batch.order_due)
        n = batch.block.n_candidates  # what was decoded is let go of as it is learned
        self.learn(batch.block)
        self.places, self.ts = batch.places, max(self.ts, batch.order_due)
        self._rates.count(n)
        if self._folder is not None and self.config.train.record_order:
            self._folder.append_order(encode_step(batch.taken, self.items.positions if self.items else ()))

    def _close_windows(self) -> None:
        """Write the windows that closed, and judge them."""
        lines = {entrant.name: entrant.closed_windows(entrant.heard()) for entrant in self.entrants}
        if not any(lines.values()):
            return
        for name, of_model in lines.items():
            if of_model:
                self._windows[name] = of_model[-1]
        if self._folder is not None:
            self._folder.append_metrics([line for of_model in lines.values() for line in of_model])
        for name, guard in self._guards.items():
            guard.check_windows([line["figures"] for line in lines[name]])
        if not any(guard.n_bad for guard in self._guards.values()):
            self._proven = self._unproven or self._proven
            self._unproven = self.checkpoint.name

    @contextlib.contextmanager
    def _turning_back(self, batch: LiveBatch | None) -> Iterator[None]:
        """Where a model has gone wrong, leave the last good checkpoint as the one that counts, and say so."""
        try:
            yield
        except GuardError as error:
            raise GuardError(f"{error}. {self._turn_back(batch)}") from error

    def _turn_back(self, batch: LiveBatch | None) -> str:
        rows = "; ".join(f"partition {t.partition} rows {t.first} to {t.first + t.n - 1}" for t in batch.taken) if batch else ""
        told = f"Stopped at step {self.batches}" + (f" ({rows})" if rows else "")
        if self._folder is None:
            return f"{told}; nothing was kept"
        with contextlib.suppress(GuardError):  # The copy that was being written is refused for the same reason.
            self._folder.settle()
        root = self._folder.path / CHECKPOINTS
        if self._proven is not None and (root / self._proven).is_dir():
            point_to(root / self._proven)
        kept = (root / "LATEST").read_text().strip() if (root / "LATEST").is_file() else None
        if kept is None:
            return f"{told}; there is no checkpoint yet. See what these samples are, then start a new run after them (--from)"
        return (
            f"{told}; the last good checkpoint is {kept}, and the run goes on from it. See what the samples after it are; to "
            f"pass over them: freshet train --from-run {self._folder.path} --from TIME --run NEW"
        )

    def _show(self) -> None:
        """Tell the page of a checkpoint that was written since the last call."""
        if self.checkpoint.name != self._shown:
            self._shown = self.checkpoint.name
            self._on_page(self)

    def status(self, feed: Feed) -> Status:
        """Return how the run stands."""
        return Status(
            batches=self.batches,
            requests=self.requests,
            ts=self.ts,
            impressions_per_s=self._rates.per_second(),
            lag=feed.lag(),
            queue_rows=feed.queue_rows(),
            queue_fill=feed.queue_fill(),
            checkpoint=self.checkpoint,
            entrants=self.entrants,
            windows=self._windows,
        )

    # -- checkpoints

    def _save_now_and_then(self) -> None:
        folder, now = self._folder, time.monotonic()
        if folder is None or folder.saving:
            return
        due = now - self._saved_at >= self.config.replay.checkpoint_seconds
        changed = self.batches != self.checkpoint.batches
        if not due or not changed or any(guard.n_bad for guard in self._guards.values()):
            return
        began = time.perf_counter()
        batches, places = self.batches, self.places

        def on_saved(path: Path) -> None:
            self.checkpoint = CheckpointStatus.of(path, batches, time.perf_counter() - began)
            self._on_saved(places)

        with self._profile.stage("copy for a checkpoint"):
            if folder.save_beside(**self._content(), check=self._check_states, on_saved=on_saved):
                self._saved_at = now

    def save(self) -> None:
        """Write a checkpoint now, if the run has a folder and anything has changed.

        Raises:
            GuardError: a model has gone wrong; nothing was written.
        """
        if self._folder is None:
            return
        with self._turning_back(None):
            self._folder.settle()
            if self.checkpoint.name is not None and self.batches == self.checkpoint.batches:
                return
            if any(guard.n_bad for guard in self._guards.values()) and self.checkpoint.name is not None:
                return  # Not known to be good: its rows are learned again.
            self._check_states({entrant.name: entrant.learner.state() for entrant in self.entrants})
            began = time.perf_counter()
            with self._profile.stage("checkpoint"):
                path = self._folder.save(**self._content())
        self.checkpoint = CheckpointStatus.of(path, self.batches, time.perf_counter() - began)
        self._on_saved(self.places)

    def _check_states(self, states: Mapping[str, Mapping[str, Any]]) -> None:
        for name, guard in self._guards.items():
            guard.check_state(states[name])

    def _content(self) -> dict[str, Any]:
        return {
            "step": self.batches,
            "models": {entrant.name: entrant.learner.state() for entrant in self.entrants},
            "arrays": {group: state for entrant in self.entrants for group, state in entrant.arrays().items()}
            | {"scored": self.record.state()}
            | ({"vectors": self.items.state()} if self.items else {}),
            "marks": {"learned": {p: place.seq for p, place in enumerate(self.places) if place.seq is not None}},
            "extra": {
                "generation": self.schema.generation,
                "requests": self.requests,
                "ts": self.ts,
                "seconds": self.wall_seconds(),
                "learned": msgspec.to_builtins(self.places),
                "began_at": msgspec.to_builtins(self.began_at),
                "based_on": self._based_on,
                "entrants": {entrant.name: entrant.notes() for entrant in self.entrants},
                "guards": {name: guard.notes() for name, guard in self._guards.items()},
                "proven": self._proven,
            },
            "pinned": [name for name in (self._proven, self._unproven) if name is not None],
        }

    def wall_seconds(self) -> float:
        """Return the wall time of the run, its earlier parts included."""
        return self._seconds + time.monotonic() - self._began

    def lag(self) -> dict[str, float]:
        """Return how far the run is behind the newest sample, seconds of event time, and behind the wall clock."""
        delay = max(0.0, time.time() - self.ts / 1_000)
        return {"lag": round(self._lag_seconds, 3), "delay": round(delay, 3)} if self.batches else {}

    def load(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint of this run.

        Raises:
            SampleError: it was made of other samples.
            ValueError: it does not fit the models.
        """
        extra = checkpoint.extra
        if extra["generation"] != self.schema.generation:
            raise SampleError(
                f"the run learned samples of generation {extra['generation']}, these are of {self.schema.generation}: the "
                "joiner's config has changed. Give the config that the run began with, or start a new run (another --run)"
            )
        for entrant in self.entrants:
            entrant.load(checkpoint.models[entrant.name], checkpoint.arrays, extra["entrants"][entrant.name])
        self.record.load_state(checkpoint.arrays["scored"])
        if self.items is not None:
            self.items.load_state(checkpoint.arrays["vectors"])
        for name, guard in self._guards.items():
            if name in extra["guards"]:
                guard.load(extra["guards"][name])
        self.batches, self.requests, self.ts = checkpoint.step, extra["requests"], extra["ts"]
        self._seconds, self._proven, self._based_on = extra["seconds"], extra["proven"], extra["based_on"]
        self.places = msgspec.convert(extra["learned"], type=tuple[Place, ...])
        self.began_at = msgspec.convert(extra["began_at"], type=tuple[Place, ...])
        self.checkpoint = CheckpointStatus.of(checkpoint.path, self.batches, 0.0)
        self._shown = self.checkpoint.name
