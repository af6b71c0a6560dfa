"""The joiner's state behind one small interface; this is its memory form, :mod:`stream_app.state` its durable one.

The joiner reads through :meth:`State.user` and its siblings, and writes into the dicts, naming what it touched;
:meth:`State.commit` makes a batch of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from stream_app.events import ACTIONS, IMPRESSIONS

from .histories import User, new_user
from .merge import NEVER
from .pending import Request, Version, Waiting


class Position(msgspec.Struct, array_like=True):
    """How far an input is applied."""

    topic: str
    partition: int
    offset: int = 0
    high: int = NEVER
    """Running maximum of ``ts`` before ``offset``."""


class Header(msgspec.Struct, array_like=True):
    """What a joiner's state says of itself."""

    generation: str
    positions: list[Position]
    seq: int = 0
    """``seq`` of the next row."""
    has_items: bool = False
    has_users: bool = False
    counters: dict[str, int] = {}


class StateError(ValueError):
    """A joiner's state cannot be used: of another generation, of other inputs, or in use."""


class State:
    """State of one partition, in memory: commits are forgotten.

    Args:
        header: where to begin.
        n_sequences: item sequences of the config.
    """

    def __init__(self, header: Header, n_sequences: int) -> None:
        self.header = header
        self.n_sequences = n_sequences
        self.users: dict[int, User] = {}
        self.requests: dict[int, Request] = {}
        """By their offset in the impressions."""
        self.waiting: dict[int, Waiting] = {}
        """By their offset in the actions."""
        self.items: dict[int, Sequence[Version]] = {}
        self.profiles: dict[int, Sequence[Version]] = {}
        self.query_categories: dict[int, tuple[int, ...]] = {}
        self.touched_users: dict[int, User] = {}
        self.new_requests: list[int] = []
        """Offsets of those that came since the last commit."""
        self.touched_requests: set[int] = set()
        """Offsets of earlier ones that changed or went since."""
        self.new_waiting: list[int] = []
        self.touched_waiting: set[int] = set()
        self.touched_items: set[int] = set()
        self.touched_profiles: set[int] = set()
        self.touched_queries: set[int] = set()
        self.first_new_request = 0
        """Requests from this offset on have come since the last commit."""
        self.first_new_action = 0
        """Likewise actions."""
        self.forget_touched()

    def user(self, user: int) -> User:
        """Return a user's state, a new one if there is none."""
        known = self.users.get(user)
        if known is None:
            known = self.users[user] = new_user(self.n_sequences)
        return known

    def request(self, offset: int) -> Request | None:
        """Return a pending request."""
        return self.requests.get(offset)

    def action(self, offset: int) -> Waiting | None:
        """Return a waiting action."""
        return self.waiting.get(offset)

    def item(self, item: int) -> Sequence[Version]:
        """Return the versions of an item's metadata."""
        return self.items.get(item, ())

    def profile(self, user: int) -> Sequence[Version]:
        """Return the versions of a user's metadata."""
        return self.profiles.get(user, ())

    def categories_of(self, query: int) -> tuple[int, ...]:
        """Return the categories of the items clicked under a query, the most recent first."""
        return self.query_categories.get(query, ())

    def pending(self) -> Iterable[Request]:
        """Return all pending requests, in any order."""
        return self.requests.values()

    def waiting_actions(self) -> Iterable[Waiting]:
        """Return all waiting actions, in any order."""
        return self.waiting.values()

    def commit(self) -> None:
        """Make all that was touched durable, in one batch with the header."""
        self.forget_touched()

    def forget_touched(self) -> None:
        """Begin a new batch."""
        for user in self.touched_users.values():
            user.touched = False
        self.touched_users.clear()
        self.new_requests.clear()
        self.new_waiting.clear()
        positions = {position.topic: position.offset for position in self.header.positions}
        self.first_new_request = positions.get(IMPRESSIONS, 0)
        self.first_new_action = positions.get(ACTIONS, 0)
        for touched in (
            self.touched_requests,
            self.touched_waiting,
            self.touched_items,
            self.touched_profiles,
            self.touched_queries,
        ):
            touched.clear()

    def close(self) -> None:
        """Release what the state holds."""
