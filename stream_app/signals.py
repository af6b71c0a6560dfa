"""Ctrl-C, politely: the first one lets the step finish, the second one ends the process at once."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Any, Self


class PoliteStop:
    """While entered, the first SIGINT or SIGTERM only raises a flag; after it the system's own handling is back.

    >>> with PoliteStop() as stop:
    ...     stop()
    False
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __call__(self) -> bool:
        """Whether somebody asked to stop."""
        return self.signal is not None

    def _asked(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        for each in self._before:
            signal.signal(each, signal.SIG_DFL)
        print("freshet: stopping after this step; once more to quit at once", file=sys.stderr, flush=True)

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._asked)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
