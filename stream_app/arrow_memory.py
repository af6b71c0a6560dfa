"""Which allocator Arrow takes its memory from in processes that live for long."""

from __future__ import annotations

import pyarrow as pa

__all__ = ["use_system_pool"]


def use_system_pool() -> None:
    """Let Arrow allocate as the rest of the process does.

    Its own allocator keeps what was freed, a part of it for each thread. Blocks are decoded on one thread and dropped on
    others, and in a trainer it held 14 MB after half a minute and 75 MB after five, though less than one was in use.
    """
    pa.set_memory_pool(pa.system_memory_pool())
