"""A user's sequences, in the order of ``ts``, point in time when they are read, bounded when they grow; versions of metadata.

The last word of an entry of a sequence is its ``ts``: item, category, ts; or query, 4 categories, ts. The first word of a
version is its ``ts``.
"""

from __future__ import annotations

from typing import Final

from stream_app.joiner.scan.compiled import inner

from .arena import cut_out, opened_at, vector_at
from .layout import (
    ENTRY,
    N_CATEGORIES,
    PENDING,
    PENDING_ENTRY,
    PENDING_TS,
    QUERY_ENTRY,
    Memory,
)

SPARE: Final = 1_024
"""Entries that a sequence may hold for pending requests beyond its length."""
TRIM_EVERY: Final = 32
"""Trimming is tried when a sequence has a multiple of so many entries."""


@inner
def end_before(m: Memory, vector: int, width: int, ts: int) -> int:
    """Return the place after the last entry older than ``ts`` (in words)."""
    words, first = m.words, m.words[vector]
    low, high = 0, m.words[vector + 1] // width
    if high and words[first + high * width - 1] < ts:
        return int(high * width)
    while low < high:
        middle = (low + high) >> 1
        if words[first + middle * width + width - 1] < ts:
            low = middle + 1
        else:
            high = middle
    return int(low * width)


@inner
def insert_entry(m: Memory, vector: int, item: int, category: int, ts: int) -> None:
    """Insert an entry by its ``ts``, after those of the same ``ts``."""
    at = opened_at(m, vector, end_before(m, vector, ENTRY, ts + 1), ENTRY)
    m.words[at], m.words[at + 1], m.words[at + 2] = item, category, ts


@inner
def insert_query(m: Memory, vector: int, query: int, categories: int, ts: int) -> None:
    """Insert a query by its ``ts``; equal neighbours merge into the earlier one.

    The earlier ``ts`` stays because it is what every request between the two may see.

    Args:
        m, vector: where.
        query: hashed.
        categories: address of its 4 categories.
        ts: UTC ms.
    """
    words, first = m.words, m.words[vector]
    place = end_before(m, vector, QUERY_ENTRY, ts + 1)
    if place and words[first + place - QUERY_ENTRY] == query:
        return
    if place < words[vector + 1] and words[first + place] == query:
        words[first + place + QUERY_ENTRY - 1] = ts
        return
    at = opened_at(m, vector, place, QUERY_ENTRY)
    words[at], words[at + QUERY_ENTRY - 1] = query, ts
    for i in range(N_CATEGORIES):
        words[at + 1 + i] = words[categories + i]


@inner
def holds(m: Memory, vector: int, item: int, ts: int) -> bool:
    """Whether an item sequence has an entry of this item and ``ts``."""
    words, first = m.words, m.words[vector]
    place = end_before(m, vector, ENTRY, ts)
    while place < words[vector + 1] and words[first + place + ENTRY - 1] == ts:
        if words[first + place] == item:
            return True
        place += ENTRY
    return False


@inner
def trim(m: Memory, vector: int, width: int, length: int, oldest_needed: int) -> int:
    """Drop what no request at or after ``oldest_needed`` sees: all but its newest ``length`` older entries.

    Returns:
        How many entries were dropped beyond that, to hold ``length`` + :data:`SPARE`: truncated histories.
    """
    seen = end_before(m, vector, width, oldest_needed) - length * width
    if seen > 0:
        cut_out(m, vector, 0, seen)
    excess = m.words[vector + 1] - (length + SPARE) * width
    if excess <= 0:
        return 0
    cut_out(m, vector, 0, excess)
    return int(excess // width)


@inner
def trim_sometimes(m: Memory, user: int, vector: int, width: int, length: int, passed: int) -> int:
    """Trim a user's sequence, not at each entry; when is a function of the entries alone.

    Args:
        m, user, vector: which.
        width: words of an entry.
        length: entries that a sample carries.
        passed: all events that are not late and older than this have been applied.

    Returns:
        As :func:`trim`.
    """
    n = m.words[vector + 1] // width
    if n < length + TRIM_EVERY or n % TRIM_EVERY:
        return 0
    pending = vector_at(m, user, PENDING)
    oldest = passed
    for at in range(m.words[pending], m.words[pending] + m.words[pending + 1], PENDING_ENTRY):
        oldest = min(oldest, m.words[at + PENDING_TS])
    return trim(m, vector, width, length, oldest)


# -- metadata: the newest version with ts <= an event's counts


@inner
def version_at(m: Memory, record: int, width: int, ts: int) -> int:
    """Return the address of the newest version with ``ts <=`` the given one, the last that arrived of equal ones; or 0."""
    vector = vector_at(m, record, 0)
    first = m.words[vector]
    for place in range(m.words[vector + 1] - width, -1, -width):
        if m.words[first + place] <= ts:
            return int(first + place)
    return 0


@inner
def upsert(m: Memory, record: int, width: int, ts: int, oldest_needed: int) -> int:
    """Make room for one more version of ``ts``, without those that no event at or after ``oldest_needed`` can ask for.

    Returns:
        Its address; 0 if it is itself one of those.
    """
    words, vector = m.words, vector_at(m, record, 0)
    n_old, place = 0, 0
    for at in range(words[vector], words[vector] + words[vector + 1], width):
        place += width * (words[at] <= ts)
        n_old += words[at] <= oldest_needed
    n_old += ts <= oldest_needed
    at = opened_at(m, vector, place, width)
    words[at] = ts
    first = width * max(0, n_old - 1)
    if first:
        cut_out(m, vector, 0, first)
    return int(words[vector] + place - first) if place >= first else 0


@inner
def learn_category(m: Memory, categories: int, category: int) -> bool:
    """Move a category to the front of four, the most recent first; false if it is there."""
    words = m.words
    if words[categories] == category:
        return False
    last = 1
    while last < N_CATEGORIES - 1 and words[categories + last] != category:
        last += 1
    for i in range(last, 0, -1):
        words[categories + i] = words[categories + i - 1]
    words[categories] = category
    return True
