"""The joiner's state behind one small interface; this is its memory form, :mod:`stream_app.state` its durable one.

The joiner's kernels work on :attr:`State.slab`; what is not in it they ask for, and :meth:`State.fetch` reads it.
:meth:`State.commit` makes a batch of what they touched.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from .core.layout import Ints
from .core.slab import Slab
from .merge import NEVER


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
    format: int = 0
    """Of the stored records; a durable state sets it. 0: those of before there were formats."""


class StateError(ValueError):
    """A joiner's state cannot be used: of another generation, of other inputs, in use, or told to keep nothing."""


class State:
    """State of one partition, in memory: commits are forgotten.

    Args:
        header: where to begin.
        n_sequences: item sequences of the config.
    """

    def __init__(self, header: Header, n_sequences: int) -> None:
        self.header = header
        self.slab = Slab(n_sequences)

    def fetch(self, wanted: Ints) -> Sequence[bytes | None]:
        """Return stored records that are not in memory, None for one that was never stored.

        Args:
            wanted: kind and key ``[n, 2]``.
        """
        return [None] * len(wanted)

    def restore_steps(self) -> None:
        """Make the steps of what is pending in the store; to be called once, when the slab knows its config."""

    def commit(self) -> None:
        """Make all that was touched durable, in one batch with the header."""
        self.slab.settle()

    def close(self) -> None:
        """Release what the state holds."""
