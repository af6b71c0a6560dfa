"""Metadata by time: versions of an item or a user, newest ``ts`` last. The newest version with ``ts <=`` an event's counts."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from .pending import Version


def version_at(versions: Sequence[Version], ts: int) -> Version | None:
    """Return the newest version with ``ts <=`` the given one; of equal ones that which arrived last."""
    for version in reversed(versions):
        if version.ts <= ts:
            return version
    return None


def upserted(versions: Sequence[Version], version: Version, oldest_needed: int) -> list[Version]:
    """Return the versions with one more, without those that no event at or after ``oldest_needed`` (UTC ms) can ask for."""
    at = bisect_right(versions, version.ts, key=_ts)
    grown = [*versions[:at], version, *versions[at:]]
    first = max(0, bisect_right(grown, oldest_needed, key=_ts) - 1)
    return grown[first:]


def query_categories_with(known: tuple[int, ...], category: int) -> tuple[int, ...]:
    """Return up to four categories of the items clicked under a query, the most recent first."""
    if category in known:
        at = known.index(category)
        return (category, *known[:at], *known[at + 1 :])
    return (category, *known[:3])


def _ts(version: Version) -> int:
    return version.ts
