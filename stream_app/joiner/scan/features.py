"""Features out of JSON by kernel, as :class:`stream_app.joiner.features.FeatureReader` reads them: ids hashed, floats rounded.

An id may be a string or a whole number as JSON writes it. What else Python would make a text of (1.5, true), what is an error,
and the zero with a sign are left to the slower reader.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from stream_app.joiner.config import FeatureKind
from stream_app.joiner.features import NAN, is_float

from .compiled import inner
from .values import (
    FAIL,
    Bytes,
    colon,
    following,
    hash_of,
    integer,
    namespace_rows,
    null_end,
    opened,
    scalar_end,
    string_end,
    value_word_of,
    word_of,
    words,
)
from .xxh3 import MAX_BYTES

Ints = npt.NDArray[np.int64]
_OPEN, _CLOSE, _QUOTE, _MINUS, _NULL = ord("{"), ord("}"), ord('"'), ord("-"), ord("n")
_SIGN: Final = 1 << 31
_LOW: Final = (1 << 32) - 1
_LEAST_ID: Final = 16
"""Bytes that the id of a feature must have room for, where its name is hashed with it."""


class Features(NamedTuple):
    """Configured features, ``F`` of them, as kernels take them."""

    names: Bytes
    """``[F, bytes of the longest name]``."""
    sizes: Ints
    """Of the names, ``[F]``."""
    floats: npt.NDArray[np.bool_]
    """Whether each is a float, ``[F]``."""
    missing: Ints
    """The word of each where it is missing, ``[F]``."""
    scratch: Bytes
    """What hashing needs, ``[F, bytes]``; one per thread."""
    prefixes: Ints
    """``[F]``."""


def features_of(kinds: Mapping[str, FeatureKind]) -> Features | None:
    """Return features as kernels take them; None where a name is too long for that.

    Args:
        kinds: feature name to ``float`` or ``id``.
    """
    namespaces = [f"feature.{name}" for name in kinds]
    if any(len(each.encode()) + 1 + _LEAST_ID > MAX_BYTES for each in namespaces):
        return None
    names, sizes = words(list(kinds), max([1, *(len(name.encode()) for name in kinds)]))
    floats = np.array([is_float(kind) for kind in kinds.values()], np.bool_)
    return Features(names, sizes, floats, np.where(floats, NAN, 0).astype(np.int64), *namespace_rows(namespaces))


@inner
def float_word_of(data: Bytes, at: int) -> tuple[int, int]:
    """Return the position after a number without an exponent, and the bits of the float32 nearest to its float64."""
    negative = data[at] == _MINUS
    at, word = value_word_of(data, at)
    if at == FAIL or (negative and word == 0):
        return FAIL, 0
    wide: Any = np.int64(-1 - word if negative else word)
    single: Any = np.float32(wide.view(np.float64))
    bits: Any = np.int64(single.view(np.int32)) & _LOW
    return at, bits | _SIGN if negative else bits


@inner
def _id_word_of(data: Bytes, at: int, scratch: Bytes, prefix: int) -> tuple[int, int]:
    """Return the position after a string or a whole number, and its :func:`~stream_app.events.hash_id`."""
    if data[at] == _QUOTE:
        start = at + 1
        end = string_end(data, at)
        at = end + 1
    else:
        start = at
        end, _ = integer(data, at)
        at = end
    if end in (FAIL, start) or end - start + prefix > MAX_BYTES:
        return FAIL, 0
    return at, hash_of(data, start, end, scratch, prefix)


@inner
def read_features(data: Bytes, at: int, features: Features, row: Ints, first: int) -> int:
    """Read an object of features into ``row`` from column ``first`` on, where the words of missing ones stand; return the
    position after it."""
    at = opened(data, at, _OPEN)
    if at == FAIL or data[at] == _CLOSE:
        return FAIL if at == FAIL else at + 1
    more = True
    while more:
        end = string_end(data, at)
        if end == FAIL:
            return FAIL
        index = word_of(data, at + 1, end, features.names, features.sizes)
        at = colon(data, end)
        if at == FAIL:
            return FAIL
        if index < 0:
            at = scalar_end(data, at)
        elif data[at] == _NULL:
            at = null_end(data, at)
            row[first + index] = features.missing[index]
        elif features.floats[index]:
            at, row[first + index] = float_word_of(data, at)
        else:
            at, row[first + index] = _id_word_of(data, at, features.scratch[index], features.prefixes[index])
        if at == FAIL:
            return FAIL
        at, more = following(data, at, _CLOSE)
    return at
