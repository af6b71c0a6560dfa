"""A model of a run with its figures.

Shapes: ``R`` requests, ``C`` candidates over all of them.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from learners.learner import Learner, Scores, State, Stats
from learners.metrics import (
    ALL,
    Breakdown,
    CellIds,
    MetricOptions,
    Metrics,
    MetricSet,
    Rows,
    Window,
    as_json,
    kept_rows,
    score_rows,
)
from learners.samples import Ragged, SampleBlock, SampleError
from negative_queues import LossNotFiniteError
from stream_app.events import hash_id
from stream_app.guard import GuardError
from stream_app.score_record import ScoreRecord


class Scoring(NamedTuple):
    """Which requests count where."""

    score_from: int | None
    """Requests with ``ts`` from here on count in the final figures."""
    slices: Mapping[str, Mapping[str, float | str]]
    """Slice name to request features and the value that each must have."""
    corrections: bool
    """Whether rows with a positive are corrections of a request that was scored before."""
    record: ScoreRecord | None = None
    """Takes in what is scored; without it there are no figures by slice but those of ``slices``."""


class Scored(NamedTuple):
    """What figures need of a block, once for all models."""

    labels: Ragged
    weights: npt.NDArray[np.float32]  # [C]
    users: npt.NDArray[np.int64]  # [R]
    ts: npt.NDArray[np.int64]  # [R]
    requests: npt.NDArray[np.bool_] | None  # [R], None is all
    final: npt.NDArray[np.bool_] | None  # [R], None is as `requests`
    slices: dict[str, npt.NDArray[np.bool_]]  # [R] each
    cells: CellIds | None = None  # of the rows that count in the final figures
    stops: tuple[int, ...] = ()  # of the parts that were scored one after the other, by request; () is one part


def scored(block: SampleBlock, scoring: Scoring, stops: tuple[int, ...] = ()) -> Scored:
    """Return what figures need of a block, and note in the record that it is scored.

    Args:
        block: what was scored.
        scoring: which requests count where.
        stops: where its parts end, by request, if there are several; what comes out is the same as of one part at a time.

    Raises:
        SampleError: a slice names a feature that the samples do not have.
    """
    labels, ts = block.ragged("candidate.label"), block.column("ts")
    requests = None
    if scoring.corrections:
        positives = np.zeros(len(labels.values) + 1, np.int64)
        np.cumsum(labels.values > 0, out=positives[1:])
        requests = np.diff(positives[labels.offsets]) == 0
    final = requests
    if scoring.score_from is not None and (ts < scoring.score_from).any():
        final = ts >= scoring.score_from if requests is None else requests & (ts >= scoring.score_from)
    slices = {name: _in_slice(block, name, wanted) for name, wanted in scoring.slices.items()}
    weights = block.ragged("candidate.weight").values
    cells = None
    if scoring.record is not None:
        kept = kept_rows(labels.offsets, weights, final)
        cells = scoring.record.observe(block, final, stops[:-1]).kept(kept, labels.offsets)
    return Scored(labels, weights, block.column("user"), ts, requests, final, slices, cells, stops)


def _in_slice(block: SampleBlock, name: str, wanted: Mapping[str, float | str]) -> npt.NDArray[np.bool_]:
    inside = np.ones(len(block), np.bool_)
    for feature, value in wanted.items():
        column = f"request_feature.{feature}"
        if not block.has(column):
            known = (*block.schema.request_floats, *block.schema.request_ids)
            raise SampleError(
                f"replay.slices.{name} asks for the request feature {feature!r}, the samples have "
                f"{', '.join(known) or 'none'}: name one of them, or add it to join.request_features and join the log again"
            )
        values = block.column(column)
        inside &= values == (hash_id(f"feature.{feature}", value) if isinstance(value, str) else value)
    return inside


def _kept_stops(of: Scored, n_kept: int) -> list[int]:
    """Return where the parts end among the ``n_kept`` requests that count."""
    if len(of.stops) < 2:
        return [n_kept]
    offsets = of.labels.offsets
    kept = kept_rows(offsets, of.weights, of.requests)
    if kept is None:
        return list(of.stops)
    before = np.zeros(len(kept) + 1, np.int64)
    np.cumsum(kept, out=before[1:])
    some = np.zeros(len(offsets), np.int64)
    np.cumsum(np.diff(before[offsets]) > 0, out=some[1:])
    return [int(some[stop]) for stop in of.stops]


class Said:
    """What a model said of its steps, and the time they took, added up."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}
        self.seconds = 0.0
        self.learned = 0

    def note(self, stats: Stats) -> None:
        """Add what one step said."""
        for name, value in stats.items():
            if not math.isfinite(value):
                continue  # A part that had nothing to do in this step, for example no edges.
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1

    def add(self, other: Said) -> None:
        """Add what was said later."""
        for name, value in other.sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + other.counts[name]
        self.seconds += other.seconds
        self.learned += other.learned


class Entrant:
    """A learner, what it scored, what it said about its learning.

    Args:
        name: in the run.
        learner: the model.
        slices: names of the slices that have figures of their own.
        options: windows of the figures.
    """

    def __init__(self, name: str, learner: Learner, slices: tuple[str, ...], options: MetricOptions) -> None:
        self.name = name
        self.learner = learner
        self.final = MetricSet(slices, options)
        self.live = Metrics(options)
        self.by_slice = Breakdown()
        self._alike = True
        """Whether all that counts in :attr:`live` so far counts in the final figures too."""
        self.learned = 0
        """Impressions."""
        self.seconds = 0.0
        """Wall time in the model; goes into rates only."""
        self.drawn: Mapping[str, float] = {}
        """HR@3 among drawn negatives, where the run asks for it: ``hr@3``, ``positives``."""
        self.stats: Stats = {}
        """What the last step said."""
        self._said = Said()  # since the last call of `heard`
        self._of_window = Said()  # since a window closed

    def predict(self, block: SampleBlock) -> Scores:
        """Score a block, ``[C]``."""
        began = time.perf_counter()
        scores = self.learner.predict(block)
        self._took(time.perf_counter() - began, 0)
        return scores

    def learn(self, block: SampleBlock) -> None:
        """Learn a block.

        Raises:
            GuardError: a loss is NaN or infinite, which the model found before it moved.
        """
        began = time.perf_counter()
        with self._telling_whose():
            stats = self.learner.learn(block)
        self._took(time.perf_counter() - began, block.n_candidates)
        self._note(stats)

    def predict_learn(self, block: SampleBlock) -> Scores:
        """Score a block, then learn it; raises what :meth:`learn` does."""
        began = time.perf_counter()
        with self._telling_whose():
            scores, stats = self.learner.predict_learn(block)
        self._took(time.perf_counter() - began, block.n_candidates)
        self._note(stats)
        return scores

    @contextlib.contextmanager
    def _telling_whose(self) -> Iterator[None]:
        try:
            yield
        except LossNotFiniteError as error:
            raise GuardError(f"{self.name}: {error}") from error

    def count(self, scores: Scores, of: Scored, after_part: Callable[[int], None] = lambda part: None) -> None:
        """Count scores in all figures.

        Args:
            scores: ``[C]``.
            of: what was scored.
            after_part: called with the number of each part once its requests count in :attr:`live`.

        Raises:
            MetricError: a score is no probability.
        """
        rows = self._rows(scores, of, of.requests)
        start = 0
        for part, stop in enumerate(_kept_stops(of, len(rows))):
            self.live.add(rows, start, stop)
            after_part(part)
            start = stop
        # Most blocks lie wholly after `score_from`: their rows are checked and ranked once for both.
        final = rows if of.final is of.requests else self._rows(scores, of, of.final)
        self._alike = self._alike and of.final is of.requests
        if self._alike:
            self.final.slices[ALL].follow(self.live)
        else:
            self.final.slices[ALL].add(final)
        self.final.buckets.add(final)
        if of.cells is not None:
            self.by_slice.add(final, of.cells)
        for name, inside in of.slices.items():
            mask = inside if of.final is None else inside & of.final
            self.final.slices[name].add(self._rows(scores, of, mask))
        # Windows of the final figures are not reported: they may be a part of the range.
        for metrics in self.final.slices.values():
            metrics.window_figures()

    @staticmethod
    def _rows(scores: Scores, of: Scored, mask: npt.NDArray[np.bool_] | None) -> Rows:
        labels, offsets = of.labels
        return score_rows(scores, labels, offsets, of.users, of.ts, weights=of.weights, mask=mask)

    def heard(self) -> Said:
        """Return what the steps since the last call said, for :meth:`closed_windows`."""
        said, self._said = self._said, Said()
        return said

    def closed_windows(self, said: Said) -> list[dict[str, Any]]:
        """Return the windows that closed, oldest first; what was learned since the last one is said with the newest.

        Like :meth:`count` it is about figures alone, so that both may go on behind the model's back.

        Args:
            said: of the steps up to the last that was counted.
        """
        self._of_window.add(said)
        windows = self.live.window_figures()
        lines = [self._line(window) for window in windows]
        if lines:
            of = self._of_window
            lines[-1]["stats"] = {name: of.sums[name] / of.counts[name] for name in sorted(of.sums)}
            lines[-1]["impressions_per_s"] = round(of.learned / of.seconds if of.seconds > 0 else 0.0, 1)
            self._of_window = Said()
        return lines

    def _line(self, window: Window) -> dict[str, Any]:
        return {
            "model": self.name,
            "first_ts": window.first_ts,
            "last_ts": window.last_ts,
            "figures": as_json(window.figures),
        }

    def _took(self, seconds: float, learned: int) -> None:
        self.seconds += seconds
        self.learned += learned
        self._said.seconds += seconds
        self._said.learned += learned

    def _note(self, stats: Stats) -> None:
        self.stats = stats
        self._said.note(stats)

    def arrays(self) -> dict[str, State]:
        """Return the state of all figures, by group."""
        parts = {"final": self.final.state(), "live": self.live.state(), "by_slice": self.by_slice.state()}
        return {f"{part}/{self.name}": state for part, state in parts.items()}

    def notes(self) -> dict[str, Any]:
        """Return what else must survive, as JSON."""
        said = Said()
        said.add(self._of_window)
        said.add(self._said)
        return {
            "learned": self.learned,
            "seconds": self.seconds,
            "sums": said.sums,
            "counts": said.counts,
            "window_seconds": said.seconds,
            "window_learned": said.learned,
            "described": self.learner.describe(),
        }

    def load(self, state: State, arrays: Mapping[str, State], notes: Mapping[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises:
            ValueError: it does not fit this model or these figures.
        """
        self.learner.load_state(state)
        self.final.load_state(arrays[f"final/{self.name}"])
        self.live.load_state(arrays[f"live/{self.name}"])
        self._alike = self.final.slices[ALL].counted_alike(self.live)
        self.by_slice.load_state(arrays[f"by_slice/{self.name}"])
        self.learned, self.seconds = notes["learned"], notes["seconds"]
        self._said, self._of_window = Said(), Said()
        self._of_window.sums, self._of_window.counts = dict(notes["sums"]), dict(notes["counts"])
        self._of_window.seconds, self._of_window.learned = notes["window_seconds"], notes["window_learned"]
