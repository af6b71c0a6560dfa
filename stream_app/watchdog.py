"""Ends a worker that stands still: one that ends is restarted, one that stands still is found next week.

What is watched, each for ``stall_seconds``: the joiner's thread comes round, the joiners' positions move where Kafka has more,
and faust delivers where Kafka has more than it delivered. faust's consumers are known to die silently (faust-streaming #175).
While the cluster cannot be reached, time does not count: a broker that is away for a minute is waited for. Of the time between
two looks at most :data:`COUNTED_SECONDS` count.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

__all__ = ["COUNTED_SECONDS", "Look", "Watchdog", "WorkerStalledError"]

COUNTED_SECONDS: Final = 5.0
"""A look that takes longer was kept waiting by the cluster."""


class WorkerStalledError(ValueError):
    """The worker has something to do and does nothing."""


class Look(NamedTuple):
    """What the watchdog sees at one time."""

    ends: Mapping[tuple[str, int], int]
    """(topic, partition) -> Kafka's end, of the partitions owned."""
    positions: Mapping[tuple[str, int], int]
    """The joiners'."""
    received: Mapping[tuple[str, int], int]
    """Offset after the last record that faust delivered, of the topics that it delivers; those whose inbox is full are
    not there."""
    turned: float
    """When the joiners' thread last came round."""


class Watchdog:
    """Compares looks.

    Args:
        seconds: how long nothing may move.
        clock: seconds.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._seen: dict[str, tuple[object, float]] = {}
        self._looked = clock()
        self._counted = 0.0

    def check(self, look: Look) -> None:
        """Take a look that was just taken.

        Raises:
            WorkerStalledError: something has not moved for too long.
        """
        unseen, self._looked = self._clock() - self._looked, self._clock()
        if unseen > self._seconds / 2:  # The cluster was away or the machine slept.
            self._seen.clear()
        self._counted += min(unseen, COUNTED_SECONDS)
        now = self._counted
        lag = {tp: end - look.positions.get(tp, 0) for tp, end in look.ends.items() if end > look.positions.get(tp, 0)}
        behind = {tp: look.ends[tp] - at for tp, at in look.received.items() if look.ends.get(tp, 0) > at}
        watched = {
            "the joiner's thread has not come round": (look.turned, True),
            f"the joiners stand still, {sum(lag.values())} records behind": (dict(look.positions), bool(lag)),
            f"faust delivers nothing, {sum(behind.values())} records behind; its consumer is dead": (
                dict(look.received),
                bool(behind),
            ),
        }
        for (what, (state, busy)), key in zip(watched.items(), ("turn", "joiners", "faust"), strict=True):
            before, since = self._seen.get(key, (None, now))
            if not busy or state != before:
                self._seen[key] = (state, now)
            elif now - since > self._seconds:
                raise WorkerStalledError(f"{what}, for {now - since:.0f} s: the worker ends, start it again")
