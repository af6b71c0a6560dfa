"""Which request an action belongs to, and where in its page the item is."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from .histories import User
from .pending import Request, Waiting

_INT64: Final = struct.Struct("<q").pack


def place_of(item: int, items: bytes, start: int = 0) -> int:
    """Return the index of the first candidate from ``start`` on that is ``item``, or -1; ``items`` is int64 ``[n]``."""
    wanted = _INT64(item)
    at = items.find(wanted, start * 8)
    while at % 8:  # Also -1, which only an unaligned match or none can be.
        if at < 0:
            return -1
        at = items.find(wanted, at + 1)
    return at // 8


def latest_showing(
    user: User, action: Waiting, request_at: Callable[[int], Request], window_end: Callable[[Request], int]
) -> Request | None:
    """Return the user's latest request at or before the action that showed its item and whose window holds it.

    Args:
        user: whose pending requests are searched.
        action: names no request itself.
        request_at: reads a pending request by its offset.
        window_end: the last ``ts`` of an action that a request takes.
    """
    latest: Request | None = None
    for offset in user.pending.values():
        request = request_at(offset)
        if (
            request.ts <= action.ts <= window_end(request)
            and (latest is None or (request.ts, request.offset) > (latest.ts, latest.offset))
            and place_of(action.item, request.items) >= 0
        ):
            latest = request
    return latest
