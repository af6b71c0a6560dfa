"""One pass over a source for several readers: each gets all blocks, whoever comes first has them made."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator

from learners.samples import SampleBlock
from stream_app.sample_cursor import BlockSource

__all__ = ["SharedBlocks"]

Numbered = tuple[int, SampleBlock]


class SharedBlocks:
    """A source that is read once, by so many readers, each on a thread of its own.

    What one has taken and another has not yet is held: under ``delayed`` the blocks of a label window.

    Args:
        source: of the blocks; one that begins at its beginning, wherever a reader goes on.
        n_readers: that there will be; each asks for each partition once.
    """

    def __init__(self, source: BlockSource, n_readers: int) -> None:
        self.name, self.n_partitions = source.name, source.n_partitions
        self._source, self._n_readers = source, n_readers
        self._lock = threading.Lock()
        self._partitions: dict[int, _Partition] = {}

    def blocks(self, partition: int, position: int, end: int) -> Iterator[Numbered]:
        """Yield (number, block) from the beginning on and before ``end``, which is the same for all readers."""
        with self._lock:
            shared = self._partitions.get(partition)
            if shared is None:
                blocks = self._source.blocks(partition, position, end)
                shared = self._partitions[partition] = _Partition(blocks, self._n_readers)
        return shared.read()


class _Partition:
    """Blocks of a partition, and what each reader has not taken of them."""

    def __init__(self, blocks: Iterator[Numbered], n_readers: int) -> None:
        self._blocks = blocks
        self._lock = threading.Lock()
        self._waiting: list[deque[Numbered | BaseException | None]] = [deque() for _ in range(n_readers)]
        self._unread = iter(self._waiting)

    def read(self) -> Iterator[Numbered]:
        """Yield the blocks to the next reader."""
        waiting = next(self._unread)
        while True:
            with self._lock:
                if not waiting:
                    made = self._made()
                    for each in self._waiting:
                        each.append(made)
                entry = waiting.popleft()
            if entry is None:
                return
            if isinstance(entry, BaseException):
                raise entry
            yield entry

    def _made(self) -> Numbered | BaseException | None:
        """Return the next block, or how the blocks end."""
        try:
            return next(self._blocks, None)
        except Exception as error:
            return error
