"""What the joiner keeps of an event: fixed-width bytes that a block of samples is later joined from.

``n`` candidates of a page. Ids are int64 (0 is missing), times UTC ms, all bytes little-endian.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

NO_CATEGORIES: Final = (0, 0, 0, 0)
WAITING: Final = 0
"""Phase of a request that has not left yet."""
LEFT: Final = 1
"""Phase of a request that has left as negative and is remembered for corrections."""


class Request(msgspec.Struct, array_like=True, gc=False):
    """A page that was shown, until it has left as a row (and, under ``correct``, until its correction window is over)."""

    offset: int
    user: int
    request: int
    ts: int
    due: int
    query: int
    query_categories: tuple[int, int, int, int]
    domain: int
    n: int
    items: bytes
    """int64 ``[n]``, as the next two; 0 where the log does not say."""
    categories: bytes
    domains: bytes
    positions: bytes
    """int32 ``[n]``, -1 is missing."""
    truth: bytes
    """float32 ``[n]`` or empty."""
    request_features: tuple[float | int, ...]
    candidate_features: tuple[bytes, ...]
    """One per configured feature: float32 or int64 ``[n]``."""
    complete: bool
    """Whether item metadata could add nothing."""
    acted: tuple[int, ...] = ()
    """Places of candidates with a label (``wait``) or with a correction row of their own (``correct``)."""
    closed: bool = False
    """Whether it leaves early because its user has too many pending requests."""
    phase: int = WAITING
    seen: bool = False
    """Whether its query has entered the user's sequence."""


class Waiting(msgspec.Struct, array_like=True, gc=False):
    """An action, until the sequence has passed its ``ts`` + lateness: then all that it may refer to is known."""

    offset: int
    user: int
    item: int
    ts: int
    """When it counts: moved to the ``ts`` of its request where that is later."""
    logged_ts: int
    kind: int
    """Index into the joiner's kinds."""
    request: int
    query: int
    category: int
    late: bool = False

    def signature(self) -> tuple[int, int, int, int, int]:
        """Return what two deliveries of one action share."""
        return self.user, self.item, self.kind, self.logged_ts, self.request


class Version(NamedTuple):
    """Metadata of an item or a user from ``ts`` on."""

    ts: int
    category: int
    domain: int
    features: tuple[float | int, ...]
    """Float (NaN missing) or int64 (0 missing) per configured feature."""


class ItemUpdate(NamedTuple):
    """An item record: a new version of ``item``."""

    item: int
    version: Version


class UserUpdate(NamedTuple):
    """A user record: a new version of ``user``."""

    user: int
    version: Version


class Ignored(NamedTuple):
    """An action of a kind that neither labels nor feeds a sequence."""

    ts: int


class Unusable(NamedTuple):
    """A record that becomes a dead letter."""

    code: str
    """Short name of the reason, for counters."""
    reason: str


Event = Request | Waiting | ItemUpdate | UserUpdate | Ignored | Unusable
