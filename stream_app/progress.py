"""How far along: a live line on a terminal, now and then a plain line elsewhere. Always on stderr."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.live import Live

LIVE_SECONDS, PLAIN_SECONDS = 0.2, 15.0
RECENT_SECONDS = 10.0
"""What the rate is counted over."""
_MARK_SECONDS = 0.5


class Progress:
    """Rate and remaining time of work of known or unknown size.

    Args:
        title: what is being done.
        unit: what is counted.
        total: how much there is; None where nobody knows.
        quiet: print nothing.
        plain_seconds: between plain lines, where there is no terminal.
        clock: in seconds.
    """

    def __init__(
        self,
        title: str,
        unit: str,
        total: float | None = None,
        *,
        quiet: bool = False,
        plain_seconds: float = PLAIN_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.title, self.unit, self.total = title, unit, total
        self._plain_seconds = plain_seconds
        self._quiet = quiet
        self._live: Live | None = None
        self._clock = clock
        self._told = clock()
        self._first: float | None = None
        self._marks: deque[tuple[float, float]] = deque()
        """When how much was done, from the newest mark that is not recent on."""

    def __enter__(self) -> Self:
        if not self._quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(stderr=True), auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, done: float, note: str = "", *, share: float | None = None) -> None:
        """Say that ``done`` of the work is done; may be called at any rate.

        The rate is that of the last seconds, and counts from the first call on: neither work that was done before this process
        began flatters it, nor do kernels that compile in the first steps make the time left too long.

        Args:
            done: in the unit.
            note: what else to say.
            share: part of the work since the first call that is done, where that is known but no ``total`` is.
        """
        now = self._clock()
        if self._first is None:
            self._first = done
        self._mark(now, done)
        wait = LIVE_SECONDS if self._live is not None else self._plain_seconds
        if self._quiet or now - self._told < wait:
            return
        self._told = now
        if share:
            self.total = self._first + (done - self._first) / share
        line = self.line(done, self.rate(done), note)
        if self._live is not None:
            self._live.update(line, refresh=True)
        else:
            print(f"freshet: {line}", file=sys.stderr, flush=True)

    def update_of(self, done: int, total: int, unit: str) -> None:
        """Take the progress of an importer, which knows its own total and unit."""
        self.total, self.unit = total, unit
        self.update(done)

    def _mark(self, now: float, done: float) -> None:
        marks = self._marks
        while len(marks) > 1 and now - marks[1][0] >= RECENT_SECONDS:
            marks.popleft()
        if not marks or now - marks[-1][0] >= _MARK_SECONDS:
            marks.append((now, done))

    def rate(self, done: float) -> float:
        """Return how much was done per second lately, up to ``done`` now; 0 where nobody knows yet."""
        if not self._marks:
            return 0.0
        since, done_then = self._marks[0]
        seconds = self._clock() - since
        return (done - done_then) / seconds if seconds > 0 else 0.0

    def line(self, done: float, rate: float, note: str = "") -> str:
        """Return the line for ``done`` at a rate per second."""
        parts = [f"{self.title}: {done:,.0f}"]
        if self.total:
            parts[0] += f" of {self.total:,.0f} {self.unit} ({100 * done / self.total:.0f}%)"
        else:
            parts[0] += f" {self.unit}"
        parts.append(f"{rate:,.0f}/s")
        if self.total and rate > 0:
            parts.append(f"{duration(max(0.0, self.total - done) / rate)} left")
        return ", ".join([*parts, note] if note else parts)


def duration(seconds: float) -> str:
    """Return seconds as people say it.

    >>> duration(7), duration(75), duration(7300)
    ('7 s', '1 min 15 s', '2 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
