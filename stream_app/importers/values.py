"""One value of a log -> what an event needs. Each function takes any value and raises ValueError with what is wrong with it."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal

__all__ = ["TimeUnit", "flag", "identifier", "number", "optional", "position", "time_reader", "words"]

TimeUnit = Literal["s", "ms", "us", "iso"]
_EARLIEST: Final = 946_684_800_000
"""2000-01-01: earlier times are nearly always another unit."""
_LATEST: Final = 4_102_444_800_000
"""2100-01-01."""
_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MS: Final = dt.timedelta(milliseconds=1)
_TRUE: Final = frozenset({"1", "true", "t", "yes", "y"})
_FALSE: Final = frozenset({"0", "false", "f", "no", "n", ""})


def identifier(value: Any) -> str:
    """Return an id as text; 12 and 12.0 (a column of ids with gaps, as pandas writes it) are both ``"12"``."""
    if type(value) is str and value:
        return value
    if type(value) is int:
        return str(value)
    if type(value) is float and value.is_integer():
        return str(int(value))
    if is_missing(value) or value == "":
        raise ValueError("is missing")
    raise ValueError("is no id (text or a whole number)")


def is_missing(value: Any) -> bool:
    """Whether a value is None or NaN."""
    return value is None or (type(value) is float and math.isnan(value))


def optional(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return ``read`` for values that may be missing or empty: they become None."""

    def read_optional(value: Any) -> Any:
        if value is None or value == "" or (type(value) is float and math.isnan(value)):
            return None
        return read(value)

    return read_optional


def number(value: Any) -> float:
    """Return a finite number, also from text."""
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError("is no number") from None
    if not math.isfinite(found):
        raise ValueError("is no finite number")
    return found


def position(value: Any) -> int:
    """Return a rank on the page: a whole number from 0."""
    found = number(value)
    if found < 0 or not found.is_integer():
        raise ValueError("is no position (a whole number from 0)")
    return int(found)


def flag(value: Any) -> bool:
    """Return a label: numbers above 0, true and yes are positive; missing is negative."""
    if value is None:
        return False
    if isinstance(value, bool | int | float):
        return value > 0
    if isinstance(value, str):
        text = value.strip().lower()
        if text in _TRUE or text in _FALSE:
            return text in _TRUE
        return number(text) > 0
    raise ValueError("is no label (a number, or true or false)")


def one_of(positive: Sequence[str]) -> Callable[[Any], bool]:
    """Return a label reader: positive are the given values."""
    chosen = frozenset(positive)
    return lambda value: value is not None and str(value) in chosen


def words(value: Any) -> list[str]:
    """Return one id or a list of ids as a list."""
    return [identifier(word) for word in value] if isinstance(value, list | tuple) else [identifier(value)]


def time_reader(unit: TimeUnit) -> Callable[[Any], int]:
    """Return the reader of a time in the given unit: UTC ms, between the years 2000 and 2100."""
    return _iso if unit == "iso" else _counted(unit)


def _counted(unit: TimeUnit) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        count = value if type(value) is int else _count(value, unit)
        ts = round(count * 1_000) if unit == "s" else round(count) if unit == "ms" else int(count // 1_000)
        if not _EARLIEST <= ts < _LATEST:
            raise ValueError(f"is not between the years 2000 and 2100 when read as {unit}; set ts_unit to s, ms, us or iso")
        return ts

    return read


def _count(value: Any, unit: TimeUnit) -> int | float:
    """Return a time that is no int as a number: text from CSV, or seconds with a fraction."""
    if is_missing(value) or value == "":
        raise ValueError("is missing")
    try:
        return int(value) if isinstance(value, str) and value.isdigit() else number(value)
    except ValueError:
        raise ValueError(f"is no time in {unit}; set ts_unit to s, ms, us or iso") from None


def _iso(value: Any) -> int:
    if type(value) is int:  # a Parquet column of times: already UTC ms
        return _counted("ms")(value)
    try:
        when = dt.datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise ValueError("is no ISO 8601 time, for example 2017-10-10T12:00:01.5Z") from None
    ts = ((when if when.tzinfo else when.replace(tzinfo=dt.UTC)) - _EPOCH) // _MS
    return _counted("ms")(ts)
