"""gAUC by user: the rows of a window are kept, grouped by user and weighed by impressions (Zhou et al., DIN, eq. 7)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from learners.metrics.ranking import exact_auc
from learners.metrics.rows import MetricError, Rows
from negative_queues.kernels import kernel

COLUMNS = {"scores": np.float32, "labels": np.uint8, "lengths": np.int64, "users": np.int64}
"""What is kept: scores and labels per row, lengths and users per request."""


class UserGroups:
    """The requests of the open group of users: at most ``limit`` rows, 5 bytes a row and 16 a request.

    A request larger than ``limit`` is kept alone.
    """

    __slots__ = ("_columns", "_requests", "_rows", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._columns: dict[str, npt.NDArray[Any]] = {name: np.zeros(0, dtype) for name, dtype in COLUMNS.items()}
        self._rows = self._requests = 0

    def take(self, rows: Rows, start: int, stop: int) -> int:
        """Keep requests from ``start`` on while there is room; return the first one that was not kept."""
        room = self.limit - self._rows
        end = int(np.searchsorted(rows.offsets, rows.offsets[start] + room, side="right")) - 1
        end = min(stop, max(end, start if self._requests else start + 1))
        of_rows, of_requests = slice(int(rows.offsets[start]), int(rows.offsets[end])), slice(start, end)
        self._append(
            scores=rows.scores[of_rows],
            labels=rows.labels[of_rows],
            lengths=np.diff(rows.offsets[start : end + 1]),
            users=rows.users[of_requests],
        )
        return end

    def _append(self, **new: npt.NDArray[Any]) -> None:
        more_rows, more_requests = len(new["scores"]), len(new["users"])
        for name, values in new.items():
            used = self._rows if name in ("scores", "labels") else self._requests
            if used + len(values) > len(self._columns[name]):
                grown = np.zeros(max(2 * used, used + len(values)), COLUMNS[name])
                grown[:used] = self._columns[name][:used]
                self._columns[name] = grown
            self._columns[name][used : used + len(values)] = values
        self._rows += more_rows
        self._requests += more_requests

    def sums(self) -> tuple[float, float]:
        """Return (sum of impressions x AUC, impressions) over the users that have both labels."""
        state = self.state()
        offsets = np.zeros(self._requests + 1, np.int64)
        np.cumsum(state["lengths"], out=offsets[1:])
        summed, impressions = _grouped_auc(state["scores"], state["labels"], offsets, state["users"])
        return float(summed), float(impressions)

    def clear(self) -> None:
        """Forget all rows; the room stays allocated for the next window."""
        self._rows = self._requests = 0

    def append(self, other: UserGroups) -> None:
        """Keep the rows of ``other`` as well; two parts of one window may be larger than ``limit`` together."""
        self._append(**other.state())

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Return the kept rows as views."""
        of_rows, of_requests = self._rows, self._requests
        return {name: c[: of_rows if name in ("scores", "labels") else of_requests] for name, c in self._columns.items()}

    @classmethod
    def from_state(cls, limit: int, state: Mapping[str, npt.NDArray[Any]]) -> UserGroups:
        """Return the groups that gave ``state``.

        Raises:
            MetricError: the arrays do not fit each other.
        """
        groups = cls(limit)
        n_rows, n_requests = len(state["scores"]), len(state["users"])
        lengths = state["lengths"]
        if len(state["labels"]) != n_rows or len(lengths) != n_requests or int(lengths.sum()) != n_rows:
            raise MetricError(
                f"metric state: users.scores has {n_rows} rows and users.users {n_requests} requests, users.labels "
                f"{len(state['labels'])} and users.lengths {len(lengths)}; the state was not written by metrics of this version"
            )
        groups._append(**{name: np.asarray(state[name], dtype) for name, dtype in COLUMNS.items()})
        return groups


@kernel
def _grouped_auc(
    scores: npt.NDArray[np.float32],
    labels: npt.NDArray[np.uint8],
    offsets: npt.NDArray[np.int64],
    users: npt.NDArray[np.int64],
) -> tuple[float, float]:
    order = np.argsort(users)  # any order within a user will do: the AUC does not see it
    summed, impressions, start = 0.0, 0.0, 0
    group_scores, group_labels = np.empty(64, np.float32), np.empty(64, np.uint8)
    while start < len(order):
        stop, n = start, 0
        while stop < len(order) and users[order[stop]] == users[order[start]]:
            r = order[stop]
            size = offsets[r + 1] - offsets[r]
            if n + size > len(group_scores):
                wider_scores, wider_labels = np.empty(2 * (n + size), np.float32), np.empty(2 * (n + size), np.uint8)
                wider_scores[:n], wider_labels[:n] = group_scores[:n], group_labels[:n]
                group_scores, group_labels = wider_scores, wider_labels
            group_scores[n : n + size] = scores[offsets[r] : offsets[r + 1]]
            group_labels[n : n + size] = labels[offsets[r] : offsets[r + 1]]
            n += size
            stop += 1
        auc = exact_auc(group_scores[:n], group_labels[:n])
        if not np.isnan(auc):
            summed += n * auc
            impressions += n
        start = stop
    return summed, impressions
