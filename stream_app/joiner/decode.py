"""Raw records to what the joiner keeps: decoding, checks, hashed ids. What can be wrong with a record is found here."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

import msgspec
import xxhash

from stream_app.events import ACTIONS, IMPRESSIONS, ITEMS, USERS, Action, IdHashes, Impression, Item, User, partition_of
from stream_app.topics import Record

from .config import JoinConfig
from .features import FeatureError, FeatureReader
from .merge import NEVER
from .pending import NO_CATEGORIES, Event, Ignored, ItemUpdate, Request, Unusable, UserUpdate, Version, Waiting
from .scan.reader import Reader

MAX_RECORD_BYTES: Final = 1 << 20
"""Larger records are dead letters: Kafka's own default limit."""
_MAX_TS: Final = 253_402_300_799_999  # The end of year 9999.
_MAX_POSITION: Final = (1 << 31) - 1


class Kind(NamedTuple):
    """What actions of one kind do."""

    name: str
    labels: bool
    sequences: tuple[int, ...]
    """Indexes of the item sequences that it feeds."""


class _UnusableError(ValueError):
    """A record that decodes and still cannot be used."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class _RequiredIds(IdHashes):
    """:class:`IdHashes` that refuses the empty id; a hit costs a plain dict look-up."""

    def __missing__(self, identifier: str) -> int:
        if not identifier:
            raise _UnusableError("empty_id", f"empty {self.namespace} id")
        return super().__missing__(identifier)


class _OptionalIds(dict[str | None, int]):
    """Like :class:`IdHashes`, and 0 for None and the empty id."""

    def __init__(self, namespace: str) -> None:
        super().__init__()
        self._hashes = IdHashes(namespace, 1)
        self._capacity = 1 << 18

    def __missing__(self, identifier: str | None) -> int:
        if len(self) >= self._capacity:
            self.clear()
        value = self[identifier] = self._hashes[identifier] if identifier else 0
        return value


@lru_cache(1024)
def int64s(n: int) -> struct.Struct:
    """Return the packer of ``n`` int64."""
    return struct.Struct(f"<{n}q")


@lru_cache(1024)
def int32s(n: int) -> struct.Struct:
    """Return the packer of ``n`` int32."""
    return struct.Struct(f"<{n}i")


@lru_cache(1024)
def float32s(n: int) -> struct.Struct:
    """Return the packer of ``n`` float32."""
    return struct.Struct(f"<{n}f")


def joiner_kinds(config: JoinConfig) -> dict[str, Kind]:
    """Return the kinds of action that a config uses, in a fixed order."""
    names = sorted({*config.label_kinds, *(kind for sequence in config.item_sequences.values() for kind in sequence.kinds)})
    return {
        name: Kind(
            name,
            name in config.label_kinds,
            tuple(i for i, sequence in enumerate(config.item_sequences.values()) if name in sequence.kinds),
        )
        for name in names
    }


class Decoder:
    """Decodes the records of the input topics of one joiner.

    Args:
        config: the joiner's options.
        partition: the joiner's partition; records with a key of another one are unusable (items: any).
        n_partitions: of the user-keyed topics.
    """

    def __init__(self, config: JoinConfig, partition: int, n_partitions: int) -> None:
        self._config = config
        self._partition = partition
        self._n_partitions = n_partitions
        self._skew = config.max_clock_skew_ms
        self._due_after = 0 if config.policy == "correct" else config.label_window_ms
        self._users = _RequiredIds("user")
        self._items = _RequiredIds("item")
        self._queries = _OptionalIds("query")
        self._categories = _OptionalIds("category")
        self._domains = _OptionalIds("domain")
        kinds = joiner_kinds(config)
        self._reader = Reader(list(kinds), self._due_after)
        featured = bool(config.request_features or config.candidate_features or config.truth)
        self._reads_by_kernel = {ACTIONS: True, IMPRESSIONS: not featured}
        self._kinds = {name: index for index, name in enumerate(kinds)}
        self._request_features = FeatureReader("request", config.request_features)
        self._candidate_features = FeatureReader("candidate", config.candidate_features)
        self._homes: dict[bytes, int] = {}
        self._prepare: dict[str, tuple[Callable[[bytes], Any], Callable[[Any, int], Event]]] = {
            IMPRESSIONS: (msgspec.json.Decoder(Impression).decode, self._impression),
            ACTIONS: (msgspec.json.Decoder(Action).decode, self._action),
            ITEMS: (msgspec.json.Decoder(Item).decode, self._item),
            USERS: (msgspec.json.Decoder(User).decode, self._user),
        }

    def decode(self, topic: str, records: Sequence[Record]) -> tuple[list[Event], list[int]]:
        """Decode records of a topic.

        Returns:
            Per record the event and its ``ts``; an :class:`Unusable` has :data:`~.merge.NEVER`, so that it moves no clock.
        """
        checks_home = topic != ITEMS and self._n_partitions > 1
        skew = self._skew
        events: list[Event] = []
        stamps: list[int] = []
        for record, read in zip(records, self._read(topic, records), strict=True):
            ts = NEVER if read is None else read.ts
            if (
                read is None
                or not record.ts - skew <= ts <= record.ts + skew
                or ts > _MAX_TS
                or (checks_home and record.key and self._home(record.key) != self._partition)
            ):
                event, ts = self.decode_alone(topic, record)
            else:
                event = read
            events.append(event)
            stamps.append(ts)
        return events, stamps

    def _read(self, topic: str, records: Sequence[Record]) -> Sequence[Request | Waiting | Ignored | None]:
        """Read by kernel what it can read; None where it cannot."""
        if self._reads_by_kernel.get(topic):
            values = [record.value if len(record.value) <= MAX_RECORD_BYTES else b"" for record in records]
            offsets = [record.offset for record in records]
            return self._reader.pages(values, offsets) if topic == IMPRESSIONS else self._reader.actions(values, offsets)
        return [None] * len(records)

    def decode_alone(self, topic: str, record: Record) -> tuple[Event, int]:
        """Decode one record as the kernels would if they read everything: slower, and knows all that may be wrong."""
        parse, prepare = self._prepare[topic]
        offset, broker_ts, key, value = record
        skew = self._skew
        checks_home = topic != ITEMS and self._n_partitions > 1
        try:
            if len(value) > MAX_RECORD_BYTES:
                raise _UnusableError("too_large", f"{len(value)} bytes; at most {MAX_RECORD_BYTES} are read")
            if checks_home and key and self._home(key) != self._partition:
                raise _UnusableError("foreign", f"key of partition {self._home(key)} in partition {self._partition}")
            raw = parse(value)
            ts: int = raw.ts
            if not broker_ts - skew <= ts <= broker_ts + skew or not 0 <= ts <= _MAX_TS:
                raise _UnusableError("clock", f"ts {ts} is not within {skew} ms of the record's broker time {broker_ts}")
            return prepare(raw, offset), ts
        except (ValueError, OverflowError, RecursionError, struct.error) as error:
            return _unusable(error), NEVER

    def _home(self, key: bytes) -> int:
        home = self._homes.get(key)
        if home is None:
            if len(self._homes) >= 1 << 18:
                self._homes.clear()
            home = self._homes[key] = partition_of(key, self._n_partitions)
        return home

    def _impression(self, raw: Impression, offset: int) -> Request:
        shown = raw.items
        n = len(shown)
        if not n:
            raise _UnusableError("no_items", "an impression without items")
        pack = int64s(n).pack
        ids, categories_of, domains_of = self._items, self._categories, self._domains
        categories = [categories_of[item.category] for item in shown]
        domains = [item.domain for item in shown]
        some_domain = domains.count(None) < n
        queries = raw.query_category
        candidate_features = self._candidate_features
        packed, packed_complete = candidate_features.columns(shown) if candidate_features else ((), True)
        return Request(
            offset,
            self._users[raw.user_id],
            _request_hash(raw.request_id),
            raw.ts,
            raw.ts + self._due_after,
            self._queries[raw.query],
            self._query_categories(queries) if queries else NO_CATEGORIES,
            domains_of[raw.domain],
            n,
            pack(*[ids[item.item_id] for item in shown]),
            pack(*categories),
            pack(*[domains_of[domain] for domain in domains]) if some_domain else _zeros(n),
            _positions([item.position for item in shown]),
            _truths([item.truth for item in shown]) if self._config.truth else b"",
            self._request_features.row(raw.features) if self._request_features else (),
            packed,
            packed_complete and 0 not in categories and some_domain and all(domains),
        )

    def _query_categories(self, names: Sequence[str]) -> tuple[int, int, int, int]:
        known = [category for name in names if (category := self._categories[name])]
        first, second, third, fourth = (*known, *NO_CATEGORIES)[:4]
        return first, second, third, fourth

    def _action(self, raw: Action, offset: int) -> Waiting | Ignored:
        kind = self._kinds.get(raw.kind)
        user, item = self._users[raw.user_id], self._items[raw.item_id]
        if kind is None:
            return Ignored(raw.ts)
        request = raw.request_id
        return Waiting(
            offset,
            user,
            item,
            raw.ts,
            raw.ts,
            kind,
            _request_hash(request) if request else 0,
            self._queries[raw.query],
            self._categories[raw.category],
        )

    def _item(self, raw: Item, offset: int) -> ItemUpdate:
        features = self._candidate_features.row(raw.features)
        version = Version(raw.ts, self._categories[raw.category], self._domains[raw.domain], features)
        return ItemUpdate(self._items[raw.item_id], version)

    def _user(self, raw: User, offset: int) -> UserUpdate:
        return UserUpdate(self._users[raw.user_id], Version(raw.ts, 0, 0, self._request_features.row(raw.features)))


@lru_cache(1024)
def _zeros(n: int) -> bytes:
    return bytes(8 * n)


def _request_hash(identifier: str) -> int:
    """:func:`stream_app.events.hash_id` of a request id: each is seen once or twice, so nothing is cached."""
    if not identifier:
        raise _UnusableError("empty_id", "empty request id")
    unsigned: int = xxhash.xxh3_64_intdigest(b"request\0" + identifier.encode())
    return (unsigned - (1 << 64) if unsigned >= 1 << 63 else unsigned) or 1


_COUNTING: Final = [list(range(n)) for n in range(129)]
_COUNTED: Final = [int32s(n).pack(*positions) for n, positions in enumerate(_COUNTING)]
_UNKNOWN: Final = b"\xff" * 4


def _positions(positions: list[int | None]) -> bytes:
    n = len(positions)
    if n <= 128 and positions == _COUNTING[n]:
        return _COUNTED[n]
    known = [position for position in positions if position is not None]
    if not known:
        return _UNKNOWN * n
    if min(known) < 0 or max(known) > _MAX_POSITION:
        raise _UnusableError("position", f"a position outside 0 to {_MAX_POSITION}")
    return int32s(n).pack(*[-1 if position is None else position for position in positions])


def _truths(truths: list[float | None]) -> bytes:
    return float32s(len(truths)).pack(*[math.nan if truth is None else truth for truth in truths])


def _unusable(error: Exception) -> Unusable:
    if isinstance(error, _UnusableError):
        return Unusable(error.code, str(error))
    if isinstance(error, FeatureError):
        return Unusable("feature", str(error))
    if isinstance(error, msgspec.ValidationError):
        return Unusable("schema", str(error))
    if isinstance(error, (msgspec.DecodeError, RecursionError)):
        return Unusable("json", str(error))
    if isinstance(error, UnicodeError):
        return Unusable("text", str(error))
    return Unusable("number", str(error))
