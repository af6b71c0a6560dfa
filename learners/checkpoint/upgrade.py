"""What checkpoints of older formats hold, as this version's state.

Format 1 had the ages of a table's rows as times in ms, ``first_ts`` and ``last_ts``, and counts of eight bytes. From format 2
on they are what the table has in memory (:class:`learners.tables.event_times.EventTimes`), so that nothing is made of them
while learning waits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from learners.tables.event_times import coded

State = dict[str, npt.NDArray[Any]]

__all__ = ["upgraded"]

FIRST, LAST, COUNT = "first_ts", "last_ts", "count"


def upgraded(state: Mapping[str, npt.NDArray[Any]], format: int) -> State:
    """Return the state that a checkpoint of ``format`` holds."""
    if format >= 2:
        return dict(state)
    found = dict(state)
    for prefix in [
        name.removesuffix(FIRST) for name in state if name.endswith(FIRST) and name.removesuffix(FIRST) + LAST in state
    ]:
        times = coded(found.pop(prefix + FIRST), found.pop(prefix + LAST))
        found.update({prefix + name: array for name, array in times.items()})
        found[prefix + COUNT] = found[prefix + COUNT].astype(np.uint32)
    return found
