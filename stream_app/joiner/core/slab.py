"""The joiner's memory and its growth: what stands between kernels, which cannot grow an array, and a store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from .layout import (
    ACTION,
    BATCH,
    COUNTS,
    GROW,
    HEAP_SIZE,
    LENGTHS,
    LETTERS,
    N_REGISTERS,
    N_SEQUENCES,
    N_SIGNATURES,
    N_SLOTS,
    NEEDED,
    PASSED,
    REQUEST,
    SEQUENCES,
    TOP,
    Columns,
    Ints,
    Memory,
)
from .queue import copy_signatures, restore
from .records import enter_all, evict, held, load, pack, settle
from .run import missing_of, run

_WORDS: Final = 1 << 14
_SLOTS: Final = 1 << 10
_STEPS: Final = 1 << 10
_PIECE: Final = 1 << 17
"""Words that are packed at once."""
_TAKEN: Final = 64
"""Words and slots that loading takes at most for a record beyond twice its own words."""


class Packed(NamedTuple):
    """A piece of what a commit has to write."""

    keys: list[bytes]
    """Of the store: letter of the kind, and big-endian key."""
    values: list[bytes]
    """Packed words of each."""
    gone: Ints
    """Kind and key ``[n, 2]`` of stored records that have gone."""


class Slab:
    """Memory of one partition.

    Args:
        n_sequences: item sequences of the config.
    """

    def __init__(self, n_sequences: int) -> None:
        self.words: Ints = np.zeros(_WORDS, np.int64)
        self.slots: Ints = np.zeros((_SLOTS, 2), np.int64)
        self.heap: Ints = np.zeros((_STEPS, 2), np.int64)
        self.signatures: Ints = np.zeros((_SLOTS, 6), np.int64)
        self.regs: Ints = np.zeros(N_REGISTERS, np.int64)
        self.config: Ints = np.zeros(LENGTHS + n_sequences, np.int64)
        self.config[N_SEQUENCES] = n_sequences
        self._n_vectors = SEQUENCES + n_sequences
        self.regs[TOP] = 8
        self.regs[PASSED] = -1

    @property
    def memory(self) -> Memory:
        """The arrays as of now; growth makes others."""
        return Memory(self.words, self.slots, self.heap, self.signatures, self.regs, self.config)

    @property
    def n_steps(self) -> int:
        """Steps that wait."""
        return int(self.regs[HEAP_SIZE])

    def run(self, out: Columns, events: Ints, starts: Ints, effective: Ints, bound: int, refused: Ints) -> int:
        """Go on as far as may be without a store; as :func:`~.run.run`, less GROW."""
        while (status := run(self.memory, out, events, starts, effective, bound, refused)) == GROW:
            self._grow(int(self.regs[NEEDED]))
        return int(status)

    def missing_of(self, events: Ints, starts: Ints) -> Ints:
        """Return (kind, key) ``[n, 2]`` of what events will ask for and is not in memory."""
        missing = np.empty((4 * len(starts) + 1_024, 2), np.int64)
        found = missing[: missing_of(self.memory, events, starts, missing)]
        found = found[np.lexsort(found.T)]
        return found[np.any(np.diff(found, axis=0, prepend=-1), axis=1)]  # No kind is -1.

    def load(self, wanted: Ints, stored: Sequence[bytes | None]) -> None:
        """Take records into memory.

        Args:
            wanted: kind and key ``[n, 2]``.
            stored: their bytes; None where there are none.
        """
        data = np.frombuffer(b"".join([each for each in stored if each is not None]), np.int64)
        sizes = np.array([0 if each is None else len(each) // 8 for each in stored], np.int64)
        self._grow(2 * len(data) + (_TAKEN + 16 * self._n_vectors) * len(stored), len(stored))
        load(self.memory, wanted, data, np.cumsum(sizes))

    def restore_steps(self, requests: Sequence[bytes], actions: Sequence[bytes]) -> None:
        """Make the steps of stored requests and actions, each its offset (8 bytes, big endian) and its packed words."""
        for kind, stored in ((REQUEST, requests), (ACTION, actions)):
            keys = np.array([int.from_bytes(each[:8], "big") for each in stored], np.int64)
            data = np.frombuffer(b"".join([each[8:] for each in stored]), np.int64)
            ends = np.cumsum(np.array([len(each) // 8 - 1 for each in stored], np.int64))
            self.heap = _longer(self.heap, self.n_steps + len(keys) + _STEPS)
            while 2 * (self.regs[N_SIGNATURES] + len(keys) + _STEPS) > len(self.signatures):
                self._more_signatures()
            restore(self.memory, kind, keys, data, ends)

    def packed(self) -> Iterator[Packed]:
        """Yield what was touched, piece by piece.

        All pieces must be written in one batch: when the last one has been taken, what was touched counts as stored.
        """
        n_words = _PIECE
        while n_words:
            keys, ends = np.empty((_PIECE // 8, 9), np.uint8), np.empty(_PIECE // 8, np.int64)
            data, gone = np.empty(max(n_words, _PIECE), np.int64), np.empty((_PIECE // 8, 2), np.int64)
            n, n_gone, n_words = pack(self.memory, np.frombuffer(LETTERS, np.uint8), keys, data, ends, gone)
            words = data[: ends[n - 1] if n else 0].tobytes()
            # Kind by kind, what was touched last at last: so the keys of requests grow, and RocksDB inserts those in less time.
            order = n - 1 - np.argsort(keys[:n, 0][::-1], kind="stable")
            bounds = 8 * np.concatenate((ends[:1] * 0, ends[:n]))
            sides = zip(bounds[order].tolist(), bounds[order + 1].tolist(), strict=True)
            yield Packed(keys[order].reshape(-1).view("V9").tolist(), [words[start:end] for start, end in sides], gone[:n_gone])
        self.regs[BATCH] += 1

    def settle(self) -> None:
        """Begin a new batch: what was touched is stored."""
        settle(self.memory)
        self.regs[BATCH] += 1

    def shrink(self, kind: int, limit: int) -> None:
        """Let go of records of a kind beyond ``limit``: what was used longest ago, or of what waits the newest, needed last."""
        n = int(self.regs[COUNTS + kind])
        if n <= limit:
            return
        found = np.empty((n, 3), np.int64)
        held(self.memory, kind, found)
        waits = kind in (REQUEST, ACTION)
        excess = n - limit + (0 if waits else limit // 4)
        order = -found[:, 1] if waits else found[:, 2]
        evict(self.memory, found[np.argpartition(order, excess - 1)[:excess], 0])

    def _grow(self, n_words: int, n_records: int = 16) -> None:
        self.words = _longer(self.words, int(self.regs[TOP]) + n_words + _WORDS // 2)
        self.heap = _longer(self.heap, self.n_steps + n_records + 16)
        while 2 * (int(self.regs[N_SLOTS]) + n_records + 16) > len(self.slots):
            old, self.slots = self.slots, np.zeros((2 * len(self.slots), 2), np.int64)
            self.regs[N_SLOTS] = 0
            enter_all(self.memory, old)
        while 2 * (int(self.regs[N_SIGNATURES]) + 16) > len(self.signatures):
            self._more_signatures()

    def _more_signatures(self) -> None:
        old, self.signatures = self.signatures, np.zeros((2 * len(self.signatures), 6), np.int64)
        copy_signatures(old, self.signatures)


def _longer(array: npt.NDArray[np.int64], n: int) -> Ints:
    """Return an array of ``n`` rows or more that begins with the given one, at least twice as long if it must grow."""
    if n <= len(array):
        return array
    longer = np.zeros((max(n, 2 * len(array)), *array.shape[1:]), np.int64)
    longer[: len(array)] = array
    return longer
