"""Draws that are a function of their key alone: no generator whose state must be carried, saved or shared.

A key folds (seed, stream, purpose, step); draw ``i`` under a key is output ``i`` of SplitMix64 started at that key
(Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014). So a replayed step draws what it
drew the first time, in whatever order, from whatever thread, and two purposes never share a sequence.
"""

from __future__ import annotations

import functools
import hashlib

import numpy as np
import numpy.typing as npt

from negative_queues.kernels import kernel

__all__ = [
    "DrawKey",
    "bits",
    "draw_below",
    "draw_key",
    "draw_uniform",
    "fold",
    "fold64",
    "mix64",
    "uniform_below",
    "uniform_unit",
]

DrawKey = np.uint64
"""64 bits that stand for (seed, stream, purpose, step)."""

_WORD = (1 << 64) - 1
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)
_LOW = np.uint64(0xFFFFFFFF)
_ONE, _S11, _S27, _S30, _S31, _S32 = (np.uint64(shift) for shift in (1, 11, 27, 30, 31, 32))


@kernel(inline="always")
def mix64(x: np.uint64) -> np.uint64:
    """Return the SplitMix64 finaliser of ``x``: a bijection of 64 bits in which every input bit moves every output bit."""
    x = (x ^ (x >> _S30)) * _FIRST
    x = (x ^ (x >> _S27)) * _SECOND
    return x ^ (x >> _S31)


@kernel(inline="always")
def bits(key: np.uint64, index: int) -> np.uint64:
    """Return draw ``index`` (from 0) under ``key``: 64 uniform bits."""
    return mix64(key + (np.uint64(index) + _ONE) * _GOLDEN)


@kernel(inline="always")
def uniform_below(key: np.uint64, index: int, bound: int) -> np.int64:
    """Return draw ``index`` as an integer in ``[0, bound)``, ``1 <= bound < 2**32``; the bias is below ``bound / 2**64``."""
    x, n = bits(key, index), np.uint64(bound)
    # High word of the 64 x 32 bit product (Lemire 2019), in two halves that cannot overflow.
    return np.int64(((x >> _S32) * n + (((x & _LOW) * n) >> _S32)) >> _S32)


@kernel(inline="always")
def uniform_unit(key: np.uint64, index: int) -> float:
    """Return draw ``index`` as a float64 in ``[0, 1)`` with 53 random bits."""
    return np.float64(bits(key, index) >> _S11) * (1.0 / 9007199254740992.0)


@kernel(inline="always")
def fold64(key: np.uint64, value: np.uint64) -> np.uint64:
    """Return the key under ``key`` that belongs to ``value``: :func:`fold` for kernels."""
    return mix64(key ^ mix64(value + _GOLDEN))


@kernel
def _fill_below(key: np.uint64, bound: int, out: npt.NDArray[np.int64]) -> None:
    for index in range(len(out)):
        out[index] = uniform_below(key, index, bound)


@kernel
def _fill_unit(key: np.uint64, out: npt.NDArray[np.float64]) -> None:
    for index in range(len(out)):
        out[index] = uniform_unit(key, index)


def draw_key(seed: int, stream: str, purpose: str, step: int) -> DrawKey:
    """Return the key of one draw.

    Args:
        seed: of the run; any integer, taken modulo 2**64.
        stream: who draws: the name of the model.
        purpose: what for: ``"negatives.item"``, ``"edges.i2i"``.
        step: the learner's step, modulo 2**64.
    """
    return fold(fold(np.uint64(seed & _WORD), _name(stream, purpose)), step)


def fold(key: DrawKey, value: int) -> DrawKey:
    """Return the key under ``key`` that belongs to ``value`` (a step, a part): keys form a tree."""
    return np.uint64(fold64(key, np.uint64(value & _WORD)))


def draw_below(key: DrawKey, n: int, bound: int) -> npt.NDArray[np.int64]:
    """Return ``n`` independent integers uniform in ``[0, bound)``, int64 ``[n]``.

    Raises:
        ValueError: ``bound`` is not in ``1 .. 2**32 - 1``, or ``n`` is negative.
    """
    if not 1 <= bound < 1 << 32:
        raise ValueError(f"bound must be 1 to 2**32 - 1, got {bound}")
    out = np.empty(n, np.int64)
    _fill_below(key, bound, out)
    return out


def draw_uniform(key: DrawKey, n: int) -> npt.NDArray[np.float64]:
    """Return ``n`` independent floats uniform in ``[0, 1)``, float64 ``[n]``."""
    out = np.empty(n, np.float64)
    _fill_unit(key, out)
    return out


@functools.lru_cache(maxsize=1024)
def _name(stream: str, purpose: str) -> int:
    # NUL keeps ("ab", "c") and ("a", "bc") apart.
    digest = hashlib.blake2b(f"{stream}\0{purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")
