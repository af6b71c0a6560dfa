"""Lengthen each sequence of a batch by entries of its own: the clicks and the query that are being learned now.

A request's histories end before it. Once its label is learned, the clicked candidates and the query are the newest nodes of the
user's sequences, and their edges are the freshest there are; without them they would wait for the user's next request.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from learners.samples import Ragged

Positions = npt.NDArray[np.int64]


class Lengthened(NamedTuple):
    """How two ragged arrays become one: ``source`` int64 ``[N + M]`` indexes their concatenation, ``offsets`` ``[R + 1]``."""

    source: Positions
    offsets: Positions

    def of(self, history: npt.NDArray[Any], extra: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the values of the lengthened sequences, ``[N + M, ...]``, of those of the parts."""
        joined: npt.NDArray[Any] = np.concatenate([history, extra])[self.source]
        return joined


def lengthened(history: Positions, extra: Positions) -> Lengthened:
    """Put row ``r`` of ``extra`` behind row ``r`` of ``history``; both are offsets ``[R + 1]`` from 0.

    >>> lengthened(np.array([0, 2, 3]), np.array([0, 1, 2])).source.tolist()
    [0, 1, 3, 2, 4]
    """
    n, m = int(history[-1]), int(extra[-1])
    source = np.empty(n + m, np.int64)
    source[np.arange(n) + np.repeat(extra[:-1], np.diff(history))] = np.arange(n)
    source[np.arange(m) + np.repeat(history[1:], np.diff(extra))] = n + np.arange(m)
    return Lengthened(source, history + extra)


def where(chosen: npt.NDArray[np.bool_], offsets: Positions) -> Ragged:
    """Return the positions of the chosen entries, row by row: values are positions into the flat entries ``[C]``."""
    before = np.concatenate([[0], np.cumsum(chosen)]).astype(np.int64)
    return Ragged(np.flatnonzero(chosen), before[offsets])
