"""Random numbers by position: draw ``i`` is the same whoever asks for it, with whatever others."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt

__all__ = ["Purpose", "table_rng", "uniforms"]

Floats = npt.NDArray[np.float64]
_WORDS = 4
"""64-bit words that one step of Philox's counter gives."""


class Purpose(IntEnum):
    """What a stream of numbers is for; each has a key of its own."""

    TABLES = 0
    SESSION = 1
    REQUEST = 2
    PROPOSAL = 3
    CLICK = 4
    DELAY = 5
    DOMAIN = 6
    VECTORS = 7
    WATCH = 8


def table_rng(seed: int, purpose: Purpose = Purpose.TABLES) -> np.random.Generator:
    """Return the generator for what is drawn once."""
    return np.random.Generator(np.random.Philox(key=_key(seed, purpose)))


def uniforms(seed: int, purpose: Purpose, first: int, n_rows: int, width: int) -> Floats:
    """Return rows ``first`` to ``first + n_rows`` of an endless table of numbers in [0, 1).

    Args:
        seed: of the simulation.
        purpose: which table.
        first: index of the first row.
        n_rows: ``R``.
        width: ``W``, numbers per row; always the same for a purpose.

    Returns:
        float64 ``[R, W]``.

    Source: J. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011 (Philox 4x64).
    """
    steps = -(-width // _WORDS)
    bits = np.random.Philox(key=_key(seed, purpose), counter=first * steps)
    return np.random.Generator(bits).random((n_rows, steps * _WORDS))[:, :width]


def _key(seed: int, purpose: Purpose) -> int:
    return (seed << 8 | purpose) % (1 << 128)
