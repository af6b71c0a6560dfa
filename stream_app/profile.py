"""Where the wall time of a run goes, stage by stage."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple


class Spent(NamedTuple):
    """What a stage has taken."""

    stage: str
    seconds: float
    calls: int


class Profile:
    """Seconds and calls per stage; those of several threads and processes may overlap: their sum can exceed the wall time."""

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
            self.add([Spent(name, time.perf_counter() - began, 1)])

    def add(self, spent: Iterable[Spent]) -> None:
        """Count what was measured elsewhere."""
        with self._lock:
            for name, seconds, calls in spent:
                self._seconds[name] = self._seconds.get(name, 0.0) + seconds
                self._calls[name] = self._calls.get(name, 0) + calls

    def take(self) -> list[Spent]:
        """Return what was counted, and begin again."""
        with self._lock:
            spent = [Spent(name, seconds, self._calls[name]) for name, seconds in self._seconds.items()]
            self._seconds, self._calls = {}, {}
        return spent

    def elapsed(self) -> float:
        """Return the seconds since the beginning."""
        return time.perf_counter() - self.began

    def rows(self) -> list[Spent]:
        """Return the stages, the longest first."""
        with self._lock:
            spent = [Spent(name, seconds, self._calls[name]) for name, seconds in self._seconds.items()]
        return sorted(spent, key=lambda each: -each.seconds)
