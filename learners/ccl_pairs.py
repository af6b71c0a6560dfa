"""Pairs of sessions out of a stream of samples, until there are enough for a batch of CCL (SEMI, section 4.1).

What is kept are the requests' own rows without their candidates, so that a pair's item vectors are those of the step that
learns it. Bounded: at most two batches of pairs and one block.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from learners.ccl import Ints, session_pairs
from learners.samples import Ragged, SampleBlock

__all__ = ["PairBuffer", "under_one_name", "without_candidates"]


class PairBuffer:
    """The newest pairs, one a user; of a user's pairs the longest stays (:func:`learners.ccl.session_pairs`).

    Args:
        domains: names of the two item sequences.
        batch: pairs that are given out together, at least 2: a pair alone has no negative.
        least: smallest lengths of the two sessions.

    Raises:
        ValueError: the batch is too small.
    """

    def __init__(self, domains: tuple[str, str], batch: int, least: tuple[int, int]) -> None:
        if batch < 2:
            raise ValueError(
                f"ccl_batch must be 2 or more, got {batch}: a pair's negatives are other users' pairs; SEMI has 1,024"
            )
        self.domains, self.batch, self.least = domains, batch, least
        self._held: list[SampleBlock] = []
        self._users: set[int] = set()

    def __len__(self) -> int:
        """Users with a pair."""
        return len(self._users)

    @property
    def full(self) -> bool:
        """Whether there is a batch."""
        return len(self) >= self.batch

    def add(self, block: SampleBlock) -> None:
        """Take the pairs of a block."""
        rows = self._chosen(block)
        if not len(rows):
            return
        self._held.append(without_candidates(block).take(rows))
        self._users.update(block.column("user")[rows].tolist())
        if sum(map(len, self._held)) > 2 * self.batch:
            self._keep(self._newest())

    def take(self) -> SampleBlock:
        """Return :meth:`peek` and forget all."""
        block = self.peek()
        self._keep(None)
        return block

    def peek(self) -> SampleBlock:
        """Return the newest batch of pairs, a row each.

        Raises:
            ValueError: there is none; ask :attr:`full` first.
        """
        if not self.full:
            raise ValueError(f"{len(self)} pairs are no batch of {self.batch}; ask `full` first")
        return self._newest()

    def _newest(self) -> SampleBlock:
        joined = SampleBlock.concat(self._held)
        return joined.take(self._chosen(joined)[-self.batch :])

    def _chosen(self, block: SampleBlock) -> Ints:
        first, second = (block.ragged(f"{name}.item").lengths for name in self.domains)
        return session_pairs(block.column("user"), first, second, self.least)

    def _keep(self, block: SampleBlock | None) -> None:
        self._held = [] if block is None else [block]
        self._users = set() if block is None else set(block.column("user").tolist())

    def state(self) -> npt.NDArray[np.uint8]:
        """Return the pairs as bytes of one block; empty where there are none."""
        return np.frombuffer(SampleBlock.concat(self._held).to_ipc() if self._held else b"", np.uint8)

    def load_state(self, state: npt.NDArray[np.uint8]) -> None:
        """Hold what was held by the buffer that returned ``state``.

        Raises:
            SampleError: the bytes are no block.
        """
        self._keep(SampleBlock.from_ipc(state.tobytes()) if len(state) else None)


def without_candidates(block: SampleBlock) -> SampleBlock:
    """Return the same requests with nothing shown to them."""
    batch = block.batch
    columns = [
        pa.array([[]] * len(block), type=field.type) if field.name.startswith("candidate") else column
        for field, column in zip(batch.schema, batch.columns, strict=True)
    ]
    return SampleBlock(pa.RecordBatch.from_arrays(columns, schema=batch.schema), block.schema)


def under_one_name(block: SampleBlock, sequence: str, name: str) -> SampleBlock:
    """Return the block with one item sequence in the place of another: for a model that knows only that other one."""
    if sequence == name:
        return block
    columns: dict[str, npt.NDArray[np.int64] | Ragged] = {}
    for column in block.batch.schema.names:
        source = f"{sequence}.{column.removeprefix(f'{name}.')}" if column.startswith(f"{name}.") else column
        columns[column] = block.ragged(source) if block.is_ragged(source) else block.column(source)
    return SampleBlock.from_columns(block.schema, columns)
