"""Until when a worker's partitions are its own."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["Lease", "LeaseLostError"]


class LeaseLostError(ValueError):
    """The worker's session has expired: another worker may own its partitions."""


class Lease:
    """Until when nobody else can own our partitions, by a clock that does not jump.

    Args:
        seconds: the group's session timeout.
        clock: seconds.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds = seconds
        self._clock = clock
        self._until = float("-inf")

    def renew(self, sent: float) -> None:
        """Take a heartbeat that was sent at ``sent`` and answered: the broker's session is at least as young."""
        self._until = max(self._until, sent + self.seconds)

    def held(self) -> bool:
        """Whether it still holds."""
        return self._clock() < self._until

    def give_up(self) -> None:
        """Count it as lost."""
        self._until = float("-inf")
