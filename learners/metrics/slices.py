"""All metrics of one model in a run: on every request, and on named slices of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from learners.metrics.bootstrap import UserBuckets
from learners.metrics.progressive import MetricOptions, Metrics
from learners.metrics.rows import MetricError, score_rows

ALL = "all"
"""The slice of every request."""


class MetricSet:
    """Metrics of one model on :data:`ALL` and on named slices, and the buckets of its bootstrap (on all).

    Args:
        slices: names beside :data:`ALL`, for example ``("not_given_away",)``.
        options: windows of all slices.

    Raises:
        MetricError: a name is taken twice, empty or holds a slash.
    """

    def __init__(self, slices: Sequence[str] = (), options: MetricOptions | None = None) -> None:
        names = (ALL, *slices)
        if len(set(names)) < len(names) or any(not name or "/" in name for name in names):
            raise MetricError(f"slices {list(slices)}: names must be unique, other than {ALL!r}, not empty and without a slash")
        self.slices = {name: Metrics(options) for name in names}
        self.buckets = UserBuckets()

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
        slices: Mapping[str, npt.NDArray[np.bool_]] | None = None,
    ) -> None:
        """Count requests once per slice that they are in.

        Args:
            scores: and all up to ``mask``: see :func:`learners.metrics.score_rows`.
            labels: see there.
            offsets: see there.
            users: see there.
            ts: see there.
            weights: see there.
            mask: requests that count at all, bool ``[R]``.
            slices: requests of each named slice, bool ``[R]``; every slice must be given.

        Raises:
            MetricError: rows that cannot be read, or slices other than those of this set; nothing has changed then.
        """
        masks = {ALL: mask}
        for name, inside in (slices or {}).items():
            masks[name] = inside if mask is None else inside & mask
        if set(masks) != set(self.slices):
            raise MetricError(f"slices given are {sorted(masks)}, this set has {sorted(self.slices)} ({ALL!r} is always there)")
        rows = {name: score_rows(scores, labels, offsets, users, ts, weights=weights, mask=at) for name, at in masks.items()}
        for name, of_slice in rows.items():
            self.slices[name].add(of_slice)
        self.buckets.add(rows[ALL])

    def figures(self) -> dict[str, float]:
        """Return the cumulative figures over every request."""
        return self.slices[ALL].figures()

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Return everything that must survive, as named arrays (views; copy before the next :meth:`update`)."""
        parts = {f"slice/{name}": metrics.state() for name, metrics in self.slices.items()}
        parts["buckets"] = self.buckets.state()
        return {f"{part}/{name}": array for part, state in parts.items() for name, array in state.items()}

    def load_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Become exactly the set that returned ``state``.

        Raises:
            MetricError: arrays do not fit this set; nothing has changed then.
        """
        parts: dict[str, dict[str, npt.NDArray[Any]]] = {}
        for key, array in state.items():
            part, _, name = key.rpartition("/")
            parts.setdefault(part, {})[name] = array
        expected = {f"slice/{name}" for name in self.slices} | {"buckets"}
        if set(parts) != expected:
            raise MetricError(
                f"metrics were saved with {sorted(parts)} and cannot go on with {sorted(expected)}; use the same slices"
            )
        loaded, buckets = {name: Metrics(metrics.options) for name, metrics in self.slices.items()}, UserBuckets()
        for name, metrics in loaded.items():
            metrics.load_state(parts[f"slice/{name}"])
        buckets.load_state(parts["buckets"])
        self.slices, self.buckets = loaded, buckets
