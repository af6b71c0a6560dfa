"""How memory that was freed goes back to the system, in processes that live for long."""

from __future__ import annotations

import ctypes
import threading
from types import TracebackType
from typing import Final, Self

import pyarrow as pa

__all__ = ["GivesBack", "use_system_pool"]

EVERY_SECONDS: Final = 30.0


def use_system_pool() -> None:
    """Let Arrow allocate as the rest of the process does.

    Its own allocator keeps what was freed, a part of it for each thread. Blocks are decoded on one thread and dropped on
    others, and in a trainer it held 14 MB after half a minute and 75 MB after five, though less than one was in use.
    """
    pa.set_memory_pool(pa.system_memory_pool())


class GivesBack:
    """Has the C library give back whole pages that are free, now and then, on a thread of its own while entered.

    By itself glibc gives back what is free at the end of a heap only. After each stall, with its larger batches, more stayed
    with a worker's joiners though little was in use: 56 MB became 120 in 20 minutes, of which 36 were used.

    Args:
        every: seconds.
    """

    def __init__(self, every: float = EVERY_SECONDS) -> None:
        self._every = every
        self._ended = threading.Event()
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # Other C libraries have none.
        self._thread = threading.Thread(target=self._run, name="gives back", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while self._trim is not None and not self._ended.wait(self._every):
            self._trim(0)
