"""Delayed evaluation: requests are scored when they are shown, learned when their labels are final.

Two cursors run over the same samples. Before a batch is learned whose last row was due at ``D``, every request with ``ts <= D``
that was not scored yet is scored with the weights as they are. So a score knows no label that was not final when its request
was shown: labels learned so far were due before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from learners.samples import SampleBlock
from stream_app.samples_reader import Batch, Place


class ScoreAhead:
    """Gives each request once, when it was shown.

    Args:
        batches: the same range that is learned, in the same order.
        places: where ``batches`` begins.
        window_ms: no request is due later than this after its ``ts``, so how far ahead to look.
        held: requests that were read before ``places`` and not given yet.
    """

    def __init__(
        self, batches: Iterator[Batch], places: Sequence[Place], window_ms: int, held: Sequence[SampleBlock] = ()
    ) -> None:
        begin = tuple(places)
        self._after: Callable[[], tuple[Place, ...]] = lambda: begin
        self._batches = batches
        self._window_ms = window_ms
        self.held = list(held)
        """What was read and not given yet; pieces as they will be given."""
        self._due: int | None = None

    @property
    def places(self) -> tuple[Place, ...]:
        """The places after what was read."""
        return self._after()

    def shown_by(self, ts: int) -> list[SampleBlock]:
        """Return the requests with ``ts`` up to the given one (UTC ms) that were not returned before."""
        while self._due is None or self._due <= ts + self._window_ms:
            batch = next(self._batches, None)
            if batch is None:
                break
            self._after, self._due = batch.after, batch.order_due
            self.held.append(batch.block)
        shown, held = [], []
        for block in self.held:
            inside = block.column("ts") <= ts
            if inside.all():
                shown.append(block)
            elif inside.any():
                shown.append(block.take(np.flatnonzero(inside)))
                held.append(block.take(np.flatnonzero(~inside)))
            else:
                held.append(block)
        self.held = held
        return shown
