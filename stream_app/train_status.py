"""How a training run stands: what the terminal and Prometheus are told."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

from stream_app.entrant import Entrant
from stream_app.live_reader import Lag

RATE_SECONDS = 10.0

__all__ = ["CheckpointStatus", "Rates", "Status"]


class CheckpointStatus(NamedTuple):
    """The newest checkpoint that counts."""

    name: str | None = None
    """None where there is none yet."""
    batches: int = 0
    """Steps in it."""
    at: float = 0.0
    """When it was written, in :func:`time.time` seconds."""
    seconds: float = 0.0
    """How long that took, the copy included."""
    n_bytes: int = 0

    @classmethod
    def of(cls, path: Path, batches: int, seconds: float) -> Self:
        """Return the status of a checkpoint that is there."""
        n_bytes = sum(file.stat().st_size for file in path.iterdir())
        return cls(path.name, batches, path.stat().st_mtime, seconds, n_bytes)

    def age(self) -> float | None:
        """Return its age in seconds; None where there is none."""
        return None if self.name is None else max(0.0, time.time() - self.at)


class Status(NamedTuple):
    """How a run stands."""

    batches: int
    requests: int
    """Learned since the beginning of the run."""
    ts: int
    """Highest ``due`` learned, UTC ms."""
    impressions_per_s: float
    lag: Lag
    queue_rows: int
    queue_fill: float
    checkpoint: CheckpointStatus
    entrants: Sequence[Entrant]
    windows: Mapping[str, Mapping[str, Any]]
    """Per model the line of the last window, as in metrics.jsonl."""

    @property
    def lag_seconds(self) -> float:
        """Event time between the newest row that is there and the newest one learned; 0 where all is learned."""
        if not self.lag.blocks and not self.queue_rows:
            return 0.0
        return max(0, self.lag.newest_ts - self.ts) / 1_000

    @property
    def delay_seconds(self) -> float:
        """How long ago the newest row that was learned was due, by the wall clock."""
        return max(0.0, time.time() - self.ts / 1_000)


class Rates:
    """Impressions per second over the last ten seconds."""

    def __init__(self) -> None:
        self._counted: deque[tuple[float, int]] = deque()
        self._total = 0
        self._began = time.monotonic()

    def count(self, impressions: int) -> None:
        """Count what a step learned."""
        self._counted.append((time.monotonic(), impressions))
        self._total += impressions

    def per_second(self) -> float:
        """Return the rate now."""
        now = time.monotonic()
        while self._counted and self._counted[0][0] < now - RATE_SECONDS:
            self._total -= self._counted.popleft()[1]
        return self._total / max(0.1, min(RATE_SECONDS, now - self._began))
