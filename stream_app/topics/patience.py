"""Waiting for a cluster that is away: try again, say so once, give up in the end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final, TypeVar

from . import TopicError

__all__ = ["Patience"]

T = TypeVar("T")
_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 1.0
_SILENCE_S: Final = 5.0
"""How long a read may go without progress before it is said."""

log = logging.getLogger(__name__)


class Patience:
    """Tries again what may pass by itself; may be used by several threads.

    Args:
        where: name of the cluster, for messages.
        seconds: how long to go on trying.
        passes: whether an error may pass by itself.
        now, sleep: wall time in seconds.
    """

    def __init__(
        self,
        where: str,
        seconds: float,
        passes: Callable[[BaseException], bool],
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._where = where
        self._seconds = seconds
        self._passes = passes
        self.now = now
        self._sleep = sleep
        self._away = False

    def insist(self, what: str, work: Callable[[], T]) -> T:
        """Return what ``work`` returns, trying again while its errors may pass.

        Raises:
            TopicError: they have not passed in time; other errors of ``work`` are its own.
        """
        since, pause = self.now(), _FIRST_PAUSE_S
        while True:
            try:
                result = work()
            except Exception as error:
                if not self._passes(error):
                    raise
                self._say(what, error)
                self._give_up(what, since, error)
            else:
                self._back()
                return result
            self._sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    def check(self, what: str, since: float) -> None:
        """Note that ``what`` has made no progress since a moment of :attr:`now`.

        Raises:
            TopicError: that is too long ago.
        """
        if self.now() - since < _SILENCE_S:
            self._back()
        else:
            self._say(what, "no answer")
            self._give_up(what, since, None)

    def _say(self, what: str, why: object) -> None:
        if not self._away:
            self._away = True
            log.warning("%s is away (%s: %s); trying for up to %.0f s", self._where, what, why, self._seconds)

    def _back(self) -> None:
        if self._away:
            self._away = False
            log.warning("%s is back", self._where)

    def _give_up(self, what: str, since: float, error: BaseException | None) -> None:
        if self.now() - since >= self._seconds:
            raise TopicError(
                f"{self._where}: cannot {what}, tried for {self._seconds:.0f} s ({error or 'no answer'}). Is the cluster up "
                "and within reach? kafka.outage_ms says how long to wait"
            ) from error
