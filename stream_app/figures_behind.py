"""The figures of a run, counted on a thread beside it, many scored blocks at once.

Counting costs more per call than per row, and each call takes the interpreter from the thread that learns. So what was scored
waits until there is enough of it. The figures are those of one block after the other, to the last bit: windows close where
they would, what a model said of its steps goes to the window that it would go to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from learners.learner import Scores
from learners.samples import SampleBlock
from stream_app.behind import Behind
from stream_app.entrant import Entrant, Said, Scoring, scored
from stream_app.profile import Profile

COUNT_REQUESTS = 4_096
"""Requests that are counted at once, at least."""
BACKLOG = 2

__all__ = ["COUNT_REQUESTS", "FiguresBehind"]

Line = dict[str, Any]


class _Part(NamedTuple):
    """What was scored before anything else was asked."""

    blocks: Sequence[SampleBlock]
    scores: Sequence[Scores]
    """Per entrant, ``[C]``."""
    said: list[list[Said]]
    """What was said per entrant, each time that windows were asked for after these blocks and before the next."""


class FiguresBehind:
    """Has the figures of all entrants and the record; what else reads them drains it first.

    Args:
        entrants: whose figures.
        scoring: which requests count where.
        profile: where the time goes.
        write: given the lines of windows that closed, on a thread.
        count_requests: that are counted at once, at least; changes speed and memory, never a figure.
    """

    def __init__(
        self,
        entrants: Sequence[Entrant],
        scoring: Scoring,
        profile: Profile,
        write: Callable[[list[Line]], None],
        count_requests: int = COUNT_REQUESTS,
    ) -> None:
        self._entrants, self._scoring, self._profile, self._write = entrants, scoring, profile, write
        self._count_requests = count_requests
        self._behind = Behind(BACKLOG)
        self._parts: list[_Part] = []
        self._n_waiting = 0

    def count(self, blocks: Sequence[SampleBlock], scores: Sequence[Sequence[Scores]]) -> None:
        """Count blocks, soon.

        Args:
            blocks: in the order in which they were scored.
            scores: per block and entrant, ``[C]``.
        """
        of_entrants = [np.concatenate(of_blocks) for of_blocks in zip(*scores, strict=True)]
        self._parts.append(_Part(blocks, of_entrants, []))
        self._n_waiting += sum(map(len, blocks))

    def write_windows(self, said: list[Said]) -> None:
        """Write the windows that what was counted so far closes.

        Args:
            said: per entrant, what it said of its steps since the last call.
        """
        if not self._parts:
            self._parts.append(_Part((), (), []))
        self._parts[-1].said.append(said)
        if self._n_waiting >= self._count_requests:
            self._begin()

    def _begin(self) -> None:
        parts, self._parts, self._n_waiting = self._parts, [], 0

        def job() -> None:
            with self._profile.stage("metrics"):
                self._count_parts(parts)

        self._behind.put(job)

    def _count_parts(self, parts: Sequence[_Part]) -> None:
        lines: dict[tuple[int, int, int], list[Line]] = {}  # by part, call of `write_windows`, entrant
        told = [part for part in parts if not part.blocks]
        counted = [part for part in parts if part.blocks]

        def windows(entrant: int, at: int, part: _Part) -> None:
            for call, said in enumerate(part.said):
                lines[at, call, entrant] = self._entrants[entrant].closed_windows(said[entrant])

        def counted_part(entrant: int, at: int) -> None:
            windows(entrant, at, counted[at])

        for number in range(len(self._entrants)):
            for part in told:  # The first one at most.
                windows(number, -1, part)
        if counted:
            facts = scored(
                SampleBlock.concat([block for part in counted for block in part.blocks]),
                self._scoring,
                tuple(np.cumsum([sum(map(len, part.blocks)) for part in counted]).tolist()),
            )
            for number, entrant in enumerate(self._entrants):
                scores = np.concatenate([part.scores[number] for part in counted])
                entrant.count(scores, facts, partial(counted_part, number))
        if found := [line for place in sorted(lines) for line in lines[place]]:
            self._write(found)

    def drain(self) -> None:
        """Wait until all is counted and written."""
        if self._parts:
            self._begin()
        self._behind.drain()

    def close(self) -> None:
        """End the thread after what it is at; what else waits is dropped."""
        self._behind.close()
