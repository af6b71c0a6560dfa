"""Features by config: float to float32 (NaN missing), id to a hashed int64 (0 missing)."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from typing import Final

from stream_app.events import FeatureValue, IdHashes, ImpressionItem

from .config import FeatureKind

_FLOAT32_MAX: Final = 3.4028234663852886e38


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
        self.missing: tuple[float | int, ...] = tuple(math.nan if hashes is None else 0 for _, hashes in self._features)

    def __bool__(self) -> bool:
        return bool(self._features)

    def row(self, given: Mapping[str, FeatureValue]) -> tuple[float | int, ...]:
        """Return the value per configured feature.

        Raises:
            FeatureError: a float feature holds a string or does not fit float32.
        """
        return tuple(self._value(name, hashes, given.get(name)) for name, hashes in self._features)

    def columns(self, items: Sequence[ImpressionItem]) -> tuple[tuple[bytes, ...], bool]:
        """Return float32 or int64 ``[n]`` bytes per configured feature, and whether none is missing anywhere."""
        columns: list[bytes] = []
        complete = True
        for name, hashes in self._features:
            values = [self._value(name, hashes, item.features.get(name)) for item in items]
            if hashes is None:
                complete = complete and not any(value != value for value in values)
            else:
                complete = complete and 0 not in values
            columns.append(struct.pack(f"<{len(values)}{'f' if hashes is None else 'q'}", *values))
        return tuple(columns), complete

    def _value(self, name: str, hashes: IdHashes | None, value: FeatureValue) -> float | int:
        if hashes is not None:
            return 0 if value is None else hashes[str(value)]
        if value is None:
            return math.nan
        if isinstance(value, str):
            raise FeatureError(f"{self._place} feature {name!r} is a float, the log has the string {value[:80]!r}")
        if abs(value) > _FLOAT32_MAX:
            raise FeatureError(f"{self._place} feature {name!r} does not fit float32")
        return float(value)
