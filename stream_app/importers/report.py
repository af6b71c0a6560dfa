"""What an import or a simulation did."""

from __future__ import annotations

import msgspec

from stream_app.events import ACTIONS, IMPRESSIONS, ITEMS, USERS
from stream_app.joiner.config import JoinConfig

__all__ = ["ImportReport"]


class ImportReport(msgspec.Struct, frozen=True, kw_only=True):
    """What an import or a simulation did; times in UTC ms."""

    kind: str
    events: dict[str, int]
    """Topic -> events of the whole import, earlier runs with them."""
    first_ts: int | None
    last_ts: int | None
    join: JoinConfig
    """How this log is best joined: for ``[join]`` of ``LOG/freshet.toml``."""
    ignored_features: tuple[str, ...] = ()
    """Request features that only an evaluation may see: for ``replay.ignored_features``."""
    vector_dim: int = 0
    """Numbers of the items' vectors: for ``vectors.dim``; 0 where there are none."""
    errors: int = 0
    """Bad rows that were left out (``on_error = "skip"``)."""
    first_errors: tuple[str, ...] = ()
    left_out: dict[str, int] = {}
    """Rows that are no event by the importer's rules, by reason."""
    resumed: bool = False
    """Whether an earlier, killed run had begun it."""
    was_done: bool = False
    """Whether the same import was complete before: nothing was written."""

    @property
    def impressions(self) -> int:
        """Pages shown."""
        return self.events.get(IMPRESSIONS, 0)

    @property
    def actions(self) -> int:
        """Actions of all kinds."""
        return self.events.get(ACTIONS, 0)

    @property
    def items(self) -> int:
        """Versions of item metadata."""
        return self.events.get(ITEMS, 0)

    @property
    def users(self) -> int:
        """Versions of user metadata."""
        return self.events.get(USERS, 0)
