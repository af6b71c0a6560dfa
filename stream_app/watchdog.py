"""Ends a worker that stands still: one that ends is restarted, one that stands still is found next week.

What is watched, each for ``stall_seconds``: the joiner's thread comes round, the joiners' positions move where Kafka has more,
and faust delivers where Kafka has more than it delivered. faust's consumers are known to die silently (faust-streaming #175).
While the cluster cannot be reached, time does not count: a broker that is away for a minute is waited for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

__all__ = ["Look", "Watchdog", "WorkerStalledError"]


class WorkerStalledError(ValueError):
    """The worker has something to do and does nothing."""


class Look(NamedTuple):
    """What the watchdog sees at one time."""

    ends: Mapping[tuple[str, int], int]
    """(topic, partition) -> Kafka's end, of the partitions owned."""
    positions: Mapping[tuple[str, int], int]
    """The joiners'."""
    received: Mapping[tuple[str, int], int]
    """Offset after the last record that faust delivered, of the topics that it delivers; those where an agent waits for room
    are not there."""
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

    def check(self, look: Look) -> None:
        """Take a look that was just taken.

        Raises:
            WorkerStalledError: something has not moved for too long.
        """
        now = self._clock()
        away, self._looked = now - self._looked > self._seconds / 2, now
        if away:  # Nothing could be seen meanwhile, because the cluster was away or the machine slept.
            self._seen.clear()
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
