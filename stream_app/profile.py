"""Where the wall time of a run goes, stage by stage."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Profile:
    """Seconds and calls per stage; stages of several threads may overlap, so their sum can exceed the wall time."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self._seconds: dict[str, float] = {}
        self._calls: dict[str, int] = {}
        self._lock = threading.Lock()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time of the block that follows to ``name``."""
        began = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - began
            with self._lock:
                self._seconds[name] = self._seconds.get(name, 0.0) + seconds
                self._calls[name] = self._calls.get(name, 0) + 1

    def elapsed(self) -> float:
        """Return the seconds since the beginning."""
        return time.perf_counter() - self.began

    def rows(self) -> list[tuple[str, float, int]]:
        """Return (stage, seconds, calls), the longest first."""
        with self._lock:
            return sorted(((n, s, self._calls[n]) for n, s in self._seconds.items()), key=lambda row: -row[1])
