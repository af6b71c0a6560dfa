"""What a run is told about pre-extracted vectors of items."""

from __future__ import annotations

from typing import Annotated

import msgspec

__all__ = ["VectorsConfig"]


class VectorsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Whether models are given the vectors that come with the records of topic ``items``."""

    dim: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Numbers of each vector; 0 leaves vectors unread."""
    capacity: Annotated[int, msgspec.Meta(ge=1)] = 1_000_000
    """Items whose vectors are held, those that came last: 4 * dim bytes each, in a file that is mapped into memory and again in
    every checkpoint."""
