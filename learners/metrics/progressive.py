"""Progressive validation of one model on one slice of a stream: figures per window and over all, mergeable, bounded.

Test-then-train: whoever runs the stream scores a batch, feeds the scores in here and only then learns the batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from learners.metrics.figures import FIGURES, USER_AUC_SUM, USER_IMPRESSIONS, Reliability, Sums
from learners.metrics.rows import MetricError, Rows, score_rows
from learners.metrics.users import COLUMNS, UserGroups

_NO_WINDOW = np.iinfo(np.int64).min


class MetricOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a stream is cut into windows."""

    window_ms: int = 3_600_000
    """Length of a window in event time (ms); windows start at multiples of it."""
    window_requests: int = 0
    """Close a window every so many requests instead; 0 leaves it to ``window_ms``."""
    user_rows: int = 1 << 19
    """Rows kept to group a window by user (5 bytes each and 16 a request); a larger window is grouped in parts of this size."""
    kept_windows: int = 1024
    """Closed windows kept until they are asked for; the oldest go first."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        for name in ("window_ms", "user_rows", "kept_windows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, not {getattr(self, name)}")
        if self.window_requests < 0:
            raise ValueError(f"window_requests must be 0 (windows of window_ms) or more, not {self.window_requests}")


class Window(NamedTuple):
    """A closed window."""

    first_ts: int
    """Oldest request in it, UTC ms."""
    last_ts: int
    """Newest request in it, UTC ms."""
    figures: dict[str, float]


class Metrics:
    """Figures of one model on one slice, cumulative and per window.

    A window closes when a request of a later one arrives; a straggler that is older than the open window counts there. A window
    without requests does not exist. Memory: 132 KB and the rows of the open window (at most ``user_rows``). After
    :meth:`load_state` every later figure has the same bits as if nothing had happened.

    Weights weigh AUC, log loss, normalised entropy and calibration. Ranking figures (gAUC, MRR, HR@k) and counts take each
    row of weight > 0 once.

    >>> metrics = Metrics()
    >>> metrics.update(np.float32([0.9, 0.1, 0.4]), np.float32([1, 0, 0]), np.array([0, 3]), np.array([7]), np.array([0]))
    >>> metrics.figures()["auc"], metrics.figures()["impressions"]
    (1.0, 3.0)
    """

    def __init__(self, options: MetricOptions | None = None) -> None:
        self.options = options or MetricOptions()
        self._total, self._open = Sums(), Sums()
        self._users = UserGroups(self.options.user_rows)
        self._borrowed = False
        self._window = int(_NO_WINDOW)
        self._first_ts = self._last_ts = 0
        self._closed: deque[Window] = deque(maxlen=self.options.kept_windows)

    def update(
        self,
        scores: npt.NDArray[np.float32],
        labels: npt.NDArray[np.float32],
        offsets: npt.NDArray[np.int64],
        users: npt.NDArray[np.int64],
        ts: npt.NDArray[np.int64],
        *,
        weights: npt.NDArray[np.float32] | None = None,
        mask: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        """Count requests; arguments and errors as in :func:`learners.metrics.score_rows`."""
        self.add(score_rows(scores, labels, offsets, users, ts, weights=weights, mask=mask))

    def add(self, rows: Rows, start: int = 0, stop: int | None = None) -> None:
        """Count requests that :func:`score_rows` has checked; several accumulators may share them.

        Args:
            rows: the requests.
            start: the first one to count.
            stop: the one after the last; None is all from ``start`` on.
        """
        stop = len(rows) if stop is None else stop
        if start == stop:
            return
        self._own_users()
        windows = self._windows_of(rows.ts[start:stop])
        cuts = start + np.flatnonzero(np.diff(windows, prepend=windows[0] - 1, append=windows[-1] + 1))
        for first, after in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True):
            self._advance(int(windows[first - start]))
            self._add_to_window(rows, first, after)

    def counted_alike(self, other: Metrics) -> bool:
        """Whether both have counted the same, to the last bit, whatever was asked of them since."""
        mine, of_other = self.state(), other.state()
        return all(np.array_equal(mine[name], of_other[name]) for name in mine if name != "closed")

    def follow(self, other: Metrics) -> None:
        """Count what ``other`` has counted since the two had counted alike (:meth:`counted_alike`), without counting it again.

        The rows of the open window are those of ``other`` from then on, not a copy: call this again after each time that it
        has counted, or count something here. Windows that closed meanwhile are not kept here.
        """
        self._total.flat[:], self._open.flat[:] = other._total.flat, other._open.flat
        self._users, self._borrowed = other._users, True
        self._window, self._first_ts, self._last_ts = other._window, other._first_ts, other._last_ts

    def _own_users(self) -> None:
        if self._borrowed:
            self._users, self._borrowed = UserGroups.from_state(self.options.user_rows, self._users.state()), False

    def _windows_of(self, ts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the window of each request by its time, never older than the open one: int64 ``[R]``."""
        if self.options.window_requests:
            return (self._n_requests() + np.arange(len(ts))) // self.options.window_requests
        windows = np.maximum.accumulate(ts // self.options.window_ms)
        return np.maximum(windows, self._window)

    def _n_requests(self) -> int:
        return self._total.n_requests + self._open.n_requests

    def _add_to_window(self, rows: Rows, start: int, stop: int) -> None:
        fresh = self._open.n_requests == 0
        ts = rows.ts[start:stop]
        self._first_ts = int(ts.min()) if fresh else min(self._first_ts, int(ts.min()))
        self._last_ts = int(ts.max()) if fresh else max(self._last_ts, int(ts.max()))
        self._open.add(rows, start, stop)
        while (start := self._users.take(rows, start, stop)) < stop:
            self._group_users()

    def _group_users(self) -> None:
        summed, impressions = self._users.sums()
        self._open.counts[USER_AUC_SUM] += summed
        self._open.counts[USER_IMPRESSIONS] += impressions
        self._users.clear()

    def _advance(self, window: int) -> None:
        """Close the open window if ``window`` is a later one."""
        if window > self._window and self._open.n_requests:
            self._group_users()
            self._closed.append(Window(self._first_ts, self._last_ts, self._open.figures()))
            self._total.flat += self._open.flat
            self._open.flat[:] = 0.0
        self._window = max(self._window, window)

    def merge(self, other: Metrics) -> None:
        """Add what ``other`` counted, as if both streams had been read side by side; ``other`` does not change.

        Counts and histograms are exact, sums of floats equal to rounding. Where both have the same window open its users are
        grouped over both; else the older of the two is closed first. Closed windows are not merged.

        Raises:
            MetricError: the two cut their streams differently.
        """
        if other.options != self.options:
            raise MetricError(f"metrics with different options cannot be merged: {self.options} and {other.options}")
        self._own_users()
        self._advance(other._window)
        if other._window == self._window and other._open.n_requests:
            fresh = self._open.n_requests == 0
            self._first_ts = other._first_ts if fresh else min(self._first_ts, other._first_ts)
            self._last_ts = other._last_ts if fresh else max(self._last_ts, other._last_ts)
            self._open.flat += other._open.flat
            self._users.append(other._users)
            self._total.flat += other._total.flat
        else:
            self._total.flat += other._cumulative().flat

    def _cumulative(self) -> Sums:
        sums = Sums(self._total.flat + self._open.flat)
        summed, impressions = self._users.sums()
        sums.counts[USER_AUC_SUM] += summed
        sums.counts[USER_IMPRESSIONS] += impressions
        return sums

    def figures(self) -> dict[str, float]:
        """Return the cumulative figures (:data:`FIGURES`), the open window included; NaN where one is not defined."""
        return self._cumulative().figures()

    def reliability(self) -> Reliability:
        """Return the cumulative reliability curve: predicted against observed per score bin."""
        return self._cumulative().reliability()

    def window_figures(self) -> list[Window]:
        """Return the windows that closed since the last call, oldest first, and forget them."""
        closed = list(self._closed)
        self._closed.clear()
        return closed

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Return everything that must survive, as named arrays (views; copy before the next :meth:`update`)."""
        options = self.options
        return {
            "options": np.array(
                [options.window_ms, options.window_requests, options.user_rows, options.kept_windows], np.int64
            ),
            "position": np.array([self._window, self._first_ts, self._last_ts], np.int64),
            "total": self._total.flat,
            "window": self._open.flat,
            "closed": np.array([(w.first_ts, w.last_ts, *w.figures.values()) for w in self._closed]).reshape(
                -1, 2 + len(FIGURES)
            ),
            **{f"users.{name}": column for name, column in self._users.state().items()},
        }

    def load_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Become exactly the metrics that returned ``state``.

        Raises:
            MetricError: an array is missing, unknown or of another shape, or the options differ; nothing has changed then.
        """
        self._check_state(state)
        users = {name: state[f"users.{name}"] for name in COLUMNS}
        self._users, self._borrowed = UserGroups.from_state(self.options.user_rows, users), False
        self._total, self._open = Sums(np.array(state["total"])), Sums(np.array(state["window"]))
        self._window, self._first_ts, self._last_ts = (int(value) for value in state["position"])
        self._closed.clear()
        for first_ts, last_ts, *figures in state["closed"].tolist():
            self._closed.append(Window(int(first_ts), int(last_ts), dict(zip(FIGURES, figures, strict=True))))

    def _check_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        mine = self.state()
        if set(state) != set(mine):
            missing, extra = sorted(set(mine) - set(state)), sorted(set(state) - set(mine))
            raise MetricError(f"metric state does not fit this version: missing {missing}, unknown {extra}; start a new run")
        for name, array in mine.items():
            free = name.startswith(("users.", "closed"))
            if state[name].dtype != array.dtype or state[name].shape[free:] != array.shape[free:]:
                raise MetricError(
                    f"metric state: {name} is {state[name].dtype}{list(state[name].shape)}, "
                    f"this version keeps {array.dtype}{list(array.shape)}; start a new run"
                )
        if not np.array_equal(state["options"], mine["options"]):
            raise MetricError(
                "metrics were saved with (window_ms, window_requests, user_rows, kept_windows) = "
                f"{tuple(state['options'].tolist())} and cannot go on with {tuple(mine['options'].tolist())}; "
                "give the saved options, or start a new run"
            )
