"""Raw records to what the joiner keeps: decoding, checks, hashed ids. What can be wrong with a record is found here."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import xxhash

from stream_app.events import ACTIONS, IMPRESSIONS, ITEMS, USERS, Action, IdHashes, Impression, Item, User, partition_of
from stream_app.topics import Record

from .action_values import NO_VALUE, OUT_OF_REACH, value_word
from .config import JoinConfig
from .core.layout import (
    ACT_EVENT,
    COMPLETE,
    EVENT_HEAD,
    IGNORED,
    ITEM_EVENT,
    N_CATEGORIES,
    PAGE,
    POSITION,
    UNUSABLE,
    USER_EVENT,
    Ints,
)
from .features import FLOAT32_MAX, NAN, FeatureError, FeatureReader, float_bits
from .merge import NEVER
from .pending import NO_EVENTS, Events, Unusable
from .scan.homes import homes
from .scan.reader import Reader

MAX_RECORD_BYTES: Final = 1 << 20
"""Larger records are dead letters: Kafka's own default limit."""
MAX_TS: Final = 253_402_300_799_999  # The end of year 9999.
_MAX_POSITION: Final = (1 << 31) - 1


class Kind(NamedTuple):
    """What actions of one kind do."""

    name: str
    labels: int
    """Least value with which it labels, as :func:`~.action_values.value_word` has it."""
    feeds: tuple[int, ...]
    """Per item sequence: least value with which it feeds it."""
    by_domain: bool
    """Whether a sequence that it feeds takes some domains only."""


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


def joiner_kinds(config: JoinConfig) -> dict[str, Kind]:
    """Return the kinds of action that a config uses, in a fixed order."""
    sequences = config.item_sequences.values()
    names = sorted({*config.label_kinds, *(kind for sequence in sequences for kind in sequence.kinds)})
    return {
        name: Kind(
            name,
            _least(name, config.label_kinds, config.label_min_value),
            tuple(_least(name, sequence.kinds, sequence.min_value) for sequence in sequences),
            any(name in sequence.kinds and sequence.domains for sequence in sequences),
        )
        for name in names
    }


def _least(kind: str, kinds: Sequence[str], least: Mapping[str, float]) -> int:
    return value_word(least.get(kind)) if kind in kinds else OUT_OF_REACH


def reads_values(config: JoinConfig) -> bool:
    """Whether the values of actions matter."""
    return bool(config.label_min_value) or any(sequence.min_value for sequence in config.item_sequences.values())


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
        self._reads_values = reads_values(config)
        features = config.request_features, config.candidate_features
        self._reader = Reader(list(kinds), self._due_after, self._reads_values, *features, config.truth)
        self._kinds = {name: index for index, name in enumerate(kinds)}
        self._request_features = FeatureReader("request", config.request_features)
        self._candidate_features = FeatureReader("candidate", config.candidate_features)
        self._prepare: dict[str, tuple[Callable[[bytes], Any], Callable[[Any], tuple[int, list[int]]]]] = {
            IMPRESSIONS: (msgspec.json.Decoder(Impression).decode, self._impression),
            ACTIONS: (msgspec.json.Decoder(Action).decode, self._action),
            ITEMS: (msgspec.json.Decoder(Item).decode, self._item),
            USERS: (msgspec.json.Decoder(User).decode, self._user),
        }

    def decode(self, topic: str, records: Sequence[Record]) -> tuple[Events, Ints]:
        """Decode records of a topic.

        Returns:
            The events, and their ``ts``; what is unusable has :data:`~.merge.NEVER`, so that it moves no clock.
        """
        if not records:
            return NO_EVENTS, np.zeros(0, np.int64)
        offsets, broker_ts, keys, values = zip(*records, strict=True)
        words, starts, stamps = self._read(topic, values, np.array(offsets, np.int64))
        broker = np.array(broker_ts, np.int64)
        alone = (starts < 0) | (stamps < broker - self._skew) | (stamps > broker + self._skew) | (stamps > MAX_TS)
        if topic != ITEMS and self._n_partitions > 1:
            home = homes(keys, self._n_partitions)
            alone |= (home >= 0) & (home != self._partition)
        unusable: dict[int, Unusable] = {}
        others: list[int] = []
        for at in np.flatnonzero(alone).tolist():
            event, stamps[at] = self.decode_alone(topic, records[at])
            starts[at] = len(words) + len(others)
            if isinstance(event, Unusable):
                unusable[offsets[at]] = event
                event = [UNUSABLE, EVENT_HEAD, offsets[at], NEVER]
            others += event
        if others:
            words = np.concatenate((words, np.array(others, np.int64)))
        return Events(words, starts, unusable), stamps

    def _read(self, topic: str, values: Sequence[bytes], offsets: Ints) -> tuple[Ints, Ints, Ints]:
        """Read by kernel what it can read; starts of -1 where it cannot."""
        if topic not in (ACTIONS, IMPRESSIONS):
            return np.zeros(0, np.int64), np.full(len(values), -1, np.int64), np.full(len(values), NEVER, np.int64)
        if max(map(len, values)) > MAX_RECORD_BYTES:
            values = [value if len(value) <= MAX_RECORD_BYTES else b"" for value in values]
        return self._reader.pages(values, offsets) if topic == IMPRESSIONS else self._reader.actions(values, offsets)

    def decode_alone(self, topic: str, record: Record) -> tuple[list[int] | Unusable, int]:
        """Decode one record as the kernels would if they read everything: slower, and knows all that may be wrong.

        Returns:
            The words of its event, or what is wrong, and its ``ts``.
        """
        parse, prepare = self._prepare[topic]
        offset, broker_ts, key, value = record
        skew = self._skew
        checks_home = topic != ITEMS and self._n_partitions > 1
        try:
            if len(value) > MAX_RECORD_BYTES:
                raise _UnusableError("too_large", f"{len(value)} bytes; at most {MAX_RECORD_BYTES} are read")
            if checks_home and key and (home := partition_of(key, self._n_partitions)) != self._partition:
                raise _UnusableError("foreign", f"key of partition {home} in partition {self._partition}")
            raw = parse(value)
            ts: int = raw.ts
            if not broker_ts - skew <= ts <= broker_ts + skew or not 0 <= ts <= MAX_TS:
                raise _UnusableError("clock", f"ts {ts} is not within {skew} ms of the record's broker time {broker_ts}")
            kind, body = prepare(raw)
            return [kind, EVENT_HEAD + len(body), offset, ts, *body], ts
        except (ValueError, OverflowError, RecursionError, struct.error) as error:
            return _unusable(error), NEVER

    def _impression(self, raw: Impression) -> tuple[int, list[int]]:
        shown = raw.items
        if not shown:
            raise _UnusableError("no_items", "an impression without items")
        categories = [self._categories[item.category] for item in shown]
        domains = [self._domains[item.domain] for item in shown]
        features, none_missing = self._candidate_features.columns(shown)
        complete = none_missing and 0 not in categories and 0 not in domains
        body = [
            self._users[raw.user_id],
            _request_hash(raw.request_id),
            raw.ts,
            raw.ts + self._due_after,
            self._queries[raw.query],
            *self._query_categories(raw.query_category),
            self._domains[raw.domain],
            len(shown),
            COMPLETE if complete else 0,
            *self._request_features.row(raw.features),
            *[self._items[item.item_id] for item in shown],
            *categories,
            *domains,
            *[_position(item.position) for item in shown],
            *([_truth(item.truth) for item in shown] if self._config.truth else ()),
            *features,
        ]
        return PAGE, body

    def _query_categories(self, names: Sequence[str]) -> list[int]:
        known = [category for name in names if (category := self._categories[name])]
        return [*known, *[0] * N_CATEGORIES][:N_CATEGORIES]

    def _action(self, raw: Action) -> tuple[int, list[int]]:
        kind = self._kinds.get(raw.kind)
        user, item = self._users[raw.user_id], self._items[raw.item_id]
        if kind is None:
            return IGNORED, []
        request = _request_hash(raw.request_id) if raw.request_id else 0
        query, category, domain = self._queries[raw.query], self._categories[raw.category], self._domains[raw.domain]
        value = value_word(raw.value) if self._reads_values else NO_VALUE
        return ACT_EVENT, [user, item, raw.ts, raw.ts, kind, request, query, category, domain, value]

    def _item(self, raw: Item) -> tuple[int, list[int]]:
        _check_vector(raw.vector, self._config.vector_dim)
        category, domain, features = self._categories[raw.category], self._domains[raw.domain], raw.features
        return ITEM_EVENT, [self._items[raw.item_id], raw.ts, category, domain, *self._candidate_features.row(features)]

    def _user(self, raw: User) -> tuple[int, list[int]]:
        return USER_EVENT, [self._users[raw.user_id], raw.ts, 0, 0, *self._request_features.row(raw.features)]


def _request_hash(identifier: str) -> int:
    """:func:`stream_app.events.hash_id` of a request id: each is seen once or twice, so nothing is cached."""
    if not identifier:
        raise _UnusableError("empty_id", "empty request id")
    unsigned: int = xxhash.xxh3_64_intdigest(b"request\0" + identifier.encode())
    return (unsigned - (1 << 64) if unsigned >= 1 << 63 else unsigned) or 1


def _position(position: int | None) -> int:
    if position is None:
        return POSITION
    if not 0 <= position <= _MAX_POSITION:
        raise _UnusableError("position", f"a position outside 0 to {_MAX_POSITION}")
    return position


def _check_vector(vector: list[float] | None, dim: int) -> None:
    """Refuse what learners could not read; no sample carries a vector. JSON knows neither NaN nor infinity."""
    if vector is None:
        return
    if not vector:
        raise _UnusableError("vector", "an empty vector: leave the field out where there is none")
    if dim and len(vector) != dim:
        raise _UnusableError("vector", f"a vector of {len(vector)} numbers, and join.vector_dim = {dim}")
    if max(map(abs, vector)) > FLOAT32_MAX:
        raise _UnusableError("vector", f"a vector with a number beyond float32 (largest: {FLOAT32_MAX:.4g})")


def _truth(truth: float | None) -> int:
    return NAN if truth is None else float_bits(truth)


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
