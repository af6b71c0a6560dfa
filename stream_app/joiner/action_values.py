"""Values of actions as int64 words in the same order, so that kernels compare them without a float.

The word of a float64 that is not negative is its bits; of a negative one, those of its opposite, all inverted.
"""

from __future__ import annotations

import struct
from typing import Final

NO_VALUE: Final = -(1 << 63)
"""Below all values: an action without one; as a threshold, what everything reaches."""
OUT_OF_REACH: Final = (1 << 63) - 1
"""As a threshold, what nothing reaches."""
_FLOAT64: Final = struct.Struct("<d").pack


def value_word(value: float | None) -> int:
    """Return the word of a value; 0 and -0 are equal.

    >>> value_word(None) < value_word(-1.5) < value_word(-0.0) == value_word(0.0) < value_word(0.5)
    True
    """
    if value is None:
        return NO_VALUE
    word = int.from_bytes(_FLOAT64(abs(value)), "little")
    return -1 - word if value < 0 else word
