"""Whether two runs were scored on the same requests: a fingerprint that does not depend on their order.

Shapes: ``R`` requests, ``C`` candidates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from learners.metrics.rows import MetricError
from learners.samples import SampleBlock
from negative_queues.draws import mix64
from negative_queues.kernels import kernel

SUM, REQUESTS, IMPRESSIONS, FIRST_TS, LAST_TS, N_WORDS = range(6)
_NONE = np.iinfo(np.int64).max

Ints = npt.NDArray[np.int64]

__all__ = ["Fingerprint"]


class Fingerprint:
    """Sum over requests (modulo 2^64) of a hash of request id, time, candidates in order, and labels."""

    def __init__(self) -> None:
        self.words = np.zeros(N_WORDS, np.int64)
        self.words[FIRST_TS], self.words[LAST_TS] = _NONE, -1

    def add(self, block: SampleBlock, inside: npt.NDArray[np.bool_] | None = None) -> npt.NDArray[np.uint64]:
        """Take in a block's requests, or those ``inside`` (bool ``[R]``); return every request's hash, uint64 ``[R]``."""
        items, labels = block.ragged("candidate.item"), block.ragged("candidate.label").values
        counted = np.ones(len(block), np.bool_) if inside is None else np.array(inside, np.bool_)
        requests, ts = np.array(block.column("request"), np.int64), np.array(block.column("ts"), np.int64)
        hashes = np.zeros(len(block), np.uint64)
        _hash(requests, ts, np.array(items.values, np.int64), labels > 0, items.offsets, hashes)
        if counted.any():
            self.words[SUM : SUM + 1] += hashes[counted].sum(keepdims=True).view(np.int64)  # arrays wrap, scalars warn
            self.words[REQUESTS] += counted.sum()
            self.words[IMPRESSIONS] += items.lengths[counted].sum()
            self.words[FIRST_TS] = min(self.words[FIRST_TS], ts[counted].min())
            self.words[LAST_TS] = max(self.words[LAST_TS], ts[counted].max())
        return hashes

    def merge(self, other: Fingerprint) -> None:
        """Add what ``other`` took in."""
        first, last = min(self.words[FIRST_TS], other.words[FIRST_TS]), max(self.words[LAST_TS], other.words[LAST_TS])
        self.words += other.words
        self.words[FIRST_TS], self.words[LAST_TS] = first, last

    def describe(self) -> dict[str, Any]:
        """Return ``{"fingerprint", "requests", "impressions", "first_ts", "last_ts"}``; times are None before any request."""
        total, requests, impressions, first, last = self.words.tolist()
        return {
            "fingerprint": f"{total & 0xFFFFFFFFFFFFFFFF:016x}",
            "requests": requests,
            "impressions": impressions,
            "first_ts": first if requests else None,
            "last_ts": last if requests else None,
        }

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Return everything that must survive (a view)."""
        return {"words": self.words}

    def load_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Become exactly the fingerprint that returned ``state``.

        Raises:
            MetricError: it is of another shape.
        """
        if set(state) != {"words"} or state["words"].shape != self.words.shape:
            raise MetricError("the state of the fingerprint does not fit this version; start a new run")
        self.words = np.array(state["words"], np.int64)


@kernel
def _hash(
    requests: Ints,
    ts: Ints,
    items: Ints,
    labels: npt.NDArray[np.bool_],
    offsets: Ints,
    hashes: npt.NDArray[np.uint64],
) -> None:
    for r in range(len(requests)):
        found = mix64(mix64(np.uint64(requests[r])) ^ np.uint64(ts[r]))
        for i in range(offsets[r], offsets[r + 1]):
            found = mix64(found ^ np.uint64(items[i])) + np.uint64(labels[i])
        hashes[r] = mix64(found)
