"""Streaming estimate of how often an id is met, for the logQ correction.

Yi et al., "Sampling-bias-corrected neural modeling for large corpus item recommendations" (RecSys 2019), Algorithm 2: two
hashed arrays per hash function, ``A`` the step at which a bucket was last met and ``B`` the moving average of the steps
between two meetings,

    B[h(y)] <- (1 - alpha) B[h(y)] + alpha (t - A[h(y)]),    A[h(y)] <- t,    p(y) = 1 / B[h(y)].

A collision makes an id look more frequent, never less, so of several hash functions the largest gap is the best (their
Algorithm 3). An :class:`~negative_queues.id_queue.IdQueue` knows its own probabilities exactly (``log_probability``);
this estimate serves where negatives come from the batch, and where frequent ids are subsampled.

Letters: ``H`` hash functions, ``B`` buckets each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from negative_queues.draws import fold64
from negative_queues.kernels import kernel

__all__ = ["FrequencyStateError", "StreamingFrequency"]


class FrequencyStateError(ValueError):
    """A saved state that this estimator cannot become."""


class StreamingFrequency:
    """Probability that a step meets an id, from the gaps between the steps that did.

    Where the paper's ``B`` starts at a constant, here the first gap *is* the first average: an id first met at step ``t`` has
    ``p = 1 / t``. An id that was never met has ``p = 1 / (steps + 1)``.

    Args:
        n_buckets: ``B``, at least 1; memory is 16 bytes x ``B`` x ``H``.
        alpha: weight of the newest gap, in (0, 1].
        n_hashes: ``H``, at least 1.

    Raises:
        ValueError: an argument is out of range.

    >>> frequency = StreamingFrequency(1024, alpha=0.5)
    >>> for step in range(4):
    ...     frequency.update([5] if step % 2 else [5, 9])
    >>> frequency.probability([5, 9, 1]).tolist()
    [1.0, 0.6666666666666666, 0.2]
    """

    def __init__(self, n_buckets: int, alpha: float = 0.01, n_hashes: int = 2) -> None:
        if n_buckets < 1 or n_hashes < 1:
            raise ValueError(f"n_buckets and n_hashes must be at least 1, got {n_buckets} and {n_hashes}")
        if not 0 < alpha <= 1:
            raise ValueError(f"alpha must be in (0, 1], got {alpha}; 0.01 averages over about 100 meetings")
        self.alpha = float(alpha)
        self._last = np.zeros((n_hashes, n_buckets), np.int64)
        self._gap = np.zeros((n_hashes, n_buckets), np.float64)
        self._steps = 0

    @property
    def steps(self) -> int:
        """Updates so far."""
        return self._steps

    def update(self, ids: npt.ArrayLike) -> None:
        """Count one step that met ``ids``, int64 ``[n]``; an id that is there twice is met once."""
        self._steps += 1
        _update(self._last, self._gap, _as_ids(ids), self._steps, self.alpha)

    def probability(self, ids: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Return the probability that a step meets each id, float64 ``[n]`` in (0, 1]."""
        values = _as_ids(ids)
        out = np.empty(len(values), np.float64)
        _probability(self._gap, values, 1.0 / (self._steps + 1), out)
        return out

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Return everything that must survive: ``last`` and ``gap`` ``[H, B]`` (views), ``steps`` ``[1]``."""
        return {"last": self._last, "gap": self._gap, "steps": np.array([self._steps], np.int64)}

    def load_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Become exactly the estimator that returned ``state``.

        Raises:
            FrequencyStateError: an array is missing, unknown or of another shape; nothing has changed then.
        """
        own = self.state()
        if set(state) != set(own):
            raise FrequencyStateError(f"a frequency's state is {sorted(own)}; this one has {sorted(state)}")
        for name, array in own.items():
            if state[name].shape != array.shape or state[name].dtype != array.dtype:
                raise FrequencyStateError(
                    f"{name} was saved as {state[name].dtype} {state[name].shape}, this estimator needs "
                    f"{array.dtype} {array.shape}; use the n_buckets and n_hashes of the saved run"
                )
        self._last[:], self._gap[:], self._steps = state["last"], state["gap"], int(state["steps"][0])


def _as_ids(ids: npt.ArrayLike) -> npt.NDArray[np.int64]:
    values = np.array(ids, dtype=np.int64)
    if values.ndim != 1:
        raise ValueError(f"ids must be of one dimension, got shape {values.shape}")
    return values


@kernel
def _bucket(value: int, function: int, n_buckets: int) -> np.int64:
    return np.int64(fold64(np.uint64(value), np.uint64(function)) % np.uint64(n_buckets))


@kernel
def _update(
    last: npt.NDArray[np.int64], gap: npt.NDArray[np.float64], ids: npt.NDArray[np.int64], step: int, alpha: float
) -> None:
    for function in range(len(last)):
        for value in ids:
            bucket = _bucket(value, function, last.shape[1])
            if last[function, bucket] == step:  # met in this step already, by this id or by one that collides
                continue
            newest = np.float64(step - last[function, bucket])
            old = gap[function, bucket]
            gap[function, bucket] = newest if old == 0.0 else (1.0 - alpha) * old + alpha * newest
            last[function, bucket] = step


@kernel
def _probability(gap: npt.NDArray[np.float64], ids: npt.NDArray[np.int64], unseen: float, out: npt.NDArray[np.float64]) -> None:
    for index in range(len(ids)):
        longest = np.inf
        for function in range(len(gap)):
            value = gap[function, _bucket(ids[index], function, gap.shape[1])]
            if value == 0.0:  # one free bucket proves that the id was never met
                longest = np.inf
                break
            longest = value if longest == np.inf else max(longest, value)
        out[index] = unseen if longest == np.inf else 1.0 / longest
