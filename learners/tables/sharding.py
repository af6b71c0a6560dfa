"""Which shard of a table a key belongs to: a function of the key alone, so that any worker knows without asking."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from negative_queues.draws import mix64
from negative_queues.kernels import kernel

Keys = npt.NDArray[np.int64]
_SALT = np.uint64(0x5AADED5EED)
"""The shard and the place inside a shard's index come from two different hashes: a shard's keys still spread over it."""


class Shard(NamedTuple):
    """A table's part ``at`` of ``of``; (0, 1) is all of it."""

    at: int = 0
    of: int = 1


WHOLE = Shard()


def shard_of(keys: Keys, n: int) -> npt.NDArray[np.int32]:
    """Return the shard, ``0 .. n - 1``, of every key, int32 ``[N]``.

    >>> shard_of(np.array([1, 2, 3, 4]), 2).tolist()
    [1, 1, 0, 0]

    Raises:
        ValueError: ``n`` is below 1.
    """
    if n < 1:
        raise ValueError(f"n = {n} shards must be at least 1")
    shards = np.empty(len(keys), np.int32)
    _shards(keys, n, shards)
    return shards


@kernel
def _shards(keys: Keys, n: int, out: npt.NDArray[np.int32]) -> None:
    for i in range(len(keys)):
        out[i] = np.int32(mix64(np.uint64(keys[i]) ^ _SALT) % np.uint64(n))
