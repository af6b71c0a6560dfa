"""Features by config: float to float32 (NaN missing), id to a hashed int64 (0 missing)."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from typing import Final

from stream_app.events import FeatureValue, IdHashes, ImpressionItem

from .config import FeatureKind

FLOAT32_MAX: Final = 3.4028234663852886e38
_FLOAT32: Final = struct.Struct("<f").pack


def float_bits(value: float) -> int:
    """Return the bits of a float32.

    Raises:
        OverflowError: the value does not fit.
    """
    return int.from_bytes(_FLOAT32(value), "little")


NAN: Final = float_bits(math.nan)


def is_float(kind: FeatureKind) -> bool:
    """Whether a feature of a kind is a float."""
    return kind == "float"


class FeatureError(ValueError):
    """A feature's value does not fit its kind."""


class FeatureReader:
    """Reads the configured features of one place (``request`` or ``candidate``); false where none is configured.

    Args:
        place: for messages.
        kinds: feature name to ``float`` or ``id``.
    """

    def __init__(self, place: str, kinds: Mapping[str, FeatureKind]) -> None:
        self._place = place
        self._features = [(name, IdHashes(f"feature.{name}") if kind == "id" else None) for name, kind in kinds.items()]

    def __bool__(self) -> bool:
        return bool(self._features)

    def row(self, given: Mapping[str, FeatureValue]) -> list[int]:
        """Return the word per configured feature: the bits of a float32 (NaN missing), or an id (0 missing).

        Raises:
            FeatureError: a float feature holds a string or does not fit float32.
        """
        return [self._word(name, hashes, given.get(name)) for name, hashes in self._features]

    def columns(self, items: Sequence[ImpressionItem]) -> tuple[list[int], bool]:
        """Return the words of all items feature by feature, and whether none is missing anywhere."""
        columns: list[int] = []
        complete = True
        for name, hashes in self._features:
            words = [self._word(name, hashes, item.features.get(name)) for item in items]
            complete = complete and (NAN if hashes is None else 0) not in words
            columns += words
        return columns, complete

    def _word(self, name: str, hashes: IdHashes | None, value: FeatureValue) -> int:
        if hashes is not None:
            return 0 if value is None else hashes[str(value)]
        return NAN if value is None else float_bits(self._float(name, value))

    def _float(self, name: str, value: float | int | str | bool) -> float:
        if isinstance(value, str):
            raise FeatureError(f"{self._place} feature {name!r} is a float, the log has the string {value[:80]!r}")
        if abs(value) > FLOAT32_MAX:
            raise FeatureError(f"{self._place} feature {name!r} does not fit float32")
        return float(value)
