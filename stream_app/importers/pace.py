"""How fast events are written: as fast as they come, so many a second, or as if they happened now."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from .source import Event, SourceError

__all__ = ["Pace"]


class Pace:
    """Tells when the next event may be written, and what its ``ts`` is then.

    Args:
        rate: events per second at most; None for no limit.
        live: the first event is now, and event time goes on as the clock does.
        clock: UTC in seconds.
        sleep: takes seconds.

    Raises:
        SourceError: a rate of 0 or less, or both.
    """

    def __init__(
        self,
        rate: float | None = None,
        live: bool = False,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if rate is not None and rate <= 0:
            raise SourceError(f"rate = {rate}: events per second, more than 0")
        if rate is not None and live:
            raise SourceError("rate and live exclude each other: live events come at the pace of their own times")
        self._rate = rate
        self.live = live
        """Whether the first event is now: its time is then another at each start."""
        self._clock = clock
        self.sleep = sleep
        self._began: float | None = None
        self._shift_ms = 0
        self._n_events = 0

    def admit(self, event: Event) -> tuple[Event, float]:
        """Return an event as it is written, and the seconds to wait before that."""
        now = self._clock()
        if self._began is None:
            self._began = now
            self._shift_ms = int(now * 1_000) - event.ts
        due = self._began
        if self.live:
            event = msgspec.structs.replace(event, ts=event.ts + self._shift_ms)
            due = event.ts / 1_000
        elif self._rate is not None:
            due += self._n_events / self._rate
        self._n_events += 1
        return event, max(0.0, due - now)
