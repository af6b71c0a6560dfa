"""Files of raw events in Freshet's own format: ``events.py``'s structs, one JSON object per line (or nested Parquet)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from stream_app.events import Action, Impression, Item, User
from stream_app.joiner.config import FeatureKind

from .fields import Clock
from .source import Event, SourceError, Tally, bad_row
from .tables import JSON_SUFFIXES, json_rows, read_table
from .values import time_reader

__all__ = ["FIELDS", "Seen", "own_events"]

FIELDS: Final = tuple(dict.fromkeys(name for kind in (Impression, Action, Item, User) for name in kind.__struct_fields__))
"""Names of all fields of all events."""

_CHUNK: Final = 8_192
_in_range = time_reader("ms")


class _Shape(msgspec.Struct):
    """Which event an object is, read without the rest of it."""

    items: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    item_id: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    kind: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET

    def event(self) -> type[Event]:
        """Return the event's type."""
        if self.items is not msgspec.UNSET:
            return Impression
        if self.item_id is msgspec.UNSET:
            return User
        return Item if self.kind is msgspec.UNSET else Action


_SHAPE: Final = msgspec.json.Decoder(_Shape)
_DECODERS: Final[dict[type[Event], msgspec.json.Decoder[Event]]] = {
    kind: msgspec.json.Decoder(kind) for kind in (Impression, Action, Item, User)
}


class Seen:
    """What a join needs to know of the events: kinds of features, and whether there are queries and delayed clicks."""

    def __init__(self) -> None:
        self.request_features: dict[str, FeatureKind] = {}
        self.features: dict[str, FeatureKind] = {}
        self.has_query = False
        self.has_truth = False

    def add(self, event: Impression) -> None:
        """Look at one impression."""
        self.has_query |= event.query is not None
        _learn(self.request_features, event.features)
        for item in event.items:
            self.has_truth |= item.truth is not None
            _learn(self.features, item.features)


def _learn(known: dict[str, FeatureKind], features: dict[str, Any]) -> None:
    for name, value in features.items():
        if name not in known and value is not None:
            known[name] = "id" if isinstance(value, str) else "float"


def own_events(
    path: Path, clocks: dict[type[Event], Clock], lateness_ms: int, tally: Tally
) -> Iterator[tuple[list[Event], int]]:
    """Yield (events, bytes read) of a file.

    Raises:
        SourceError: a line is no event, or time runs backwards within a topic, and bad rows stop the import.
    """
    for found, done in _lines(path, tally) if path.suffix.lower() in JSON_SUFFIXES else _table(path, tally):
        events: list[Event] = []
        for number, event in found:
            clock = clocks.setdefault(type(event), Clock(lateness_ms))
            try:
                why = clock.why_late(_in_range(event.ts))
            except ValueError as error:
                why = str(error)
            if why is None:
                events.append(event)
            else:
                tally.bad(bad_row(path, number, "ts", event.ts, why))
        yield events, done


def _lines(path: Path, tally: Tally) -> Iterator[tuple[list[tuple[int, Event]], int]]:
    for first, lines, done in json_rows(path):
        events: list[tuple[int, Event]] = []
        for number, line in enumerate(lines, first):
            if not line.strip():
                continue
            try:
                events.append((number, _DECODERS[_SHAPE.decode(line).event()].decode(line)))
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                tally.bad(_no_event(path, number, line[:60].decode(errors="replace"), error))
        yield events, done


def _table(path: Path, tally: Tally) -> Iterator[tuple[list[tuple[int, Event]], int]]:
    for batch in read_table(path, FIELDS, tally):
        events: list[tuple[int, Event]] = []
        for number, values in zip(batch.numbers, zip(*batch.columns.values(), strict=True), strict=True):
            row = {name: value for name, value in zip(batch.columns, values, strict=True) if value is not None}
            kind = _Shape(**{name: msgspec.Raw() for name in ("items", "item_id", "kind") if name in row}).event()
            try:
                events.append((number, msgspec.convert(_without_none(row), type=kind, strict=False)))
            except msgspec.ValidationError as error:
                tally.bad(_no_event(path, number, str(row)[:60], error))
        yield events, batch.done


def _without_none(value: Any) -> Any:
    """Arrow structs carry every field: what is null there is absent in an event."""
    if isinstance(value, dict):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    return [_without_none(inner) for inner in value] if isinstance(value, list) else value


def _no_event(path: Path, number: int, shown: str, error: Exception) -> SourceError:
    why = f"is no raw event ({error}); a log with other field names needs a mapping with a layout"
    return bad_row(path, number, "line", shown, why)
