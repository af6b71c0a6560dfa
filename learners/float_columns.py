"""Floats of requests and candidates as columns.

Legend: ``R`` requests, ``C`` candidates.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from learners.batch import Batch
from learners.tables.index import Keys
from negative_queues.kernels import kernel

__all__ = ["HOUR_MS", "as_matrix", "fill_ages", "length_and_recency", "request_times"]

HOUR_MS = 3_600_000.0
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


def request_times(batch: Batch) -> Keys:
    """Return the time of each candidate's request, UTC ms, int64 ``[C]``."""
    return batch.block.once("request times", lambda: batch.ids("ts")[batch.request_of().cpu().numpy()])


def length_and_recency(batch: Batch, sequence: str) -> tuple[Doubles, Doubles]:
    """Return log(1 + length) and log(1 + seconds since the newest entry, NaN without one) of a sequence, ``[R]`` each."""
    times, offsets = batch.ragged(f"{sequence}.ts")
    both = np.empty((2, batch.n_requests))
    _since_newest(batch.ids("ts"), times, offsets, both[0], both[1])
    np.log1p(both, out=both)
    return both[0], both[1]


@kernel
def fill_ages(places: Keys, count: Keys, first_ts: Keys, now: Keys, batches: Doubles, hours: Doubles) -> None:
    """Write in how many batches each candidate's item was learned, ``[C]``, and the hours since it was first, 0 for one that
    was not."""
    for i in range(len(places)):
        at = places[i]
        batches[i] = count[at]
        hours[i] = max(now[i] - first_ts[at], 0) / HOUR_MS if count[at] > 0 else 0.0


@kernel
def _since_newest(now: Keys, times: Keys, offsets: Keys, length: Doubles, seconds: Doubles) -> None:
    for r in range(len(now)):
        length[r] = offsets[r + 1] - offsets[r]
        seconds[r] = max(now[r] - times[offsets[r + 1] - 1], 0) / 1000.0 if length[r] > 0 else np.nan


def as_matrix(columns: list[npt.NDArray[Any]], n: int) -> Floats:
    """Return columns of ``n`` values each side by side, float32 ``[n, columns]``."""
    joined = np.empty((n, len(columns)), np.float32)
    for at, column in enumerate(columns):
        joined[:, at] = column
    return joined
