"""What a run keeps of the requests that it scored, beside figures: counts for the slices, a fingerprint, a few examples.

All of it is a function of the scored requests alone, whatever the blocks they came in, and of bounded size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from learners.learner import State
from learners.metrics import CellIds, Fingerprint, MetricError, SliceCells, SliceOptions
from learners.samples import SampleBlock, SampleSchema
from negative_queues import draw_key

EXAMPLES = 20
"""Requests kept to be looked at."""
ITEMS = 4_096
"""Items kept with their category, for averages over embeddings."""
LOOKED_AT = np.uint64(256)
"""Items of one request in so many are looked at for that."""
_LAST = np.uint64(0xFFFFFFFFFFFFFFFF)
_PLAIN = np.uint64(1 << 63)

Bools = npt.NDArray[np.bool_]
Hashes = npt.NDArray[np.uint64]

__all__ = ["EXAMPLES", "ITEMS", "ScoreRecord"]


class ScoreRecord:
    """Sees every block that is scored, once, in the order of scoring.

    Args:
        schema: of the samples.
        options: dimensions of the slices.
        seed: of the examples.

    Raises:
        MetricError: the samples lack a feature to slice by.
    """

    def __init__(self, schema: SampleSchema, options: SliceOptions | None = None, seed: int = 0) -> None:
        self.cells = SliceCells(schema, options)
        self.fingerprint = Fingerprint()
        self._sequences = [f"{name}.item" for name in schema.item_sequences]
        self._key = np.uint64(draw_key(seed, "report", "examples", 0))
        self._ranks = np.zeros(0, np.uint64)
        self._examples: list[SampleBlock] = []
        self._items = np.zeros((0, 2), np.int64)
        self._item_ranks = np.zeros(0, np.uint64)

    def observe(self, block: SampleBlock, final: Bools | None, cuts: Sequence[int] = ()) -> CellIds:
        """Take in a block; return its cells.

        Args:
            block: to be scored.
            final: requests that count in the final figures, bool ``[R]``; None is all.
            cuts: see :meth:`learners.metrics.SliceCells.assign`.
        """
        hashes = self.fingerprint.add(block, final)
        self._keep_examples(block, final, hashes)
        self._keep_items(block, hashes)
        return self.cells.assign(block, cuts)

    def examples(self) -> list[SampleBlock]:
        """Return the kept requests, a block of one row each, by time: those with a label and a history first in line."""
        return sorted(self._examples, key=lambda block: int(block.column("ts")[0]))

    def items(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return a sample of the items that have a category, each as likely: ids and categories, int64 ``[N]`` each."""
        return self._items[:, 0], self._items[:, 1]

    def _keep_examples(self, block: SampleBlock, final: Bools | None, hashes: Hashes) -> None:
        """Keep the lowest ranks: a sample of all requests in which each is as likely, those worth looking at first."""
        ranks = _mixed(hashes ^ self._key) & ~_PLAIN
        bound = self._ranks[-1] if len(self._ranks) == EXAMPLES else _LAST
        if not (ranks < bound).any():  # nearly always, once there were a few thousand requests
            return
        labels = block.ragged("candidate.label")
        clicked = np.zeros(len(labels.values) + 1, np.int64)
        np.cumsum(labels.values > 0, out=clicked[1:])
        worth = np.diff(clicked[labels.offsets]) > 0
        worth &= np.sum([block.ragged(name).lengths for name in self._sequences], axis=0, dtype=np.int64) > 0
        ranks[~worth] |= _PLAIN
        if final is not None:
            ranks[~final] = _LAST
        if not (below := np.flatnonzero(ranks < bound)).size:
            return
        below = below[np.argsort(ranks[below], kind="stable")[:EXAMPLES]]
        kept = np.concatenate([self._ranks, ranks[below]])
        order = np.argsort(kept, kind="stable")[:EXAMPLES]
        # Copied, because a slice would keep the whole block in memory.
        copies = {
            len(self._ranks) + i: _copied(block, at) for i, at in enumerate(below.tolist()) if len(self._ranks) + i in order
        }
        blocks = dict(enumerate(self._examples)) | copies
        self._ranks, self._examples = kept[order], [blocks[at] for at in order.tolist()]

    def _keep_items(self, block: SampleBlock, hashes: Hashes) -> None:
        """Keep the lowest ranks of the items of every so many-th request."""
        looked = hashes % LOOKED_AT == 0
        if not looked.any():
            return
        items = block.ragged("candidate.item")
        rows = np.repeat(looked, items.lengths)
        ids, categories = items.values[rows], block.ragged("candidate.category").values[rows]
        ranks = _mixed(ids.view(np.uint64))
        known = np.searchsorted(self._item_ranks, ranks)
        new = (known == len(self._item_ranks)) if len(self._item_ranks) < ITEMS else np.zeros(len(ids), np.bool_)
        inside = known < len(self._item_ranks)
        new[inside] = self._item_ranks[known[inside]] != ranks[inside]
        new &= categories != 0
        if not new.any():
            return
        found, first = np.unique(ranks[new], return_index=True)
        at = np.searchsorted(self._item_ranks, found)
        pairs = np.stack([ids[new], categories[new]], axis=1)[first]
        self._item_ranks = np.insert(self._item_ranks, at, found)[:ITEMS]
        self._items = np.insert(self._items, at, pairs, axis=0)[:ITEMS]

    def state(self) -> State:
        """Return everything that must survive, as named arrays (views; copy before the next :meth:`observe`)."""
        examples = {f"example.{i:02}": np.frombuffer(block.to_ipc(), np.uint8) for i, block in enumerate(self._examples)}
        parts = {"cells": self.cells.state(), "fingerprint": self.fingerprint.state()}
        named = {f"{part}.{name}": array for part, state in parts.items() for name, array in state.items()}
        return {**named, **examples, "ranks": self._ranks, "items": self._items, "item_ranks": self._item_ranks}

    def load_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Become the record that returned ``state``; this one must be new.

        Raises:
            MetricError: it does not fit.
        """
        if not {"ranks", "items", "item_ranks"} <= set(state):
            raise MetricError("the checkpoint is of an older version that kept no record of what it scored; start a new run")
        self.cells.load_state(_part(state, "cells."))
        self.fingerprint.load_state(_part(state, "fingerprint."))
        self._ranks, self._items = np.array(state["ranks"]), np.array(state["items"])
        self._item_ranks = np.array(state["item_ranks"])
        self._examples = [SampleBlock.from_ipc(array.tobytes()) for _, array in sorted(_part(state, "example.").items())]


def _copied(block: SampleBlock, row: int) -> SampleBlock:
    return SampleBlock.from_ipc(block.slice(row, row + 1).to_ipc())


def _part(state: Mapping[str, npt.NDArray[Any]], prefix: str) -> State:
    return {name.removeprefix(prefix): array for name, array in state.items() if name.startswith(prefix)}


def _mixed(bits: Hashes) -> Hashes:
    """Return the finaliser of SplitMix64 (as ``negative_queues.draws.mix64``) of an array."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))
