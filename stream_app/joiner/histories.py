"""A user's sequences: entries in the order of ``ts``, point in time when they are read, bounded when they grow.

A sequence is a flat ``array('q')`` of entries of a fixed width whose last number is the ``ts``:
``ITEM`` = (item, category, ts), ``QUERY`` = (query, 4 categories, ts). So the histories of a block are one join of bytes.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from typing import Final

import msgspec

from .pending import NO_CATEGORIES

ITEM: Final = 3
QUERY: Final = 2 + len(NO_CATEGORIES)
_SCANNED: Final = 8
SPARE: Final = 1_024
"""Entries that a sequence may hold for pending requests beyond its length."""
TRIM_EVERY: Final = 32
"""Trimming is tried when a sequence has a multiple of so many entries."""


class User(msgspec.Struct, gc=False):
    """State of one user. There are many: nothing in it is tracked by the garbage collector."""

    sequences: tuple[array[int], ...]
    """The item sequences."""
    queries: array[int]
    pending: dict[int, int]
    """Hashed id to offset of the requests that an action may still refer to."""
    last_ts: int = -1
    """``ts`` of the newest request that has left; -1 if there was none."""
    n_closed: int = 0
    """How many of the pending requests leave early."""
    touched: bool = False
    """Whether it is in the batch that the next commit writes."""


def new_user(n_sequences: int) -> User:
    """Return the state of a user who has done nothing."""
    return User(tuple([array("q") for _ in range(n_sequences)]), array("q"), {})


def end_before(entries: array[int], width: int, ts: int) -> int:
    """Return the index after the last entry older than ``ts`` (index of numbers, not of entries)."""
    end = len(entries)
    stop = end - _SCANNED * width
    while end > 0 and entries[end - 1] >= ts:
        end -= width
        if end == stop:
            return bisect_left(range(end // width), ts, key=lambda entry: entries[entry * width + width - 1]) * width
    return end


def insert(entries: array[int], entry: tuple[int, ...]) -> None:
    """Insert an entry by its ``ts``, after those of the same ``ts``."""
    width, ts = len(entry), entry[-1]
    if not entries or entries[-1] <= ts:
        entries.extend(entry)
        return
    at = bisect_right(range(len(entries) // width), ts, key=lambda i: entries[i * width + width - 1]) * width
    entries[at:at] = array("q", entry)


def insert_query(queries: array[int], entry: tuple[int, ...]) -> None:
    """Insert a query by its ``ts``; equal neighbours merge into the earlier one.

    The earlier ``ts`` stays because it is what every request between the two may see.
    """
    query, ts = entry[0], entry[-1]
    if queries and queries[-1] <= ts:
        if queries[-QUERY] != query:
            queries.extend(entry)
        return
    at = end_before(queries, QUERY, ts + 1)
    if at and queries[at - QUERY] == query:
        return
    if at < len(queries) and queries[at] == query:
        queries[at + QUERY - 1] = ts
        return
    queries[at:at] = array("q", entry)


def holds(entries: array[int], item: int, ts: int) -> bool:
    """Whether an item sequence has an entry of this item and ``ts``."""
    at = end_before(entries, ITEM, ts)
    while at < len(entries) and entries[at + ITEM - 1] == ts:
        if entries[at] == item:
            return True
        at += ITEM
    return False


def limit(length: int) -> int:
    """Return the entries that a sequence of ``length`` may hold: what pending requests may need, within reason."""
    return length + SPARE


def soft_limit(length: int) -> int:
    """Return the entries from which on it is worth a look whether some can go."""
    return length + TRIM_EVERY - 1


def trim(entries: array[int], width: int, length: int, oldest_needed: int) -> int:
    """Drop what no request at or after ``oldest_needed`` sees: all but its newest ``length`` older entries.

    Returns:
        How many entries were dropped beyond that, to hold :func:`limit`: truncated histories.
    """
    seen = end_before(entries, width, oldest_needed) - length * width
    if seen > 0:
        del entries[:seen]
    excess = len(entries) - limit(length) * width
    if excess <= 0:
        return 0
    del entries[:excess]
    return excess // width
